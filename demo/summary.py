"""What the demo says at its end: a table for people, summary.json for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo.account import InstrumentAccount

COLUMNS = {
    "written": "written",
    "held": "held",
    "predicted": "predicted",
    "archived": "archived",
    "lost": "lost",
    "duplicates_dropped": "duplicates\ndropped",
    "latency_p50_s": "latency\np50 (s)",
    "latency_p99_s": "latency\np99 (s)",
}
FAILURES = {"failed": "cannot be\npredicted"}
HEIGHTS = {
    "availability_percent": "height\ngiven (%)",
    "mae_m": "mean abs.\nerror (m)",
    "rmse_m": "RMSE\n(m)",
    "wrong_layer_percent": "wrong\nlayer (%)",
}


def write_summary(path: Path, accounts: Sequence[InstrumentAccount], made_again: int, took_s: float) -> None:
    """Writes summary.json."""
    names = ("written", "held", "predicted", "failed", "archived", "lost", "duplicates_dropped")
    totals = {name: sum(getattr(each, name) for each in accounts) for name in names}
    totals["quarantined"] = sum(len(each.quarantined) for each in accounts)
    totals["made_again"] = made_again
    totals["provisional"] = sum(heights.provisional for each in accounts for heights in each.heights)
    content = {"took_s": round(took_s, 1), "totals": totals, "instruments": [asdict(each) for each in accounts]}
    path.write_text(json.dumps(content, indent=2) + "\n")


def print_summary(console: Console, accounts: Sequence[InstrumentAccount]) -> None:
    """Prints the table, then what was set aside or could not be predicted, with its reason."""
    columns = dict(COLUMNS)
    if any(each.failed for each in accounts):
        columns |= FAILURES
    table = Table()
    table.add_column("instrument")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for each in accounts:
        cells = [_to_text(getattr(each, name)) for name in columns]
        if each.lost:
            cells[list(columns).index("lost")] = f"[bold red]{each.lost:,}[/bold red]"
        table.add_row(f"{each.station}/{each.instrument}", *cells)
    console.print(table)
    for each in accounts:
        for aside in each.quarantined:
            console.print(f"[yellow]quarantined[/yellow] {escape(aside.name)}: {escape(aside.reason)}")
        for failure in each.failures:
            console.print(f"[yellow]no prediction[/yellow] {each.station}/{each.instrument}: {escape(failure)}")


def _to_text(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"


def print_heights(console: Console, accounts: Sequence[InstrumentAccount], made_again: int) -> None:
    """Prints how each version's heights agree with the truth, side by side; nothing where no truth is known."""
    known = [each for each in accounts if any(heights.mae_m is not None for heights in each.heights)]
    if known:
        table = Table(title="heights against the simulated truth", title_justify="left")
        table.add_column("instrument")
        methods = [heights.method for heights in known[0].heights]
        for heading in HEIGHTS.values():
            for method in methods:
                table.add_column(f"{heading}\n{method}", justify="right")
        for each in known:
            cells = [_to_text(getattr(heights, name)) for name in HEIGHTS for heights in each.heights]
            table.add_row(f"{each.station}/{each.instrument}", *cells)
        console.print(table)
    provisional = sum(heights.provisional for each in accounts for heights in each.heights)
    if made_again or provisional:
        rest = f"; {provisional:,} are provisional still" if provisional else "; all are final now"
        console.print(f"{made_again:,} predictions were made again when what they had missed had come{rest}")
