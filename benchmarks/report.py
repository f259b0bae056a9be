"""How benchmarks print: a table for people, and with --json one JSON object as the last line."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Mapping, Sequence


def parse_options(description: str | None, **counts: int) -> argparse.Namespace:
    """The options that every benchmark has, and some numbers of its own with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    for name, default in counts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    return parser.parse_args()


def print_report(result: Mapping[str, object], *, as_json: bool) -> None:
    """Prints what was measured."""
    if as_json:
        print(json.dumps(result))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}")
    _print_rows(result, "")


def _print_rows(rows: Mapping[str, object], indent: str) -> None:
    for key, value in rows.items():
        if isinstance(value, Mapping):
            print(f"{indent}{key}")
            _print_rows(value, indent + "  ")
        else:
            print(f"{indent}{key:<{34 - len(indent)}} {_in_words(value)}")


def _in_words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)
