"""Averages retrieved heights over cells of 10 minutes and of an hour. Pure.

An hour is the mean of its valid 10-minute means, so that ten minutes with few profiles weigh as much as others; which
profiles and cells are valid stands in product_rules.py. Knows no file, no server, and no model version by number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.analyses.boundary_layer.products.retrievals import MIXING_HEIGHT, Retrievals
from server.analyses.boundary_layer.products.rules import (
    DAY_S,
    HOUR_S,
    TEN_MINUTES_S,
    Reason,
    Rules,
    count_places,
    each_cell,
    expected_counts,
    find_hourly_reasons,
    find_lost,
    find_reasons,
)

NANOS = 1_000_000_000
IN_ANY_SKY = "_in_any_sky"
"""Suffix of the mixing height that no rule has touched."""
CADENCE_PERCENTILE = 10.0
CADENCE_TOLERANCE = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """One height over the cells; each column (cells,).

    Attributes:
        mean_m: float64; NaN where the cell has no value, as the next three.
        median_m: Of the profiles.
        standard_deviation_m: Of the profiles; NaN where fewer than two count.
        standard_error_m: Of the mean: what is left of the errors of the single heights when their correlation is
            allowed for. What the profiles that do not count would have told is not in it. Mixing height only.
        count: Profiles that count, int32.
        reasons: A Reason, int16.
    """

    mean_m: NDArray[np.float64]
    median_m: NDArray[np.float64]
    standard_deviation_m: NDArray[np.float64]
    standard_error_m: NDArray[np.float64]
    count: NDArray[np.int32]
    reasons: NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """All heights over the cells of some days.

    Attributes:
        cell_s: Length of a cell.
        start_unix_nanos: (cells,), int64.
        expected_count: (cells,), int32: profiles that a cell without gaps has; 0 where nobody can tell.
        heights: Cells by name; those of the mixing height, and the same IN_ANY_SKY without any rule, among them.
        is_provisional: (cells,): whether a profile in it will be predicted again.
        rules: What was asked for.
    """

    cell_s: int
    start_unix_nanos: NDArray[np.int64]
    expected_count: NDArray[np.int32]
    heights: dict[str, Cells]
    is_provisional: NDArray[np.bool_]
    rules: Rules


def average(found: Retrievals, first_unix_nanos: int, day_count: int, cell_s: int, rules: Rules) -> Product:
    """Averages what was found.

    Args:
        found: Of one instrument and model version; what lies outside the days is not looked at.
        first_unix_nanos: Where the first UTC day begins.
        day_count: How many.
        cell_s: TEN_MINUTES_S or HOUR_S.
        rules: What makes a cell valid.
    """
    end_unix_nanos = first_unix_nanos + day_count * DAY_S * NANOS
    found = found.take((found.unix_nanos >= first_unix_nanos) & (found.unix_nanos < end_unix_nanos))
    cadence_s = _cadences(found.unix_nanos, first_unix_nanos, day_count, rules.cadence_s)
    ten_minutes = (found.unix_nanos - first_unix_nanos) // (TEN_MINUTES_S * NANOS)
    places = (found.unix_nanos - first_unix_nanos) // (cell_s * NANOS)
    start_unix_nanos = first_unix_nanos + np.arange(day_count * DAY_S // cell_s, dtype=np.int64) * cell_s * NANOS
    heights = {}
    for name, height_m in found.heights_m.items():
        lost = find_lost(found, name, rules)
        reasons = find_reasons(height_m, lost, ten_minutes, expected_counts(cadence_s, TEN_MINUTES_S), rules)
        counts = lost == 0
        if cell_s == HOUR_S:
            counts &= (reasons == 0)[ten_minutes]
            reasons = find_hourly_reasons(reasons, cadence_s, rules)
        heights[name] = _summarise(found, name, counts, places, ten_minutes, reasons, rules)
    has_height = np.isfinite(found.heights_m[MIXING_HEIGHT])
    nothing = np.where(count_places(places[has_height], len(start_unix_nanos)) > 0, 0, Reason.NO_LAYER).astype(np.int16)
    heights[MIXING_HEIGHT + IN_ANY_SKY] = _summarise(found, MIXING_HEIGHT, has_height, places, places, nothing, rules)
    return Product(
        cell_s=cell_s,
        start_unix_nanos=start_unix_nanos,
        expected_count=expected_counts(cadence_s, cell_s),
        heights=heights,
        is_provisional=count_places(places[found.is_provisional], len(start_unix_nanos)) > 0,
        rules=rules,
    )


def find_cadence_s(unix_nanos: NDArray[np.int64]) -> float:
    """The time from one profile to the next when nothing is missing; NaN where fewer than two tell it.

    The median of the short steps, those near the tenth percentile: neither gaps, even of most profiles, nor jitter
    nor two profiles at almost the same time move it.

    Args:
        unix_nanos: (profiles,), ascending.
    """
    steps_s = np.diff(unix_nanos) / NANOS
    if not len(steps_s):
        return float("nan")
    shortest_s = float(np.percentile(steps_s, CADENCE_PERCENTILE, method="lower"))  # one that there is
    return float(np.median(steps_s[(steps_s >= shortest_s) & (steps_s <= CADENCE_TOLERANCE * shortest_s)]))


def _cadences(
    unix_nanos: NDArray[np.int64], first_unix_nanos: int, day_count: int, cadence_s: float | None
) -> NDArray[np.float64]:
    """(days,): of each UTC day by itself, so that an instrument may be set anew."""
    if cadence_s is not None:
        return np.full(day_count, cadence_s)
    edges = first_unix_nanos + np.arange(1, day_count, dtype=np.int64) * DAY_S * NANOS
    return np.array([find_cadence_s(day) for day in np.split(unix_nanos, np.searchsorted(unix_nanos, edges))])


def _summarise(
    found: Retrievals,
    name: str,
    counts: NDArray[np.bool_],
    places: NDArray[np.int64],
    groups: NDArray[np.int64],
    reasons: NDArray[np.int16],
    rules: Rules,
) -> Cells:
    """The statistics of each cell.

    Args:
        found: The profiles.
        name: The height.
        counts: (profiles,): which ones count.
        places: (profiles,): the cell of each.
        groups: (profiles,): those of one group share one weight in the mean: an hour's is that of 10-minute means.
        reasons: (cells,): why there is no value.
        rules: What was asked for.
    """
    mean_m, median_m, deviation_m, error_m = np.full((4, len(reasons)), np.nan)
    for cell, rows in each_cell(places, counts):
        if reasons[cell] == 0:
            height_m = found.heights_m[name][rows]
            weight = _weights(groups[rows])
            mean_m[cell] = weight @ height_m
            median_m[cell] = np.median(height_m)
            if len(rows) > 1:
                deviation_m[cell] = np.std(height_m, ddof=1)
            if name == MIXING_HEIGHT:
                single_error_m = found.standard_error_m[rows]
                error_m[cell] = _error_of_mean(found.unix_nanos[rows], single_error_m, weight, rules)
    count = count_places(places[counts], len(reasons))
    return Cells(mean_m, median_m, deviation_m, error_m, count, reasons)


def _weights(groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each group weighs the same, however many it has, and all together 1; (profiles,)."""
    _, group, count = np.unique(groups, return_inverse=True, return_counts=True)
    weight: NDArray[np.float64] = 1 / (len(count) * count[group])
    return weight


