"""Puts the results of many observations into columns over time. Knows no retrieval and no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.analyses import AnalysisResult

HEIGHT = "atmosphere_boundary_layer_thickness"
LOWER, UPPER = f"{HEIGHT}_lower", f"{HEIGHT}_upper"
STANDARD_ERROR = f"{HEIGHT}_standard_error"
RESIDUAL_LAYER, CLOUD_BASE, SKY, QUALITY = (
    "residual_layer_height",
    "cloud_base_height",
    "sky_condition",
    "quality_flag",
)


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of all results of one model version, in order of time.

    Attributes:
        unix_nanos: (samples,), int64.
        columns: By variable, (samples,), float32; NaN where missing.
        meanings: By variable whose values are numbers of classes, what 0, 1, 2 and so on mean.
    """

    unix_nanos: NDArray[np.int64]
    columns: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    meanings: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.unix_nanos)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """A variable; NaN throughout where this version does not give it."""
        return self.columns.get(name, np.full(len(self), np.nan, np.float32))

    def gives(self, name: str) -> bool:
        """Whether the variable has a value anywhere."""
        return bool(np.isfinite(self[name]).any())

    def is_class(self, name: str, meaning: str) -> NDArray[np.bool_]:
        """Where a variable has the number of this class: (samples,)."""
        meanings = self.meanings.get(name, ())
        number = meanings.index(meaning) if meaning in meanings else -1
        is_class: NDArray[np.bool_] = self[name] == number
        return is_class


def collect(results: Sequence[AnalysisResult | None]) -> Samples:
    """The samples of results in any order; None where there is none."""
    kept = [result for result in results if result is not None]
    if not kept:
        return Samples(np.empty(0, np.int64))
    nanos = np.concatenate([result.sample_unix_nanos for result in kept])
    order = np.argsort(nanos, kind="stable")
    named = [{variable.name: variable for variable in result.variables} for result in kept]
    columns, meanings = {}, {}
    for name in dict.fromkeys(name for variables in named for name in variables):
        parts = [
            variables[name].values if name in variables else np.full(len(result.sample_unix_nanos), np.nan)
            for variables, result in zip(named, kept, strict=True)
        ]
        columns[name] = np.concatenate(parts).astype(np.float32)[order]
        meanings[name] = next(variables[name].flag_meanings for variables in named if name in variables)
    return Samples(nanos[order], columns, meanings)
