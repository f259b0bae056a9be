"""What the layers of each simulated day are like: draws its numbers from the ranges of a climate, the sun given.

Knows no profiles and no clouds. The same numbers come for the same (seed, site, day), in whatever order days are
asked for. A day runs from midnight to midnight of mean solar time; its hours may pass 24 or fall below 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fieldpost.simulation.climate import Climate, Range
from fieldpost.sun import DAY_S, solar_elevation_deg

SECONDS_PER_DEGREE = 240.0
SHORTEST_HALF_DAY_H, LONGEST_HALF_DAY_H = 2.2, 10.0
"""Near the polar circles the layer's day is kept within these, from sunrise to noon."""
HIGH_SUN = 0.9
"""Sine of the noon elevation from which on the season takes nothing away."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where the instrument stands.

    Attributes:
        latitude_deg: North is positive.
        longitude_deg: East is positive.
        backscatter_median: Of the mixing layer's aerosol, m-1 sr-1: clean and hazy places.
    """

    latitude_deg: float
    longitude_deg: float
    backscatter_median: float


@dataclass(frozen=True, slots=True)
class LayerDay:
    """The numbers of one day's layers; hours are mean solar time, shares as in Climate.

    Attributes:
        sunrise_h, sunset_h: When the sun passes the horizon.
        maximum_height_m: Afternoon height of the mixing layer.
        onset_h, break_h, risen_h, settled_h: When growth begins, when the stable layer is eroded, when the fast growth
            ends, when all growth ends.
        collapse_start_h, collapse_end_h: The evening collapse; the surface heating ends when it starts.
        heating_decay_h: In what time turbulence falls to 1/e then.
        stable_depth_m: Depth of the stable layer at the end of the night that begins on this day.
        stable_top_share, entrainment_share: Standard deviation of the tops, as shares of the height.
        second_step_ratio, second_step: Height of a second step over that of the stable layer; its share of the excess.
        surface_excess: What the surface has added to the stable layer by the end of the night, as a share of
            mixed_backscatter.
        residual_share: What is left of the mixing layer's aerosol in the residual layer by then.
        residual_step_ratio, residual_step: Height of a step in the residual layer over its top; relative change there.
        sinking_m_per_h: Subsidence.
        thermal_share, night_wave_share, plume_share, strata_share: Strengths of the fluctuations.
        mixed_backscatter, free_backscatter: Aerosol backscatter of the mixing layer and at the bottom of the free
            troposphere, m-1 sr-1.
        humidity_gain: Relative increase from the ground to the top by day.
    """

    sunrise_h: float
    sunset_h: float
    maximum_height_m: float
    onset_h: float
    break_h: float
    risen_h: float
    settled_h: float
    collapse_start_h: float
    collapse_end_h: float
    heating_decay_h: float
    stable_depth_m: float
    stable_top_share: float
    entrainment_share: float
    second_step_ratio: float
    second_step: float
    surface_excess: float
    residual_share: float
    residual_step_ratio: float
    residual_step: float
    sinking_m_per_h: float
    thermal_share: float
    night_wave_share: float
    plume_share: float
    strata_share: float
    mixed_backscatter: float
    free_backscatter: float
    humidity_gain: float


def draw_site(seed: int, climate: Climate) -> Site:
    """Draws a site."""
    random = np.random.default_rng([seed, 2])
    latitude = random.uniform(*climate.latitude_deg) * (-1 if random.random() < climate.southern_share else 1)
    return Site(latitude, random.uniform(*climate.longitude_deg), log_uniform(random, climate.mixed_backscatter))


