"""Scores versions of the analysis on simulated courses, where the truth is known.

On the command line:

    python -m server.analyses.boundary_layer.score [--versions 1 2] [--climate training] [--first-seed 1] [--courses 8]
        [--instrument cl51] [--step-s 60] [--json]

Knows no algorithm: all versions are asked alike. What the numbers mean stands in metrics.py. The seeds from 900 000 on
of the climate held-out belong to benchmarks/boundary_layer.py: look at them only there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from fieldpost.simulation import CALIBRATION, FAIR, HELD_OUT, TRAINING, Climate
from server.analyses import Analysis, load_analysis
from server.analyses.boundary_layer import NAME, VERSIONS
from server.analyses.boundary_layer.scoring.metrics import Compared, join, score_parts
from server.analyses.boundary_layer.scoring.simulated_courses import (
    SimulatedCourse,
    compare,
    retrieve,
    simulate_course,
)
from server.analyses.boundary_layer.simulated import INSTRUMENTS

CLIMATES: Mapping[str, Climate] = MappingProxyType(
    {"fair": FAIR, "training": TRAINING, "calibration": CALIBRATION, "held-out": HELD_OUT}
)
COLUMNS = (
    ("availability", "available", "{:.0%}"),
    ("bias_m", "bias m", "{:+.0f}"),
    ("mae_m", "MAE m", "{:.0f}"),
    ("median_m", "median m", "{:.0f}"),
    ("rmse_m", "RMSE m", "{:.0f}"),
    ("r2", "r2", "{:.3f}"),
    ("within_100_m", "<=100 m", "{:.0%}"),
    ("within_200_m", "<=200 m", "{:.0%}"),
    ("beyond_300_m", ">300 m", "{:.0%}"),
    ("wrong_layer", "wrong layer", "{:.1%}"),
    ("false_height", "false height", "{:.0%}"),
    ("jumps_per_hour", "jumps/h", "{:.1f}"),
    ("coverage_90", "in 90 %", "{:.0%}"),
    ("interval_m", "width m", "{:.0f}"),
)
"""What the table shows of a score: its name there, in the head, and how."""
Rows = Mapping[str, Mapping[str, float | None]]


def score_courses(analysis: Analysis, courses: Iterable[SimulatedCourse]) -> Compared:
    """What a version says of courses, beside the truth.

    Raises:
        ValueError: There are no courses.
    """
    parts = [compare(course, retrieve(analysis, course)[0]) for course in courses]
    if not parts:
        raise ValueError("expected at least one course, but got none")
    return join(parts)


def rows_of(parts: Mapping[str, Any]) -> dict[str, Mapping[str, float | None]]:
    """A score with its parts, from score_parts, as rows of a table: all first."""
    return {"all": parts, **parts["regimes"], **parts["instruments"], "flag good": parts["flag_good"]}


def format_table(rows: Rows) -> str:
    """Rows for people to read."""
    widths = [max(len(head), 6) for _, head, _ in COLUMNS]
    name_width = max(len(name) for name in rows)
    lines = [" ".join([" " * name_width, *(f"{h:>{w}}" for (_, h, _), w in zip(COLUMNS, widths, strict=True))])]
    for name, figures in rows.items():
        cells = []
        for (key, _, form), width in zip(COLUMNS, widths, strict=True):
            value = figures[key]
            cells.append(f"{'-' if value is None else form.format(value):>{width}}")
        lines.append(" ".join([f"{name:<{name_width}}", *cells]))
    return "\n".join(lines)


def show_progress(done: int, count: int, what: str) -> None:
    """How far it is, on one line of stderr; nothing where nobody looks."""
    if sys.stderr.isatty():
        filled = 30 * done // max(count, 1)
        sys.stderr.write(f"\r{what} [{'#' * filled}{'.' * (30 - filled)}] {done}/{count}")
        sys.stderr.write("\n" if done == count else "")
        sys.stderr.flush()


def _courses(
    options: argparse.Namespace, on_done: Callable[[int, int, str], None] = show_progress
) -> Iterable[SimulatedCourse]:
    seeds = range(options.first_seed, options.first_seed + options.courses)
    for done, seed in enumerate(seeds):
        on_done(done, len(seeds), "courses")
        yield simulate_course(seed, CLIMATES[options.climate], model=options.instrument, step_s=options.step_s)
    on_done(len(seeds), len(seeds), "courses")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, but got {text}")
    return value


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--climate", choices=tuple(CLIMATES), default="training")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--courses", type=_positive, default=8, help="each with a seed of its own; default 8")
    parser.add_argument("--instrument", choices=INSTRUMENTS, help="default: each in turn")
    parser.add_argument("--step-s", type=float, default=60, help="from profile to profile; default 60")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    analyses = {version: load_analysis(NAME, version) for version in options.versions}
    found: dict[int, list[Compared]] = {version: [] for version in analyses}
    for course in _courses(options):
        for version, analysis in analyses.items():
            found[version].append(compare(course, retrieve(analysis, course)[0]))
    scores = {version: score_parts(join(parts)) for version, parts in found.items()}
    if options.json:
        sys.stdout.write(json.dumps({str(version): parts for version, parts in scores.items()}) + "\n")
        return
    for version, parts in scores.items():
        sys.stdout.write(f"version {version}\n{format_table(rows_of(parts))}\n")


if __name__ == "__main__":
    main()
