"""The course of a simulated day: from the weather of two days to heights and aerosol at each time.

Knows no height grid and no optics. Everything is continuous in time, also over midnight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.weather import Waves, day_table

DAY_S = 86400.0
SUNRISE_HOUR, SUNSET_HOUR, COLLAPSE_HOUR = 5.5, 18.5, 18.0
GROWTH_WIDTH_H, COLLAPSE_WIDTH_H, NIGHT_AGE_H = 0.8, 0.25, 2.0
CUMULUS_HOURS = (10.5, 17.0)
CHANGE_OVER_HOUR = 15.0
"""From here on the residual layer is the one that today will leave; yesterday's has faded out over three hours."""
SUBSIDENCE_M_PER_H = 18.0
CLOUD_BASE_SHARE = 0.96
LOWEST_MIXING_M, THINNEST_TOP_M = 60.0, 20.0
WAVE_PERIODS_S = (420.0, 1500.0, 4000.0, 11000.0, 900.0, 7000.0, 1800.0, 2600.0, 3800.0, 5500.0)
"""Thermals, plumes at the top, waves on the stable layer, aerosol load, cumulus, gradient within the layer, strata."""


@dataclass(frozen=True, slots=True)
class State:
    """What the profiles are made of; each attribute is (times,) where nothing else is said, float64.

    Attributes:
        mixing_height_m: Depth of the layer in contact with the ground.
        residual_height_m: Top of the residual layer; never below mixing_height_m.
        cloud_base_m: Base of the cumulus overhead; NaN where there is none.
        top_width_m: Standard deviation of the erf-shaped top.
        mixed: Aerosol backscatter of the layer in contact with the ground, m-1 sr-1.
        residual: The same of the residual layer.
        free: The same at the bottom of the free troposphere.
        gradient: Relative increase of `mixed` from the ground to the top.
        lofted: The same at the centre of a lofted layer.
        lofted_height_m: Its centre.
        strata_phase: (strata, times): phases of the faint layers within the aerosol, radians.
    """

    mixing_height_m: NDArray[np.float64]
    residual_height_m: NDArray[np.float64]
    cloud_base_m: NDArray[np.float64]
    top_width_m: NDArray[np.float64]
    mixed: NDArray[np.float64]
    residual: NDArray[np.float64]
    free: NDArray[np.float64]
    gradient: NDArray[np.float64]
    lofted: NDArray[np.float64]
    lofted_height_m: NDArray[np.float64]
    strata_phase: NDArray[np.float64]


def course(seed: int, waves: Waves, unix_s: NDArray[np.float64]) -> State:
    """The state at these times.

    Args:
        seed: Which weather.
        waves: The fluctuations, made with WAVE_PERIODS_S.
        unix_s: (times,), seconds since 1970-01-01 UTC.
    """
    day = np.floor(unix_s / DAY_S).astype(np.int64)
    days = sorted({*day.tolist(), *(day - 1).tolist()})
    table = day_table(seed, tuple(days))
    place = np.searchsorted(days, day)  # the day before always stands one place before
    now = {name: values[place] for name, values in table.items()}
    before = {name: values[place - 1] for name, values in table.items()}
    hour = (unix_s / DAY_S - day) * 24
    thermal, plume, night_wave, load, cumulus, tilt, *strata = waves(unix_s)

    up = _logistic((hour - now["growth_hour"]) / GROWTH_WIDTH_H)
    down = _logistic((hour - COLLAPSE_HOUR) / COLLAPSE_WIDTH_H)
    mixing = up * (1 - down)
    evening_age, morning_age = _night_age(hour), _night_age(hour + 24)
    is_todays = hour >= CHANGE_OVER_HOUR

    stable_m = _change(before, now, "stable_depth_m", up) * (1 + 0.06 * night_wave)
    flutter = 1 + mixing * (0.025 * thermal + 0.03 * plume)
    uncollapsed_m = stable_m + np.maximum(now["maximum_height_m"] - stable_m, 0) * up
    mixing_height_m = np.maximum((stable_m + (uncollapsed_m - stable_m) * (1 - down)) * flutter, LOWEST_MIXING_M)
    sunk_m = SUBSIDENCE_M_PER_H * np.maximum(np.where(is_todays, hour, hour + 24) - SUNSET_HOUR, 0)
    residual_m = np.where(is_todays, uncollapsed_m * flutter, before["maximum_height_m"]) - sunk_m

    # the surface adds aerosol to the stable layer; the morning's growth thins it again
    excess = before["surface_excess"] * morning_age * (1 - up) + now["surface_excess"] * evening_age * down
    # at the collapse the residual layer still is the mixing layer's air; it thins while the night grows old
    kept_today = 1 - (1 - now["residual_share"]) * evening_age * down
    kept_before = 1 - (1 - before["residual_share"]) * morning_age
    left_today, left_before = now["mixed_backscatter"] * kept_today, before["mixed_backscatter"] * kept_before
    fading = np.clip((CHANGE_OVER_HOUR - hour) / 3, 0, 1)
    free = _change(before, now, "free_backscatter", np.clip((hour - 9) / 6, 0, 1))
    residual = np.where(is_todays, left_today, free + (left_before - free) * fading)

    has_cloud = cumulus > _cover_threshold(now["cloud_cover"], hour)
    passing = np.exp(-0.5 * ((hour - now["lofted_hour"]) / 1.0) ** 2)
    return State(
        mixing_height_m=mixing_height_m,
        residual_height_m=np.maximum(residual_m, mixing_height_m),
        cloud_base_m=np.where(has_cloud, CLOUD_BASE_SHARE * mixing_height_m, np.nan),
        top_width_m=np.maximum(now["entrainment_share"] * mixing_height_m, THINNEST_TOP_M),
        mixed=_change(before, now, "mixed_backscatter", up) * (1 + excess) * (1 + 0.12 * load),
        residual=residual * (1 + 0.12 * load),
        free=free,
        gradient=np.clip(0.1 + 0.1 * tilt, -0.1, 0.2) * mixing,
        lofted=now["lofted_backscatter"] * passing,
        lofted_height_m=now["lofted_height_m"],
        strata_phase=2 * np.array(strata),
    )


def is_cumulus_time(hour: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether cumulus may form at these hours of the day."""
    return (hour > CUMULUS_HOURS[0]) & (hour < CUMULUS_HOURS[1])


def _change(
    before: dict[str, NDArray[np.float64]], now: dict[str, NDArray[np.float64]], name: str, share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """From yesterday's number to today's."""
    return before[name] * (1 - share) + now[name] * share


def _night_age(hour: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the night's layers have grown apart, from 0 at the collapse to 1."""
    return 1 - np.exp(-np.maximum(hour - COLLAPSE_HOUR, 0) / NIGHT_AGE_H)


def _cover_threshold(cover: NDArray[np.float64], hour: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value that a standard wave exceeds for a share `cover` of the time; infinite outside cumulus hours.

    The normal quantile by its logistic approximation, good to 0.03 for covers between 0.1 and 0.9.
    """
    odds = np.log(np.maximum(1 - cover, 1e-3) / np.maximum(cover, 1e-3)) / 1.702
    return np.where(is_cumulus_time(hour) & (cover > 0), odds, np.inf)


def _logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