def draw_layers(seed: int, climate: Climate, site: Site, day: int) -> LayerDay:
    """Draws the layers of a day; day counts from 1970-01-01 and may be negative."""
    random = np.random.default_rng([seed, 3, day + 1_000_000])
    sunrise_h, sunset_h, _ = sun_of_day(site, day)
    half_day_h = (sunset_h - sunrise_h) / 2
    collapse_h = sunset_h + random.uniform(*climate.collapse_h)
    width_h = random.uniform(*climate.collapse_width_h)
    collapse_start_h = max(collapse_h - 2 * width_h, sunrise_h + 0.75 * half_day_h)
    lengths = [random.uniform(*r) for r in (climate.onset, climate.erosion, climate.rise, climate.settling)]
    # a short day leaves no time for slow growth: all of it is over before the collapse starts
    hours_a_share = min(half_day_h, (collapse_start_h - 0.2 - sunrise_h) / sum(lengths))
    onset_h, break_h, risen_h, settled_h = sunrise_h + hours_a_share * np.cumsum(lengths)
    maximum_m = maximum_height_m(seed, climate, site, day)
    deepest_m = 0.7 * min(maximum_m, maximum_height_m(seed, climate, site, day + 1))
    load = _persistent_normal(seed, day, 4)
    has_second = random.random() < climate.second_step_share
    has_step = random.random() < climate.residual_step_share
    return LayerDay(
        sunrise_h=sunrise_h,
        sunset_h=sunset_h,
        maximum_height_m=maximum_m,
        onset_h=onset_h,
        break_h=break_h,
        risen_h=risen_h,
        settled_h=settled_h,
        collapse_start_h=collapse_start_h,
        collapse_end_h=collapse_start_h + 4 * width_h,
        heating_decay_h=random.uniform(*climate.heating_decay_h),
        stable_depth_m=min(random.uniform(*climate.stable_depth_m), deepest_m),
        stable_top_share=random.uniform(*climate.stable_top_share),
        entrainment_share=random.uniform(*climate.entrainment_share),
        second_step_ratio=random.uniform(0.35, 2.2),
        second_step=random.uniform(0.15, 0.5) * has_second,
        surface_excess=random.uniform(*climate.surface_excess),
        residual_share=random.uniform(*climate.residual_share),
        residual_step_ratio=random.uniform(0.35, 0.85),
        residual_step=random.uniform(-0.4, 0.3) * has_step,
        sinking_m_per_h=random.uniform(*climate.sinking_m_per_h),
        thermal_share=random.uniform(*climate.thermal_share),
        night_wave_share=random.uniform(*climate.night_wave_share),
        plume_share=random.uniform(*climate.plume_share),
        strata_share=random.uniform(*climate.strata_share),
        mixed_backscatter=site.backscatter_median * math.exp(climate.mixed_log_spread * load),
        free_backscatter=log_uniform(random, climate.free_backscatter),
        humidity_gain=random.uniform(*climate.humidity_gain),
    )


def maximum_height_m(seed: int, climate: Climate, site: Site, day: int) -> float:
    """Afternoon height of the mixing layer on a day: a draw, less what the season takes, or of a rarer kind of day."""
    random = np.random.default_rng([seed, 5, day + 1_000_000])
    kind, place = random.random(2)
    if kind < climate.weak_share:
        return _between(climate.weak_height_m, place)
    if kind > 1 - climate.deep_share:
        return _between(climate.deep_height_m, place)
    sun = min(max(sun_of_day(site, day)[2], 0.0) / HIGH_SUN, 1.0)
    quantile = 0.5 * (1 + math.erf(_persistent_normal(seed, day, 6) / math.sqrt(2)))
    height_m = _between(climate.maximum_height_m, quantile) * (1 - climate.season_loss * (1 - sun))
    return max(height_m, climate.maximum_height_m[0])


def sun_of_day(site: Site, day: int) -> tuple[float, float, float]:
    """Sunrise and sunset in hours of mean solar time, and the sine of the noon elevation.

    The sun of fieldpost.sun, which leaves refraction out; the length of the day is kept within the limits above.
    """
    hours = np.arange(0, 24.01, 0.1)
    start_s = day * DAY_S - site.longitude_deg * SECONDS_PER_DEGREE
    elevation = solar_elevation_deg(start_s + 3600 * hours, site.latitude_deg, site.longitude_deg)
    noon = int(np.argmax(elevation))
    rising, setting = elevation[noon::-1], elevation[noon:]
    before_noon_h = _hours_until_below(rising)
    after_noon_h = _hours_until_below(setting)
    half_day_h = min(max((before_noon_h + after_noon_h) / 2, SHORTEST_HALF_DAY_H), LONGEST_HALF_DAY_H)
    noon_h = float(hours[noon]) + (after_noon_h - before_noon_h) / 2
    noon_h = min(max(noon_h, 11.6), 12.4)  # the equation of time, which a sun that never sets does not give
    return noon_h - half_day_h, noon_h + half_day_h, float(np.sin(np.radians(elevation[noon])))


def log_uniform(random: np.random.Generator, limits: Range) -> float:
    """A number drawn evenly in the logarithm."""
    return float(np.exp(random.uniform(math.log(limits[0]), math.log(limits[1]))))


def _hours_until_below(elevation: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """How long an elevation that falls every 0.1 h stays above 0; 24 where it never falls below."""
    below = np.flatnonzero(elevation < 0)
    if not len(below):
        return 24.0
    index = int(below[0])
    if index == 0:
        return 0.0
    above, under = float(elevation[index - 1]), float(elevation[index])
    return 0.1 * (index - 1 + above / (above - under))


def _persistent_normal(seed: int, day: int, stream: int) -> float:
    """A standard normal number whose correlation with those of the neighbouring days is 0.5: weather persists."""
    today, yesterday = (np.random.default_rng([seed, stream, d + 1_000_000]).standard_normal() for d in (day, day - 1))
    return (today + yesterday) / math.sqrt(2)


def _between(limits: Range, place: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * place
