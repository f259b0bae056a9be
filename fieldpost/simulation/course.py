"""The course of the layers through day and night: from the numbers of two days to heights and aerosol at each time.

Knows no clouds, no height grid and no optics. Everything is continuous in time, also over midnight and from one day's
weather to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.days import Table, ramp

NIGHT_AGE_H = 2.0
HUMIDITY_FADES_H = 6.0
RESIDUAL_FADES_FROM_H = 11.5
DEPTH_CHANGE, LOAD_CHANGE = 0.03, 0.12
"""Standard deviation of slow changes: of the layer's depth, of its aerosol."""
LOWEST_MIXING_M, THINNEST_TOP_M, THINNEST_NIGHT_TOP_M = 40.0, 20.0, 10.0
STARTING_DEPTH = 0.4
"""Depth of the new stable layer as a share of what it has in the morning; it grows with the square root of time
(Stull 1988, section 12.2)."""
OLD_LID_UNTIL = 0.35
SEEN_AS_RESIDUAL_M, SEEN_CONTRAST = 50.0, 0.15
WAVE_PERIODS_S = (75.0, 130.0, 700.0, 1300.0, 2400.0, 5000.0, 11000.0, 14000.0, 9000.0)
"""Fast thermals twice, thermals twice, waves on the stable layer twice, aerosol load, humidity, depth of the layer."""
REGIMES = ("night", "growth", "mature", "decay")
NIGHT, GROWTH, MATURE, DECAY = range(4)
MATURE_FROM = 0.9
"""Share of the growth from which on the layer is mature."""
GROWN_APART = 0.4
"""Until the air on both sides of the new top has grown apart by this share, about an hour, decay goes on."""


@dataclass(frozen=True, slots=True)
class State:
    """What the profiles are made of; each attribute is (times,), float64.

    Attributes:
        hour: Of mean solar time.
        mixing_height_m: Depth of the layer in contact with the ground, over some minutes: the truth.
        seen_height_m: The same with the thermals that pass within a minute or two: where the profile has the top.
        residual_height_m: Top of the residual layer; it may lie below mixing_height_m, and is nothing then.
        top_width_m, residual_width_m: Standard deviation of the erf-shaped tops.
        mixed: Aerosol backscatter of the layer in contact with the ground, m-1 sr-1.
        residual: The same of the residual layer.
        free: The same at the bottom of the free troposphere.
        humidity_gain, humidity_curvature: The backscatter grows by curvature x z², up to this gain.
        second_height_m, second: A second step of the stable layer; its backscatter.
        residual_step_height_m, residual_step: A step within the residual layer; relative change above it.
        activity: Convective turbulence, 0 by night to 1.
        plume_share, strata_share: Standard deviation of the fluctuations of the aerosol, as a share.
        lid_m: Top of the air that has been mixed last: where stratocumulus lies, also by night.
        growth: Share of the day's growth that is done.
        regime: Index into REGIMES.
    """

    hour: NDArray[np.float64]
    mixing_height_m: NDArray[np.float64]
    seen_height_m: NDArray[np.float64]
    residual_height_m: NDArray[np.float64]
    top_width_m: NDArray[np.float64]
    residual_width_m: NDArray[np.float64]
    mixed: NDArray[np.float64]
    residual: NDArray[np.float64]
    free: NDArray[np.float64]
    humidity_gain: NDArray[np.float64]
    humidity_curvature: NDArray[np.float64]
    second_height_m: NDArray[np.float64]
    second: NDArray[np.float64]
    residual_step_height_m: NDArray[np.float64]
    residual_step: NDArray[np.float64]
    activity: NDArray[np.float64]
    plume_share: NDArray[np.float64]
    strata_share: NDArray[np.float64]
    lid_m: NDArray[np.float64]
    growth: NDArray[np.float64]
    regime: NDArray[np.float64]

    def rows(self, which: slice) -> State:
        """The state at some of the times."""
        return State(*(getattr(self, field.name)[which] for field in fields(self)))

    def has_residual(self) -> NDArray[np.bool_]:
        """Whether there is a residual layer that differs from the air above it."""
        is_higher = self.residual_height_m > self.mixing_height_m + SEEN_AS_RESIDUAL_M
        return is_higher & (self.residual - self.free > SEEN_CONTRAST * self.residual)


