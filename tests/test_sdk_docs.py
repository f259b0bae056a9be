"""The documents hold what the code does: examples run, help is current, all settings are there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from docs import from_code
from fieldpost.testing import RecordingServer, make_prediction

ROOT = Path(__file__).resolve().parent.parent
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = '"127.0.0.1:50051"'


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as running:
        running.add_prediction(
            make_prediction(["2025-06-01T12:00Z"], {("atmosphere_boundary_layer_thickness", "m"): [812.0]})
        )
        yield running


def test_every_example_of_the_sdk_page_runs(
    server: RecordingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "sdk.md").read_text()
    blocks = PYTHON_BLOCK.findall(page)
    assert len(blocks) == page.count("```python") > 5
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        program = block.replace(ADDRESS, repr(server.address))
        exec(compile(program, f"docs/sdk.md, example {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "atmosphere_boundary_layer_thickness (m)" in printed and "812.0" in printed
    assert "1 held, 0 of them before" in printed
    assert "(3, 1)" in printed


def test_the_example_of_the_readme_runs(server: RecordingServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.add_prediction(
        make_prediction([datetime.now(UTC)], {("atmosphere_boundary_layer_thickness", "m"): [640.0]}, station="payerne")
    )
    (block,) = PYTHON_BLOCK.findall((ROOT / "README.md").read_text())
    exec(compile(block.replace(ADDRESS, repr(server.address)), "README.md", "exec"), {})
    assert "640.0 m above ground" in capsys.readouterr().out


def test_the_documents_are_as_the_code_makes_them() -> None:
    stale = [path.name for path, content in from_code.generate_docs().items() if path.read_bytes() != content]
    assert stale == [], "run `make docs`"


def test_all_settings_are_documented_with_what_they_are() -> None:
    from edge_agent.settings import AgentSettings, describe_settings
    from server.settings import Settings

    page = from_code.settings_page()
    rows = [*describe_settings(), *from_code.server_settings(Settings)]
    declared = {field.name for field in dataclasses.fields(AgentSettings)} - {"instruments"} | set(
        Settings.model_fields
    )
    assert declared <= {name for name, *_ in rows}
    for name, kind, _, description in rows:
        assert f"| `{name}` |" in page
        assert kind and description.rstrip().endswith("."), f"{name} is described as {description!r}"


def test_help_is_put_into_its_place_and_the_second_time_changes_nothing() -> None:
    page = "before\n<!-- begin: fieldpost stations --help -->\nout of date\n<!-- end -->\nafter\n"
    once = from_code.fill("page.md", page)
    assert "out of date" not in once
    assert "Usage: fieldpost stations" in once
    assert once.startswith("before\n<!-- begin:") and once.endswith("<!-- end -->\nafter\n")
    assert from_code.fill("page.md", once) == once
    assert max(len(line) for line in once.splitlines()) <= from_code.WIDTH


@pytest.mark.parametrize("command", ["fieldpots --help", "fieldpost nonsense --help", "fieldpost stations", "rm -rf x"])
def test_a_place_for_a_command_that_does_not_exist_fails_and_names_the_page(command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        from_code.fill("page.md", f"<!-- begin: {command} -->\n<!-- end -->\n")
    assert "page.md" in str(caught.value)


def test_a_place_without_an_end_fails() -> None:
    with pytest.raises(SystemExit, match="end"):
        from_code.fill("page.md", "<!-- begin: fieldpost --help -->\n")
