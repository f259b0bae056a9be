"""The live table of the demo: what each instrument has written so far, and how far it has come."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from demo.plan import PlannedStation
from edge_agent.control import SOCKET_NAME, ask
from fieldpost import Client
from fieldpost.errors import TryAgainError
from fieldpost.v1.command_pb2 import Command, ReportCommand

PLAIN_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class StationProgress:
    """One station now, by its own word and by the server's."""

    station: str
    captured_count: int
    backlog_count: int
    held_count: int
    quarantined_count: int
    is_done: bool
    is_link_cut: bool


def read_progress(
    station: PlannedStation, buffer: Path, held: dict[str, int], *, is_done: bool, is_link_cut: bool
) -> StationProgress:
    """Asks the station; one that has ended has left its last word. Before its first, nothing is known."""
    status = _status(buffer)
    return StationProgress(
        station.name,
        status.get("last_sequence", 0),
        status.get("backlog_count", 0),
        held.get(station.name, 0),
        status.get("quarantined_count", 0),
        is_done,
        is_link_cut,
    )


def _status(buffer: Path) -> dict[str, Any]:
    try:
        answer = ask(buffer / SOCKET_NAME, Command(command_id=secrets.token_hex(16), report=ReportCommand()), 2.0)
        return dict(answer["report"])
    except (TryAgainError, KeyError):
        pass
    try:
        return dict(json.loads((buffer / "status.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def count_held(client: Client) -> dict[str, int]:
    """By station, the observations that the server holds; empty while it cannot be asked."""
    try:
        return {
            station.station: sum(each.observation_count for each in station.instruments)
            for station in client.stations()
        }
    except TryAgainError:
        return {}


def show_until_done(
    console: Console, look: Callable[[], Sequence[StationProgress]], act: Callable[[float], None]
) -> None:
    """Shows the table until every station is done.

    Args:
        console: Where; a terminal gets a live table, anything else a line now and then.
        look: Tells how far each station is.
        act: Called at each look with the seconds since the start, to make things happen.
    """
    started = time.monotonic()
    next_line_s = 0.0
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            passed_s = time.monotonic() - started
            act(passed_s)
            rows = look()
            if console.is_terminal:
                live.update(_to_table(rows, passed_s))
            elif passed_s >= next_line_s:
                next_line_s = passed_s + PLAIN_EVERY_S
                console.print(f"{passed_s:5.0f} s  " + "   ".join(map(_to_words, rows)))
            if all(row.is_done for row in rows):
                return
            time.sleep(0.25)


def _to_table(rows: Sequence[StationProgress], passed_s: float) -> Table:
    table = Table(title=f"{passed_s:.0f} s", title_justify="left")
    for name in ("station", "link", "on its disk", "not yet receipted", "held by the server", "quarantined"):
        table.add_column(name, justify="left" if name in ("station", "link") else "right")
    for row in rows:
        link = "[red]cut[/red]" if row.is_link_cut else "[green]done[/green]" if row.is_done else "up"
        counts = (row.captured_count, row.backlog_count, row.held_count, row.quarantined_count)
        table.add_row(row.station, link, *(f"{count:,}" for count in counts))
    return table


def _to_words(row: StationProgress) -> str:
    link = " (link cut)" if row.is_link_cut else " (done)" if row.is_done else ""
    return f"{row.station}{link}: {row.captured_count:,} on disk, {row.held_count:,} held"
