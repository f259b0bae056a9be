"""Analyses: questions asked of observations. Each is one folder here; nobody else knows one of them by name.

A folder `server/analyses/<name>/` is an analysis when its package has a function

    def load(version: int) -> Analysis: ...

and a tuple VERSIONS of the versions that it can load. Loading happens in the worker process, and there alone: the
server itself never imports torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
    """

    payload: bytes
    instrument_model: str
    measure_unix_nanos: int
    calibration: float | None = None


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


def load_analysis(name: str, version: int) -> Analysis:
    """Loads a model version.

    Raises:
        InvalidRequestError: There is none of that name and version.
    """
    for card in find_analyses():
        if (card.name, card.version) == (name, version):
            package = importlib.import_module(card.package)
            analysis: Analysis = package.load(version)
            return analysis
    known = ", ".join(f"{card.name}@{card.version}" for card in find_analyses())
    raise InvalidRequestError(f"expected one of {known}, but got {name}@{version}")
