"""Analyses: questions asked of observations. Each is one folder here; nobody else knows one of them by name.

A folder `server/analyses/<name>/` is an analysis when its package has a function

    def load(version: int) -> Analysis: ...

and a tuple VERSIONS of the versions that it can load. Loading happens in the worker process, and there alone: the
server itself never imports torch. Where some of its versions remember (FollowingAnalysis), the package also has

    def course_start(version: int, measure_unix_nanos: int, longitude_deg: float | None) -> int | None: ...

which tells the start of the course that an instant belongs to, or None where that version does not remember. Where it
can be trained at a network, the package also has

    def load_trained(version: int, content: bytes) -> Analysis: ...

which loads a version that it did not come with, from the weights that are its content.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError


class AnalysisInput(NamedTuple):
    """One observation, as an analysis sees it.

    Attributes:
        payload: The instrument's bytes, decoded and checked.
        instrument_model: From the registry, for example "cl51".
        measure_unix_nanos: When it was measured, or captured where only the payload knows better.
        calibration: Factor from the registry that turns the instrument's signal into attenuated backscatter; None
            where the instrument's own is to be used.
        latitude_deg: From the registry; None where it does not know, as with longitude_deg.
    """

    payload: bytes
    instrument_model: str
    measure_unix_nanos: int
    calibration: float | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None


class AnalysisVariable(NamedTuple):
    """One predicted quantity.

    Attributes:
        name: CF standard name where there is one.
        unit: UDUNITS string.
        values: (samples,), float32; NaN where missing.
        flag_meanings: Where the values are numbers of classes, what 0, 1, 2 and so on mean.
    """

    name: str
    unit: str
    values: NDArray[np.float32]
    flag_meanings: tuple[str, ...] = ()


class AnalysisResult(NamedTuple):
    """What an analysis says about one observation.

    Attributes:
        sample_unix_nanos: (samples,), int64: the instants that the values belong to.
        variables: The predicted quantities.
    """

    sample_unix_nanos: NDArray[np.int64]
    variables: tuple[AnalysisVariable, ...]


class Analysis(Protocol):
    """A loaded model version."""

    name: str
    """For example "boundary-layer-height"."""
    version: int
    instrument_models: frozenset[str]
    """The instrument models whose observations it answers for; it is never asked about others."""
    max_batch: int
    """The largest batch that pays, in observations; measured."""

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation, in order.

        An observation whose payload cannot be decoded gets its InvalidObservationError in its place; the others are
        not disturbed.
        """
        ...


class Stretch(NamedTuple):
    """Observations of one instrument that follow each other, and what was known before them.

    Attributes:
        state: What the analysis gave back with the stretch before; empty at the start of a course.
        observations: By measure time; never those of two courses.
    """

    state: bytes
    observations: Sequence[AnalysisInput]


class Followed(NamedTuple):
    """What an analysis says about a stretch.

    Attributes:
        results: For each observation, in order, as predict gives them.
        state: What it knows after the last of them; it means something to the same model version only.
    """

    results: list[AnalysisResult | Exception]
    state: bytes


@runtime_checkable
class FollowingAnalysis(Protocol):
    """A model version that remembers: what it says of an observation depends on those of its course before it.

    A course is a span of an instrument's measure time, as its package's `course_start` cuts it. Memory begins anew
    with each, so that a result is a function of the course's observations up to it and of nothing else. follow is a
    fold: however a course is cut into stretches, the results are the same.
    """

    def follow(self, stretches: Sequence[Stretch]) -> list[Followed]:
        """Answers for stretches of several instruments, in order."""
        ...


@dataclass(frozen=True, slots=True)
class AnalysisCard:
    """What the server knows of a model version without loading it."""

    package: str
    name: str
    version: int
    instrument_models: frozenset[str]
    max_batch: int


def find_analyses() -> list[AnalysisCard]:
    """The built-in model versions, found by their folders, by name and version.

    Each package names itself by the constants NAME, VERSIONS, INSTRUMENT_MODELS and MAX_BATCH, which cost no import
    of torch.
    """
    cards = []
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            package = importlib.import_module(f"{__name__}.{module.name}")
            cards += [
                AnalysisCard(package.__name__, package.NAME, version, package.INSTRUMENT_MODELS, package.MAX_BATCH)
                for version in package.VERSIONS
            ]
    return sorted(cards, key=lambda card: (card.name, card.version))


CourseStart = Callable[[int, int, float | None], int | None]
"""(version, measure_unix_nanos, longitude_deg): where the course begins; None where that version does not remember."""


def find_course_start(analysis: str) -> CourseStart | None:
    """How the versions of an analysis cut an instrument's time into courses; None where none of them remembers."""
    for card in find_analyses():
        if card.name == analysis:
            found: CourseStart | None = getattr(importlib.import_module(card.package), "course_start", None)
            return found
    return None


def load_analysis(name: str, version: int, content: bytes = b"") -> Analysis:
    """Loads a model version.

    Args:
        name: Of the analysis.
        version: One that it came with, or of these weights.
        content: The weights of a version that was trained at a network; empty where the analysis came with it.

    Raises:
        InvalidRequestError: There is none of that name and version, or the analysis cannot be trained.
    """
    for card in find_analyses():
        if card.name == name and (content or card.version == version):
            package = importlib.import_module(card.package)
            if content and not hasattr(package, "load_trained"):
                raise InvalidRequestError(
                    f"expected an analysis that can be trained, but {name} has no load_trained ({name}@{version})"
                )
            analysis: Analysis = package.load_trained(version, content) if content else package.load(version)
            return analysis
    known = ", ".join(f"{card.name}@{card.version}" for card in find_analyses())
    raise InvalidRequestError(f"expected one of {known}, but got {name}@{version}")
