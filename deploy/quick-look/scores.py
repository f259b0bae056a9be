"""Scores quick looks on simulated days of a climate that none has learned from, beside the server's wavelets.

    python deploy/quick-look/scores.py edge_agent/quick_look/boundary-layer.fpmodel [another.fpmodel] [--json]

Asks each model as a station does, but for the writing of telegrams: decoded profile in, LiteRT, verdict out. Chooses
nothing by what it finds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scenes import INSTRUMENTS, View, views

from edge_agent.quick_look.estimator import Estimator
from edge_agent.quick_look.manifest import QUALITY_CLASSES
from edge_agent.quick_look.package import read_package
from edge_agent.quick_look.profile_input import to_input
from fieldpost.simulation import HELD_OUT, REGIMES, SKIES
from fieldpost.telegrams import Profiles
from server.analyses import AnalysisResult, load_analysis
from server.analyses.boundary_layer import NAME
from server.analyses.boundary_layer.scoring.metrics import Compared, join, score
from server.analyses.boundary_layer.scoring.simulated_courses import THICKNESS, PredictsProfiles

SCORED_SEEDS, TIMES_A_SEED = range(600_000, 600_600), 30
SCORED_ON = f"climate held-out, seeds {SCORED_SEEDS[0]} to {SCORED_SEEDS[-1]}, {TIMES_A_SEED} instants of a day each"
WITHOUT_HEIGHT = (*SKIES[2:], "blocked", "blind")
FLAGS = {"good": 2, "doubtful": 1, "bad": 0}
Row = dict[str, float | int | None]
Method = Callable[[Profiles], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Gives the height at each profile, NaN where it gives none, and its verdict as a flag."""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    estimators = {str(path): Estimator(read_package(path.read_bytes())) for path in options.packages}
    methods: dict[str, Method] = {name: partial(ask, estimator) for name, estimator in estimators.items()}
    found = measure(methods | {"wavelets": ask_wavelets})
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for name, rows in found.items():
        sys.stdout.write(f"{name}; {SCORED_ON}\n{format_rows(rows)}\n\n")


def measure(methods: Mapping[str, Method]) -> dict[str, dict[str, Row]]:
    """The rows of each method, on the same profiles."""
    parts: dict[str, list[Compared]] = {name: [] for name in methods}
    for view in views(SCORED_SEEDS, TIMES_A_SEED, HELD_OUT):
        for name, method in methods.items():
            parts[name].append(_beside_truth(view, *method(view.profiles)))
    return {name: score_rows(join(compared)) for name, compared in parts.items()}


def score_rows(compared: Compared) -> dict[str, Row]:
    """What is told of heights: over all, by regime, by instrument, by both; and of skies that have none."""
    has_truth = np.isfinite(compared.true_m)
    groups = {"all": has_truth} | {regime: has_truth & (compared.regime == regime) for regime in REGIMES}
    for instrument in INSTRUMENTS:
        groups[instrument] = has_truth & (compared.instrument == instrument)
        groups |= {f"{instrument} {regime}": groups[instrument] & groups[regime] for regime in REGIMES}
    groups["flag good"] = has_truth & (compared.flag == FLAGS["good"])
    rows = {name: _row(compared.at(where)) for name, where in groups.items() if where.any()}
    for sky in WITHOUT_HEIGHT:
        flag = compared.flag[compared.sky == sky]
        rows[f"no height: {sky}"] = {"profiles": len(flag)} | _verdicts(flag)
    return rows


def format_rows(rows: Mapping[str, Row]) -> str:
    """Rows for people to read."""
    heads = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [" ".join([" " * width, *(f"{head:>13}" for head in heads)])]
    for name, row in rows.items():
        cells = ["-" if (value := row.get(head)) is None else f"{value:g}" for head in heads]
        lines.append(" ".join([f"{name:<{width}}", *(f"{cell:>13}" for cell in cells)]))
    return "\n".join(lines)


def _row(compared: Compared) -> Row:
    found = score(compared)
    figures = {
        "bias_m": round(found.bias_m, 1),
        "mae_m": round(found.mae_m, 1),
        "rmse_m": round(found.rmse_m, 1),
        "within_100_m": round(found.within_100_m, 3),
        "beyond_300_m": round(found.beyond_300_m, 3),
        "wrong_layer": round(found.wrong_layer, 3),
    }
    known: Row = {name: value if np.isfinite(value) else None for name, value in figures.items()}
    return {"profiles": found.instant_count} | _verdicts(compared.flag) | known


def _verdicts(flag: NDArray[np.float64]) -> Row:
    return {name: round(float(np.mean(flag == FLAGS[name])), 3) for name in QUALITY_CLASSES} if len(flag) else {}


def ask(estimator: Estimator, profiles: Profiles) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a station would say; as Estimator.estimate has it."""
    heights_m, flags = np.full(len(profiles.beta), np.nan), np.zeros(len(profiles.beta))
    inputs = to_input(profiles, estimator.manifest.grid)
    for index in np.flatnonzero(~profiles.is_obscured):
        height_m, probabilities = estimator.run(inputs[index : index + 1])
        quality = estimator.manifest.quality(probabilities)
        heights_m[index] = np.nan if quality == "bad" else height_m
        flags[index] = FLAGS[quality]
    return heights_m, flags


def ask_wavelets(profiles: Profiles) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the server's version 1 says, which has no memory either."""
    analysis = load_analysis(NAME, 1)
    assert isinstance(analysis, PredictsProfiles)
    answers = analysis.predict_profiles(_singly(profiles), None, None)
    heights_m, flags = np.full(len(answers), np.nan), np.zeros(len(answers))
    for index, answer in enumerate(answers):
        if not isinstance(answer, AnalysisResult):
            raise answer
        values = {variable.name: variable.values[0] for variable in answer.variables}
        heights_m[index], flags[index] = values[THICKNESS], values["quality_flag"]
    return heights_m, flags


def _singly(profiles: Profiles) -> Sequence[Profiles]:
    return [
        Profiles(
            profiles.unix_nanos[n : n + 1],
            profiles.height_m,
            profiles.beta[n : n + 1],
            profiles.cloud_base_m[n : n + 1],
            profiles.is_obscured[n : n + 1],
        )
        for n in range(len(profiles.beta))
    ]


def _beside_truth(view: View, found_m: NDArray[np.float64], flag: NDArray[np.float64]) -> Compared:
    count = len(found_m)
    return Compared(
        course=np.zeros(count, np.int64),
        unix_s=view.profiles.unix_nanos / 1e9,
        instrument=np.full(count, view.instrument),
        regime=view.regime,
        sky=view.sky,
        true_m=view.height_m,
        others_m=view.others_m,
        found_m=found_m,
        lower_m=np.full(count, np.nan),
        upper_m=np.full(count, np.nan),
        flag=flag,
    )


if __name__ == "__main__":
    main()