def course(
    hour: NDArray[np.float64],
    now: Table,
    before: Table,
    waves: NDArray[np.float64],
    kept_now: NDArray[np.float64],
    kept_before: NDArray[np.float64],
) -> State:
    """The state at these times.

    Args:
        hour: (times,), of mean solar time.
        now: The numbers of the day of each time.
        before: Those of the day before.
        waves: (9, times), made with WAVE_PERIODS_S.
        kept_now, kept_before: (times,): share of each day's aerosol that rain has left.
    """
    moment = _moment(hour, now, before)
    heights, reference_m = _heights(moment, waves)
    air = _air(moment, waves, kept_now, np.where(moment.is_evening, kept_now, kept_before), reference_m)
    return State(
        hour=hour,
        activity=moment.active_now + moment.active_before,
        growth=moment.growth,
        regime=_regime(moment),
        **heights,
        **air,
    )


@dataclass(frozen=True, slots=True)
class _Moment:
    """Where in the day and in the night each time lies; each (times,).

    Attributes:
        hour, now, before: As given to course.
        night: The numbers of the night's day: from the collapse on today's, until then those of the day before.
        is_evening: Whether today's collapse has started.
        since_start_h: Time since the night's collapse started.
        night_share: How much of the time to sunrise has passed since then.
        age: How far the night's layers have grown apart, from 0 in the middle of the collapse to 1.
        growth, fall: Shares of today's growth and collapse that are done.
        fading: What is left of the residual layer: what the mixing layer does not reach is gone by the evening.
        active_now, active_before: Turbulence of today and what is left of yesterday's.
    """

    hour: NDArray[np.float64]
    now: Table
    before: Table
    night: Table
    is_evening: NDArray[np.bool_]
    since_start_h: NDArray[np.float64]
    night_share: NDArray[np.float64]
    age: NDArray[np.float64]
    growth: NDArray[np.float64]
    fall: NDArray[np.float64]
    fading: NDArray[np.float64]
    active_now: NDArray[np.float64]
    active_before: NDArray[np.float64]


def _moment(hour: NDArray[np.float64], now: Table, before: Table) -> _Moment:
    growth = ramp(hour, now["onset_h"], now["break_h"]) * 0.12
    growth += ramp(hour, now["break_h"] - 0.1, now["risen_h"]) * 0.68
    growth += ramp(hour, now["risen_h"] - 0.2 * (now["risen_h"] - now["break_h"]), now["settled_h"]) * 0.2
    is_evening = hour >= now["collapse_start_h"]
    night = {name: np.where(is_evening, now[name], before[name]) for name in now}
    night_hour = np.where(is_evening, hour, hour + 24)
    since_start_h = night_hour - night["collapse_start_h"]
    since_collapse_h = night_hour - (night["collapse_start_h"] + night["collapse_end_h"]) / 2
    length_h = 24 + night["sunrise_h"] - night["collapse_end_h"]
    return _Moment(
        hour=hour,
        now=now,
        before=before,
        night=night,
        is_evening=is_evening,
        since_start_h=since_start_h,
        night_share=np.clip(since_start_h / length_h, 0, 1),
        age=1 - np.exp(-np.maximum(since_collapse_h, 0) / NIGHT_AGE_H),
        growth=growth,
        fall=ramp(hour, now["collapse_start_h"], now["collapse_end_h"]),
        fading=np.where(is_evening, 1, 1 - ramp(hour, RESIDUAL_FADES_FROM_H, now["collapse_start_h"])),
        active_now=_activity(hour, now),
        active_before=_activity(hour + 24, before),
    )


