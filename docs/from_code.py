"""Fills in what the documents say of the code: the --help of the commands, and the settings.

A document has places for the help, which this fills again and again:

    <!-- begin: fieldpost predictions --help -->
    <!-- end -->

docs/settings.md and docs/metrics.md are made as wholes. Knows no command and no setting by name: commands are those
of pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100
_PLACE = re.compile(r"(<!-- begin: (?P<command>.+?) -->\n)(?P<old>.*?)(<!-- end -->)", re.DOTALL)
_BEGIN = re.compile(r"<!-- begin: ")

Row = tuple[str, str, str, str]
"""(name, type, default, description)"""


def generate_docs() -> dict[Path, bytes]:
    """All documents that hold something made from the code, as they ought to be."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    fresh = {page: fill(page.name, page.read_text("utf-8")).encode() for page in pages}
    fresh[ROOT / "docs" / "settings.md"] = settings_page().encode()
    fresh[ROOT / "docs" / "metrics.md"] = _metrics_page().encode()
    return fresh


def fill(page: str, text: str) -> str:
    """The text of a page with the help of commands in its places.

    Raises:
        SystemExit: A place is not closed, or names a command that does not exist or fails.
    """
    if len(_BEGIN.findall(text)) != len(_PLACE.findall(text)):
        sys.exit(f"{page}: expected an <!-- end --> after each <!-- begin: … -->")
    return _PLACE.sub(lambda place: f"{place[1]}```text\n{_help(page, place['command'])}```\n{place[4]}", text)


def _help(page: str, command: str) -> str:
    """What a command prints, 100 columns wide and without colour, whatever terminal this runs in."""
    program, *words = shlex.split(command)
    entry_points: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    if program not in entry_points or words[-1:] != ["--help"]:
        sys.exit(f"{page}: expected the --help of one of {', '.join(entry_points)}, but got {command!r}")
    module, _, function = entry_points[program].partition(":")
    call = f"import sys; sys.argv[0] = {program!r}; from {module} import {function}; sys.exit({function}())"
    plain = {"COLUMNS": str(WIDTH), "LINES": "50", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", call, *words],
        check=False,
        cwd=ROOT,
        env=kept | plain,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        sys.exit(f"{page}: `{command}` failed with status {done.returncode}:\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()) + "\n"


def _metrics_page() -> str:
    from server.telemetry.metrics import metrics_page

    return metrics_page()


def settings_page() -> str:
    """docs/settings.md: all settings of the station and of the server."""
    from edge_agent.settings import ENVIRONMENT_PREFIX, describe_settings
    from server.settings import Settings

    server_prefix = str(Settings.model_config.get("env_prefix", ""))
    return "\n".join(
        [
            "# Settings",
            "",
            "Made by `make docs` from the code: change the descriptions there.",
            "",
            "## The station (`fieldpost-agent`)",
            "",
            "One TOML file. What stands at its top level can also be given in the environment, as "
            f"`{ENVIRONMENT_PREFIX}` and the name in capitals; that wins over the file. What begins with "
            "`instruments.` stands in one `[[instruments]]` table for each instrument.",
            "",
            *_table(describe_settings()),
            "",
            "## The server (`fieldpost-server`)",
            "",
            f"A flag, the environment (`{server_prefix}` and the name in capitals), a systemd credential of that "
            "name, a TOML file, or the default: the first that says something wins.",
            "",
            *_table(server_settings(Settings)),
            "",
        ]
    )


def server_settings(settings: type[BaseSettings]) -> list[Row]:
    """The fields of a pydantic settings model, in the order of their declaration.

    Raises:
        SystemExit: A field has no description.
    """
    rows = []
    for name, field in settings.model_fields.items():
        if not field.description:
            sys.exit(f"{settings.__module__}.{settings.__name__}.{name} has no description")
        default = "" if field.is_required() else _default(field.get_default(call_default_factory=False))
        rows.append((name, _type_name(field.annotation), default, field.description))
    return rows


def _type_name(annotation: object) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else annotation
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(name))  # pathlib.Path | None -> Path | None


def _default(value: object) -> str:
    return "" if value in (None, "") else str(value)


def _table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table."""
    lines = ["| setting | type | default | what it is |", "| --- | --- | --- | --- |"]
    for name, kind, default, description in rows:
        shown = f"`{default}`" if default else ""
        cells = (f"`{name}`", f"`{kind}`", shown, description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return lines
