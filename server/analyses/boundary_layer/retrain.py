"""What the boundary layer's learned versions offer to whoever retrains them, as server.analyses.retraining asks for it.

Knows no store, no catalogue and no Prefect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fieldpost.simulation.climates import HELD_OUT, TRAINING, Climate
from server.analyses import AnalysisResult, load_analysis
from server.analyses.boundary_layer import LEARNED, NAME, SHIPPED_WEIGHTS
from server.analyses.boundary_layer.retraining.climate import make_climate, summarise
from server.analyses.boundary_layer.retraining.days import KnownDay, join, simulate_day, to_known_days
from server.analyses.boundary_layer.retraining.measures import MEASURES
from server.analyses.boundary_layer.retraining.statistics import (
    STATISTICS,
    describe_answers,
    describe_inputs,
    describe_profiles,
)
from server.analyses.boundary_layer.training.courses import climate_from_json, climate_to_json
from server.analyses.retraining import DayScore, DayStatistics, Progress, ReferenceDay, Version

__all__ = ["MEASURES", "STATISTICS", "describe_answers", "describe_inputs"]

LITERT_SCRIPT = Path(__file__).parent / "retraining" / "litert.py"
SIMULATED = ("cl31", "cl51", "cl61", "chm15k")
FIRST_HELD_OUT_SEED, SEEDS_A_RUN = 1_000_000_000, 1000
"""No training and no benchmark draws from this seed on; each run has some of its own."""
USUAL_DAYS, USUAL_SEED = 6, 900_000_000
"""Days of each instrument model that tell what TRAINING looks like."""
DESCRIBED_STRIDE = 10
"""Of a simulated day's profiles, one of so many is described."""
_EPOCH = re.compile(r"epoch (\d+)/(\d+)")


def write_climate(path: Path, days: Sequence[DayStatistics]) -> None:
    """See Retraining."""
    usual = {
        model: [
            describe_profiles(day.observations) for day in _days_of(TRAINING, model, USUAL_DAYS, 0, DESCRIBED_STRIDE)
        ]
        for model in _simulated(each.instrument_model for each in days)
    }
    path.write_text(climate_to_json(make_climate(days, summarise(usual))))


def describe_training(
    climate: Path | None, instrument_models: Sequence[str], version: Version, *, day_count: int, seed: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """See Retraining."""
    from server.analyses.boundary_layer.retraining.scores import answer

    known = TRAINING if climate is None else climate_from_json(climate.read_text())
    analysis = load_analysis(NAME, *version)
    days: dict[str, list[dict[str, float]]] = {}
    for model in _simulated(instrument_models):
        for day in _days_of(known, model, day_count, seed, 1):
            answers = [each if isinstance(each, AnalysisResult) else None for each in answer(analysis, day)]
            described = describe_profiles(day.observations[::DESCRIBED_STRIDE])
            days.setdefault(model, []).append(described | describe_answers(answers))
    return summarise(days)


def write_references(path: Path, days: Iterable[ReferenceDay]) -> bool:
    """See Retraining."""
    from server.analyses.boundary_layer.training import references

    courses = [
        references.make_reference_course(
            join(known.observations),
            known.references[0].tolist(),
            known.references[1].tolist(),
            known.latitude_deg,
            known.longitude_deg,
        )
        for each in days
        for known in to_known_days(each)
    ]
    if courses:
        references.write_references(path, courses)
    return bool(courses)


def find_weights(version: Version) -> bytes:
    """See Retraining."""
    return SHIPPED_WEIGHTS.read_bytes() if version.version == LEARNED else version.content


def train_arguments(
    folder: Path,
    climate: Path,
    *,
    day_count: int,
    epoch_count: int,
    seed: int,
    start_from: Path | None,
    references: Path | None,
    options: Sequence[str],
) -> list[str]:
    """See Retraining."""
    arguments = ["-m", "server.analyses.boundary_layer.train", "--out", str(folder), "--climate", str(climate)]
    arguments += ["--days", str(day_count), "--epochs", str(epoch_count), "--seed", str(seed)]
    arguments += [] if start_from is None else ["--start-from", str(start_from)]
    arguments += [] if references is None else ["--references", str(references)]
    return [*arguments, *options]


def read_progress(line: str) -> float | None:
    """See Retraining."""
    found = _EPOCH.match(line)
    return None if found is None else int(found[1]) / int(found[2])


def evaluate(
    active: Version,
    candidate: Version,
    climate: Path,
    instrument_models: Sequence[str],
    references: Iterable[ReferenceDay],
    *,
    day_count: int,
    seed: int,
    progress: Progress,
) -> list[DayScore]:
    """See Retraining."""
    from server.analyses.boundary_layer.retraining.scores import retrieve, score_day

    models = _simulated(instrument_models) or list(SIMULATED)
    kinds = {"the network's climate": climate_from_json(climate.read_text()), "another climate": HELD_OUT}
    ours, theirs = (load_analysis(NAME, *each) for each in (active, candidate))
    scores: list[DayScore] = []
    for place in range(day_count):
        for kind, drawn_from in kinds.items():
            day_seed = FIRST_HELD_OUT_SEED + seed * SEEDS_A_RUN + place
            day = simulate_day(day_seed, drawn_from, models[place % len(models)])
            scores += score_day(f"{kind}, {day_seed}", kind, day, retrieve(ours, day), retrieve(theirs, day))
        progress((place + 1) / day_count)
    for real in references:
        for day in to_known_days(real):
            scores += score_day(real.name, "reference heights", day, retrieve(ours, day), retrieve(theirs, day))
    return scores


def draw_comparison(path: Path, active: Version, candidate: Version, climate: Path, *, seed: int) -> None:
    """See Retraining."""
    from server.analyses.boundary_layer.retraining.figure import draw_day
    from server.analyses.boundary_layer.retraining.scores import retrieve

    known = climate_from_json(climate.read_text())
    day = simulate_day(FIRST_HELD_OUT_SEED + seed * SEEDS_A_RUN, known, "cl51")
    drawn = {"active": active, "trained": candidate}
    draw_day(path, day, {name: retrieve(load_analysis(NAME, *each), day) for name, each in drawn.items()})


def export_program(weights: Path, path: Path) -> None:
    """See Retraining."""
    from server.analyses.boundary_layer.retraining.program import write_program

    write_program(weights, path)


def _simulated(instrument_models: Iterable[str]) -> list[str]:
    return sorted(set(instrument_models) & set(SIMULATED))


def _days_of(climate: Climate, model: str, day_count: int, seed: int, stride: int) -> Iterator[KnownDay]:
    first = USUAL_SEED + seed * SEEDS_A_RUN
    return (simulate_day(first + place, climate, model, stride) for place in range(day_count))


def export_onnx(weights: Path, path: Path) -> None:
    """See Retraining."""
    from server.analyses.boundary_layer.learned import export
    from server.analyses.boundary_layer.learned.weights import Weights

    export.export_onnx(Weights.from_bytes(weights.read_bytes()).network, path)