def _heights(at: _Moment, waves: NDArray[np.float64]) -> tuple[Table, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Heights and widths, by their names in State; and the tops of the night's and today's layer without thermals."""
    fast, faster, thermal, plume, night_wave, longer_wave, _, _, depth = waves
    now, night = at.now, at.night
    stable_m = night["stable_depth_m"] * (STARTING_DEPTH + (1 - STARTING_DEPTH) * np.sqrt(at.night_share))
    calm = 1 - (at.active_now + at.active_before)
    stable_m *= 1 + night["night_wave_share"] * (0.8 * night_wave + 0.6 * longer_wave) * calm
    maximum_m = now["maximum_height_m"] * (1 + DEPTH_CHANGE * depth)
    grown_m = stable_m + np.maximum(maximum_m - stable_m, 0) * at.growth
    uncollapsed_m = np.where(at.is_evening, maximum_m, grown_m)
    level_m = np.where(at.is_evening, maximum_m + (stable_m - maximum_m) * at.fall, uncollapsed_m)
    stir = now["thermal_share"] * at.active_now + at.before["thermal_share"] * at.active_before
    flutter = 1 + stir * (0.4 * thermal + 0.5 * plume)
    quick = 1 + stir * (0.4 * fast + 0.5 * faster)
    mixing_height_m = np.maximum(level_m * flutter, LOWEST_MIXING_M)

    sunk = np.exp(-night["sinking_m_per_h"] * np.maximum(at.since_start_h, 0) / night["maximum_height_m"])
    full_m = night["maximum_height_m"] * (1 + DEPTH_CHANGE * depth)
    top_m = full_m * sunk
    day_width_m = np.maximum(now["entrainment_share"] * uncollapsed_m, THINNEST_TOP_M)
    night_width_m = np.maximum(night["stable_top_share"] * stable_m, THINNEST_NIGHT_TOP_M)
    day_share = np.where(at.is_evening, 1 - at.fall, at.growth)
    # cloud decks lie on what is left of the residual layer until little is; then new ones form at the mixing layer
    has_old_lid = at.is_evening | ((top_m > uncollapsed_m) & (at.fading > OLD_LID_UNTIL))
    heights = {
        "mixing_height_m": mixing_height_m,
        "seen_height_m": np.maximum(mixing_height_m * quick, LOWEST_MIXING_M),
        "residual_height_m": np.where(at.is_evening, top_m * flutter * quick, top_m),
        "top_width_m": day_width_m * day_share + night_width_m * (1 - day_share),
        "residual_width_m": np.maximum(night["entrainment_share"] * full_m, THINNEST_TOP_M),
        "second_height_m": night["second_step_ratio"] * stable_m,
        "residual_step_height_m": night["residual_step_ratio"] * top_m,
        "lid_m": np.where(has_old_lid, top_m, uncollapsed_m),
    }
    return heights, (top_m, uncollapsed_m)


def _air(
    at: _Moment,
    waves: NDArray[np.float64],
    kept_now: NDArray[np.float64],
    kept_night: NDArray[np.float64],
    tops_m: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Table:
    """Aerosol, humidity and fluctuations, by their names in State."""
    load, tilt = waves[6], waves[7]
    now, before, night = at.now, at.before, at.night
    night_air = night["mixed_backscatter"] * kept_night
    change = np.log(now["free_backscatter"] / before["free_backscatter"])
    free = before["free_backscatter"] * np.exp(change * ramp(at.hour, now["onset_h"], now["collapse_start_h"]))
    # at the collapse the residual layer still is the mixing layer's air; it thins while the night grows old
    left = np.maximum(night_air * (1 - (1 - night["residual_share"]) * at.age), free)
    # the surface adds aerosol to the stable layer; the morning's growth thins it again
    excess = night["surface_excess"] * at.age
    surface = night_air * (1 + excess)
    grown = surface + (now["mixed_backscatter"] * kept_now - surface) * at.growth
    evening_gain = night["humidity_gain"] * (1 - ramp(at.since_start_h, 0.0, HUMIDITY_FADES_H))
    morning_gain = np.where(at.is_evening, 0, now["humidity_gain"] * at.growth)
    moist = 1 + 0.3 * tilt
    return {
        "mixed": np.where(at.is_evening, surface, grown) * (1 + LOAD_CHANGE * load),
        "residual": (free + (left - free) * at.fading) * (1 + LOAD_CHANGE * load),
        "free": free,
        "humidity_gain": (evening_gain + morning_gain) * moist,
        "humidity_curvature": (evening_gain / np.square(tops_m[0]) + morning_gain / np.square(tops_m[1])) * moist,
        "second": night_air * excess * night["second_step"] * np.where(at.is_evening, 1, 1 - at.growth),
        "residual_step": night["residual_step"] * at.age,
        "plume_share": now["plume_share"] * at.active_now + before["plume_share"] * at.active_before,
        "strata_share": before["strata_share"] + (now["strata_share"] - before["strata_share"]) * at.growth,
    }


def _activity(hour: NDArray[np.float64], day: Table) -> NDArray[np.float64]:
    """Convective turbulence of one day: it comes with the growth, and dies away when the surface heating ends."""
    after_h = np.maximum(hour - day["collapse_start_h"], 0)
    return ramp(hour, day["onset_h"], day["break_h"]) * np.exp(-after_h / day["heating_decay_h"])


def _regime(at: _Moment) -> NDArray[np.float64]:
    by_day = np.where(at.growth >= MATURE_FROM, MATURE, np.where(at.growth > 0, GROWTH, NIGHT))
    by_night = np.where((at.fall < 1) | (at.age < GROWN_APART), DECAY, NIGHT)
    return np.where(at.is_evening, by_night, by_day).astype(np.float64)