def _error_of_mean(
    unix_nanos: NDArray[np.int64], error_m: NDArray[np.float64], weight: NDArray[np.float64], rules: Rules
) -> float:
    """The standard error of a weighted mean of heights whose errors are correlated as exp(-distance / time).

    A profile whose own error is not known is taken to have that of the others; NaN where none is known. What all the
    earlier profiles have in common with one fades from profile to profile, so that no two need to be compared: a table
    of all pairs would not fit into memory for an instrument that measures many times a second.

    Args:
        unix_nanos: (profiles,), ascending.
        error_m: (profiles,).
        weight: (profiles,).
        rules: Say the time.
    """
    is_known = np.isfinite(error_m)
    if not is_known.any():
        return float("nan")
    error_m = np.where(is_known, error_m, np.sqrt(np.mean(error_m[is_known] ** 2))) * weight
    unix_s = (unix_nanos - unix_nanos[0]) / NANOS
    fading = np.exp(-np.diff(unix_s, prepend=0.0) / rules.error_correlation_s)
    variance_m2 = earlier_m = 0.0
    for own_m, fade in zip(error_m.tolist(), fading.tolist(), strict=True):
        earlier_m *= fade
        variance_m2 += own_m * (own_m + 2 * earlier_m)
        earlier_m += own_m
    return math.sqrt(variance_m2)
