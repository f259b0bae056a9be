"""What a retrain asks of an analysis: a module `retrain` in its package, which has the functions of Retraining.

Plain values and a protocol. What is measured of a day, what a training needs and how versions are scored is known to
the analysis alone; where days come from, and what becomes of a trained version, is known to the flow alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError
from server.analyses import AnalysisCard, AnalysisInput, AnalysisResult, find_analyses

ALL = "all"
"""The group of scores that has every instant of every day in it."""


class Version(NamedTuple):
    """A version of the analysis, as it is loaded.

    Attributes:
        version: Its number.
        content: Its weights; empty where they come with Fieldpost.
    """

    version: int
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class DayStatistics:
    """A day of an instrument, in numbers that need no truth.

    Attributes:
        station: Of the instrument.
        instrument: Its name there.
        instrument_model: From the registry.
        latitude_deg: From the registry; None where it does not know.
        longitude_deg: Likewise.
        day: YYYY-MM-DD, UTC.
        values: By name; NaN where the day does not tell.
    """

    station: str
    instrument: str
    instrument_model: str
    latitude_deg: float | None
    longitude_deg: float | None
    day: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ReferenceDay:
    """Real observations of an instrument with heights that somebody else knows.

    Attributes:
        name: Of station, instrument and day.
        observations: By measure time, of the UTC day of the references and the one before it.
        unix_s: (references,), float64: when the heights hold.
        height_m: (references,), float64: the heights, above the instrument.
    """

    name: str
    observations: Sequence[AnalysisInput]
    unix_s: NDArray[np.float64]
    height_m: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that two versions are compared by; smaller is better.

    Its value is the distance of a ratio of two sums over days from its target, or the root of that.

    Attributes:
        name: For people.
        unit: Of its value; empty for a share.
        target: What the ratio should be.
        is_root: Whether its value is the root.
        must_improve: Whether a version has to be better by it; by the others it must only not be worse.
    """

    name: str
    unit: str = ""
    target: float = 0.0
    is_root: bool = False
    must_improve: bool = False


class DayScore(NamedTuple):
    """What two versions have to show on the same instants of one day.

    Attributes:
        day: Names the day; days are independent of each other.
        group: ALL, a regime, or a kind of day.
        measure: A Measure's name.
        active: The sum of the version at work.
        candidate: That of the one that was trained.
        divisor: What both are divided by; above 0.
    """

    day: str
    group: str
    measure: str
    active: float
    candidate: float
    divisor: float


Progress = Callable[[float], None]
"""Told the share that is done."""


class Retraining(Protocol):
    """The functions of an analysis' module `retrain`; none of them needs the server."""

    LITERT_SCRIPT: Path
    """Run by a LiteRT converter's own Python with what export_program wrote, and the file to write."""
    MEASURES: Sequence[Measure]
    """What versions are compared by."""
    STATISTICS: Sequence[str]
    """Of those of describe_inputs and describe_answers, the ones that are held against the training's."""

    def describe_inputs(
        self, observations: Sequence[AnalysisInput], measure_unix_nanos: NDArray[np.int64]
    ) -> dict[str, float]:
        """A day's statistics: from some of its observations, evenly spaced, and the instants of all of them."""

    def describe_answers(self, answers: Sequence[AnalysisResult | None]) -> dict[str, float]:
        """The statistics of a version's answers on a day; None where it failed."""

    def write_climate(self, path: Path, days: Sequence[DayStatistics]) -> None:
        """Writes the kind of days to train on: that of these days, or the shipped kind where they are too few."""

    def describe_training(
        self,
        climate: Path | None,
        instrument_models: Sequence[str],
        version: Version,
        *,
        day_count: int,
        seed: int,
    ) -> dict[str, dict[str, tuple[float, float]]]:
        """Of a version on days of a climate, mean and standard deviation of each statistic, by instrument model.

        Args:
            climate: Written by write_climate; None for the shipped one.
            instrument_models: Which; those that cannot be simulated are left out.
            version: Whose answers are described.
            day_count: Days of each instrument model.
            seed: Decides which.
        """

    def write_references(self, path: Path, days: Iterable[ReferenceDay]) -> bool:
        """Writes real days with known heights for the training; False where there is nothing to write."""

    def find_weights(self, version: Version) -> bytes:
        """The weights of a version, to start from; empty where it has none."""

    def train_arguments(
        self,
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
        """What torchrun is to run: `-m`, the module and its arguments. It resumes where the folder has a beginning.

        It writes weights.safetensors, metrics.json, and figure.png into the folder.
        """

    def read_progress(self, line: str) -> float | None:
        """The share of the training that is done, where a line of its output tells."""

    def evaluate(
        self,
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
        """Scores both on days that neither was trained on: of the climate, of others, and the references."""

    def draw_comparison(self, path: Path, active: Version, candidate: Version, climate: Path, *, seed: int) -> None:
        """Draws a held-out day with both and the truth, as a PNG file."""

    def export_onnx(self, weights: Path, path: Path) -> None:
        """Writes the network as ONNX."""

    def export_program(self, weights: Path, path: Path) -> None:
        """Writes the network as LITERT_SCRIPT reads it, a .pt2 file."""


def can_retrain(card: AnalysisCard) -> bool:
    """Whether an analysis has what a retrain asks of it; imports nothing of it."""
    return importlib.util.find_spec(f"{card.package}.retrain") is not None


def find_retraining(analysis: str) -> Retraining:
    """The retraining of an analysis.

    Raises:
        InvalidRequestError: There is no such analysis, or it cannot be retrained.
    """
    packages = {card.name: card.package for card in find_analyses() if can_retrain(card)}
    if analysis not in packages:
        raise InvalidRequestError(
            f"expected an analysis that can be retrained ({', '.join(packages)}), but got {analysis!r}"
        )
    return cast("Retraining", importlib.import_module(f"{packages[analysis]}.retrain"))
