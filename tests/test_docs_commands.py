"""What the documents tell people to type exists: commands with their options, settings in TOML, and files."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fieldpost.cli import app as fieldpost_app
from server.__main__ import app as server_app
from server.api.access_file import parse_access_file
from server.ingest.registry import read_stations_file
from server.models.manifest import read_manifest
from server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE_BY_HELP = re.compile(r"<!-- begin: .*?<!-- end -->", re.DOTALL)
SHOWN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
ROOTS = {"fieldpost": fieldpost_app, "fieldpost-server": server_app}


def shown_commands(page: Path) -> Iterator[list[str]]:
    """Each command of ours on a page, in words: from blocks, and from the middle of a sentence."""
    text = MADE_BY_HELP.sub("", page.read_text())
    blocks = [each["text"] for each in BLOCK.finditer(text) if each["language"] in ("", "sh")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *SHOWN.findall(BLOCK.sub("", text))]:
        found = re.match(r"(fieldpost|fieldpost-server) +([a-z].*|-.*)$", line.strip())
        if found and "/" not in found[2].split()[0]:
            spoken = re.split(r"  +|\s#", found[2])[0]  # what follows is an explanation
            yield [found[1], *shlex.split(re.sub(r" \.\.\.| …", "", spoken))]


def find_fault(words: list[str]) -> str | None:
    """Why a command cannot be typed as it is shown; None where it can."""
    command = typer.main.get_command(ROOTS[words[0]])
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        names = rest[0].split("|")  # `fieldpost station replay|set`
        if missing := [name for name in names if name not in command.commands]:
            return f"there is no command {missing[0]!r}"
        command, rest = command.commands[names[0]], rest[1:]
    if set(rest) & {"--help", "-h"}:
        return None
    parser = command.make_parser(typer.Context(command))
    parser.allow_interspersed_args = True
    try:
        _, too_many, _ = parser.parse_args(list(rest))
    except Exception as error:  # typer has click's errors under a name of its own, and does not export it
        return str(error)
    return f"{too_many} is too much" if too_many else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_exists_with_its_options(page: Path) -> None:
    faults = {" ".join(words): fault for words in shown_commands(page) if (fault := find_fault(words))}
    assert faults == {}


def test_the_commands_on_the_pages_are_found_and_a_wrong_one_is_noticed() -> None:
    shown = {" ".join(words[:3]) for page in PAGES for words in shown_commands(page)}
    assert {
        "fieldpost models activate",
        "fieldpost-server register stations.toml",
        "fieldpost retry --analysis",
    } <= shown
    assert len(shown) > 20
    assert "--retry-failed" in (find_fault(["fieldpost", "predictions", "--retry-failed"]) or "")
    assert find_fault(["fieldpost", "models", "shadow", "cloud-type", "1"]) == "['1'] is too much"
    assert find_fault(["fieldpost", "models", "delete", "x@1"]) == "there is no command 'delete'"


def test_each_toml_block_of_the_server_and_model_pages_is_one_that_its_reader_takes(tmp_path: Path) -> None:
    kinds = set()
    for name in ("server.md", "models.md"):
        for block in BLOCK.finditer((ROOT / "docs" / name).read_text()):
            if block["language"] != "toml":
                continue
            values = tomllib.loads(block["text"])
            if "stations" in values:
                kinds.add("stations")
                (tmp_path / "stations.toml").write_text(block["text"])
                assert read_stations_file(tmp_path / "stations.toml")
            elif "readers" in values:
                kinds.add("access")
                assert parse_access_file(block["text"].replace("…", "0" * 64), name).certificates
            elif "analysis" in values:
                kinds.add("manifest")
                read_manifest(block["text"])
            else:
                kinds.add("settings")
                Settings(**values)
    assert kinds == {"stations", "access", "manifest", "settings"}


def test_every_setting_in_the_growing_table_is_one() -> None:
    table = (ROOT / "docs" / "server.md").read_text().partition("## Growing")[2].partition("**Brokers.**")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert "segments_folder" in names
    assert [name for name in names if name not in Settings.model_fields] == []


@pytest.mark.parametrize("page", [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "README.md"])
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(
        r"`((?:fieldpost|edge_agent|server|flows|demo|tests|docs|deploy|protos)/[\w./-]+)`", page.read_text()
    )
    assert named
    gone = [name for name in named if not (ROOT / name).exists() and name not in ("tests/data/",)]
    assert gone == []


def test_a_wrong_stations_file_is_refused_with_its_place_and_no_addresses_of_others(tmp_path: Path) -> None:
    from fieldpost.errors import InvalidRequestError

    path = tmp_path / "stations.toml"
    path.write_text('[[stations]]\nname = "A b"\n')
    with pytest.raises(InvalidRequestError, match=r"stations\.0\.name: String should match") as caught:
        read_stations_file(path)
    assert "https://" not in str(caught.value) and caught.value.hint
