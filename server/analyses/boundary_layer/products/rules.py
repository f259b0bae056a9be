"""The rules by which a ceilometer network says when an average of heights is valid, and why one is not. Pure.

They are those of the Unified Ceilometer Network (Hampton University with EPA; Caicedo et al. 2020, J. Atmos. Oceanic
Technol. 37, number 10): a retrieval that is hit by rain or cloud does not count; 10 minutes whose heights have a
standard deviation beyond 200 m have no value; a mean needs half of what it is made of, the 10-minute one of the
profiles, the hourly one of the valid 10-minute means. The spread is judged over 10 minutes alone: within an hour a
growing layer may rise by 500 m.

Knows no mean, no file, and no model version by number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from server.analyses.boundary_layer.classical.layers import FLAG_LOW
from server.analyses.boundary_layer.products.retrievals import CLOUD_BASE, MIXING_HEIGHT, Retrievals, Sky

TEN_MINUTES_S, HOUR_S, DAY_S = 600, 3600, 86_400
TEN_MINUTES_IN_HOUR = HOUR_S // TEN_MINUTES_S


class Reason(IntFlag):
    """Why a cell has no value: the bits of a mask; 0 where it has one."""

    INCOMPLETE = 1
    SPREAD = 2
    MISSING = 4
    RAIN = 8
    FOG = 16
    CLOUD = 32
    NO_LAYER = 64
    LOW_QUALITY = 128


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a cell valid; the defaults are the network's where it has a rule.

    Attributes:
        completeness_min: Share of the expected profiles, or of an hour's 10-minute cells, that has to count.
        spread_max_m: Largest standard deviation of the heights in 10 minutes. A cell of one profile has none.
        is_cloud_screened: Whether a profile under a cloud does not count. Cloud-topped layers are of interest, too.
        cloud_ceiling_m: A cloud with its base above this is not in the way: no layer is searched there.
        quality_min: Least quality flag of a mixing height that counts. The network has no such rule.
        error_correlation_s: Time in which the correlation of the errors of two profiles falls to 1/e. Measured on six
            simulated days of a CL51, version 1: 27 minutes, and 9 where the right layer was found; so the errors in
            a cell are nearly one and the same, and an average takes little away from them. On eight other days 93 %
            of the means lay in their 90 % interval; with errors taken as independent 67 %, and 49 % of the hourly.
        cadence_s: From one profile to the next; None: found in the instants.
    """

    completeness_min: float = 0.5
    spread_max_m: float = 200.0
    is_cloud_screened: bool = True
    cloud_ceiling_m: float = 4000.0
    quality_min: int = FLAG_LOW
    error_correlation_s: float = 1800.0
    cadence_s: float | None = None


def find_lost(found: Retrievals, name: str, rules: Rules) -> NDArray[np.int16]:
    """The one Reason why a profile does not count, (profiles,); 0 where it does."""
    base_m = found.heights_m.get(CLOUD_BASE, found.nothing)
    is_under_cloud = (base_m < rules.cloud_ceiling_m) | ((found.sky == Sky.CLOUD) & np.isnan(base_m))
    screens = [
        (found.sky == Sky.RAIN, Reason.RAIN),
        (found.sky == Sky.FOG, Reason.FOG),
        (is_under_cloud & (rules.is_cloud_screened and name != CLOUD_BASE), Reason.CLOUD),
        (np.isnan(found.heights_m[name]), Reason.NO_LAYER),
        ((found.quality < rules.quality_min) & (name == MIXING_HEIGHT), Reason.LOW_QUALITY),
    ]
    return np.select([screen for screen, _ in screens], [reason for _, reason in screens], 0).astype(np.int16)


def find_reasons(
    height_m: NDArray[np.float64],
    lost: NDArray[np.int16],
    ten_minutes: NDArray[np.int64],
    expected_count: NDArray[np.int32],
    rules: Rules,
) -> NDArray[np.int16]:
    """Why a cell of 10 minutes has no value, (cells,); 0 where it has one."""
    cell_count = len(expected_count)
    count = count_places(ten_minutes[lost == 0], cell_count)
    is_incomplete = (count < rules.completeness_min * expected_count) | (count == 0)
    reasons = np.where(is_incomplete, Reason.INCOMPLETE, 0)
    came_count = count_places(ten_minutes, cell_count)
    is_missing = (came_count < expected_count - 1) | (came_count == 0)  # one may have slipped into the next cell
    reasons |= np.where(is_incomplete & is_missing, Reason.MISSING, 0)
    reasons |= np.where(expected_count == 0, Reason.INCOMPLETE | Reason.MISSING, 0)
    for reason in (Reason.RAIN, Reason.FOG, Reason.CLOUD, Reason.NO_LAYER, Reason.LOW_QUALITY):
        reasons |= np.where(is_incomplete & (count_places(ten_minutes[lost == reason], cell_count) > 0), reason, 0)
    for cell, rows in each_cell(ten_minutes, lost == 0):
        if len(rows) > 1 and np.std(height_m[rows], ddof=1) > rules.spread_max_m:
            reasons[cell] |= Reason.SPREAD
    return reasons.astype(np.int16)


def find_hourly_reasons(reasons: NDArray[np.int16], cadence_s: NDArray[np.float64], rules: Rules) -> NDArray[np.int16]:
    """Why an hour has no value, (hours,): too few of its 10-minute cells have one, for the reasons that they tell."""
    six = reasons.reshape(-1, TEN_MINUTES_IN_HOUR)
    # an instrument slower than 10 minutes cannot fill them all
    possible_count = np.minimum(expected_counts(cadence_s, HOUR_S), TEN_MINUTES_IN_HOUR)
    valid_count = (six == 0).sum(axis=1)
    is_incomplete = (valid_count < rules.completeness_min * possible_count) | (valid_count == 0)
    return np.where(is_incomplete, np.bitwise_or.reduce(six, axis=1) | Reason.INCOMPLETE, 0).astype(np.int16)


def expected_counts(cadence_s: NDArray[np.float64], cell_s: int) -> NDArray[np.int32]:
    """Profiles of a cell without gaps, (cells,): one at least, however slow the instrument; 0 where nobody can tell."""
    a_cell = np.nan_to_num(np.maximum(np.rint(cell_s / cadence_s), 1))
    return np.repeat(a_cell.astype(np.int32), DAY_S // cell_s)


def count_places(places: NDArray[np.int64], cell_count: int) -> NDArray[np.int32]:
    """How many profiles each cell has, (cells,)."""
    return np.bincount(places, minlength=cell_count).astype(np.int32)


def each_cell(places: NDArray[np.int64], counts: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The cells in which a profile counts, with its rows; places ascend."""
    rows = np.flatnonzero(counts)
    cells, starts = np.unique(places[rows], return_index=True)
    yield from zip(cells.tolist(), np.split(rows, starts[1:]), strict=True) if len(rows) else ()
