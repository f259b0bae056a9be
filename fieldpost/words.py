"""Spans, sizes, counts and tables as people read them. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

MINUTE_S, HOUR_S, DAY_S, YEAR_S = 60.0, 3600.0, 86400.0, 365.25 * 86400.0
TERMINAL_COLUMNS = 80


def span(seconds: float) -> str:
    """How long: "12 s", "5 min", "3 h 20 min", "2 days 4 h", "45 days", "3.1 years"."""
    seconds = max(0.0, seconds)
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.0f} min"
    if seconds < 2 * DAY_S:
        hours, minutes = divmod(round(seconds / MINUTE_S), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if seconds < 10 * DAY_S:
        days, hours = divmod(round(seconds / HOUR_S), 24)
        return f"{days} days {hours} h" if hours else f"{days} days"
    if seconds < 2 * YEAR_S:
        return f"{seconds / DAY_S:,.0f} days"
    return f"{seconds / YEAR_S:,.1f} years" if seconds < 1000 * YEAR_S else "more than 1,000 years"


def size(byte_count: float) -> str:
    """How large, in powers of ten as disks are sold: "512 bytes", "3.4 MB", "118 GB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if byte_count >= factor:
            amount = byte_count / factor
            return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.1f} {unit}"
    return f"{byte_count:.0f} bytes"


def count(number: int, one: str, many: str = "") -> str:
    """How many of what: "1 observation", "12,345 observations"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines whose columns stand below one another; numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() and cell.replace(",", "").isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("   ".join(cells).rstrip())
    return lines


def tree(facts: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Facts, one a line; those within others stand further in, and long ones go on in the next line."""
    width = max(map(len, facts), default=0) + 2
    for name, value in facts.items():
        if isinstance(value, dict):
            yield f"{'  ' * depth}{name}"
            yield from tree(value, depth + 1)
        else:
            start = f"{'  ' * depth}{name:{width}}"
            yield from textwrap.wrap(
                str(value),
                TERMINAL_COLUMNS,
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_long_words=False,
                break_on_hyphens=False,
            ) or [start]
