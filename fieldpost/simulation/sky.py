"""What is overhead at each time: clouds, rain, fog and lofted layers, from the numbers of two days.

Knows no height grid and no optics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.course import DECAY, State
from fieldpost.simulation.days import Table, ramp

SKIES = ("clear", "cloud", "rain", "fog")
CLEAR, CLOUD, RAIN, FOG = range(4)
RAIN_SEEN, FOG_SEEN = 1.5e-6, 1.5e-5
"""Backscatter at the ground from which on it rains and is foggy, m-1 sr-1. In the real files fog has 1e-4 and more,
clear air 5e-7 or less."""
CLOUD_BACKSCATTER = 1e-3
"""Median, within water clouds, m-1 sr-1: extinction of 19 per km. Attenuated that makes a peak of 4e-4 and nothing a
hundred metres later; the real files have peaks of 2e-4 to 4.3e-4 and fall as fast."""
RECOVERY_H = 15.0
"""How long the aerosol takes to come back after rain."""
WAVE_PERIODS_S = (900.0, 5000.0, 1500.0, 2500.0, 700.0, 240.0, 1800.0)
"""Cumulus, gaps in decks, mid-level clouds, cloud strength, showers, cloud base, fog."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of one kind; each (times,), float64; backscatter 0 where there is none.

    Attributes:
        base_m, top_m: Where they begin and end.
        backscatter: m-1 sr-1, before anything is extinguished.
    """

    base_m: NDArray[np.float64]
    top_m: NDArray[np.float64]
    backscatter: NDArray[np.float64]

    def rows(self, which: slice) -> Layers:
        """The layers at some of the times."""
        return Layers(self.base_m[which], self.top_m[which], self.backscatter[which])


@dataclass(frozen=True, slots=True)
class Sky:
    """What is overhead at each time.

    Attributes:
        low: Cumulus, stratocumulus, stratus, and the cloud that rain falls from.
        middle: Mid-level clouds.
        cirrus: Faint; base and top are its half-value heights.
        rain: From where it has evaporated (or the ground) up to the base of its cloud.
        fog: From the ground.
        lofted: Two lofted aerosol layers.
        cloud_base_m: (times,): the lowest base of low and mid-level clouds; NaN where there is none, and in fog.
        sky: (times,), int8: index into SKIES.
    """

    low: Layers
    middle: Layers
    cirrus: Layers
    rain: Layers
    fog: Layers
    lofted: tuple[Layers, Layers]
    cloud_base_m: NDArray[np.float64]
    sky: NDArray[np.int8]

    def rows(self, which: slice) -> Sky:
        """The sky at some of the times."""
        return Sky(
            low=self.low.rows(which),
            middle=self.middle.rows(which),
            cirrus=self.cirrus.rows(which),
            rain=self.rain.rows(which),
            fog=self.fog.rows(which),
            lofted=(self.lofted[0].rows(which), self.lofted[1].rows(which)),
            cloud_base_m=self.cloud_base_m[which],
            sky=self.sky[which],
        )


def kept_after_rain(hour: NDArray[np.float64], day: Table) -> NDArray[np.float64]:
    """Share of the aerosol that the rain of one day has left, at hours of that day or the next: (times,)."""
    start_h, end_h = day["rain_start_h"], day["rain_end_h"]
    reaches = (end_h > start_h) & (day["rain_bottom_m"] == 0)
    washed = ramp(hour, start_h, end_h) * (1 - ramp(hour, end_h + 1, np.minimum(end_h + 1 + RECOVERY_H, 48)))
    return np.where(reaches, 1 - day["washout"] * washed, 1.0)


def overhead(hour: NDArray[np.float64], now: Table, before: Table, state: State, waves: NDArray[np.float64]) -> Sky:
    """The sky at these times.

    Args:
        hour: (times,), of mean solar time.
        now: The numbers of the day of each time, names of SkyDay.
        before: Those of the day before.
        state: The layers at the same times.
        waves: (7, times), made with WAVE_PERIODS_S.
    """
    cumulus, gap, broken, strength, shower, ripple, patch = waves
    rain = _rain(hour, now, before, 0.8 * shower + 0.6 * gap)
    fog_presence, fog_day = _event(hour, now, before, "fog", 0.5)
    fog = Layers(
        np.zeros_like(hour),
        fog_day["fog_depth_m"] * (0.3 + 0.7 * fog_presence) * (1 + 0.15 * patch),
        fog_day["fog_backscatter"] * fog_presence * np.exp(0.3 * patch),
    )
    is_foggy = fog.backscatter > FOG_SEEN
    is_raining = (rain.backscatter > RAIN_SEEN) & (rain.base_m <= 0) & ~is_foggy
    low = _low_cloud(hour, now, before, state, (cumulus, gap, strength, ripple))
    # the cloud that rain falls from hides what would be above it, and is there as long as the rain event
    rain_presence, _ = _event(hour, now, before, "rain", 0.4)
    has_rain_cloud = rain_presence > 0.2
    rain_base_m = rain.top_m * (1 + 0.02 * ripple)
    low = Layers(
        np.where(has_rain_cloud, rain_base_m, low.base_m),
        np.where(has_rain_cloud, rain_base_m + 800, low.top_m),
        np.where(has_rain_cloud, CLOUD_BACKSCATTER * np.exp(0.5 * strength), low.backscatter),
    )
    middle = _middle_cloud(hour, now, before, state, (broken, strength, ripple))
    cirrus_presence, cirrus_day = _event(hour, now, before, "cirrus", 1.0)
    cirrus = Layers(
        cirrus_day["cirrus_height_m"] - cirrus_day["cirrus_depth_m"],
        cirrus_day["cirrus_height_m"] + cirrus_day["cirrus_depth_m"],
        cirrus_presence * cirrus_day["cirrus_backscatter"] * np.exp(0.8 * broken),
    )
    bases_m = [np.where(c.backscatter > 0, c.base_m, np.inf) for c in (low, middle)]
    lowest_m = np.where(is_foggy, np.inf, np.minimum(*bases_m))
    sky = np.where(is_foggy, FOG, np.where(is_raining, RAIN, np.where(np.isfinite(lowest_m), CLOUD, CLEAR)))
    return Sky(
        low=low,
        middle=middle,
        cirrus=cirrus,
        rain=rain,
        fog=fog,
        lofted=(_lofted(hour, now, before, "lofted"), _lofted(hour, now, before, "other")),
        cloud_base_m=np.where(np.isfinite(lowest_m), lowest_m, np.nan),
        sky=sky.astype(np.int8),
    )


def _low_cloud(
    hour: NDArray[np.float64], now: Table, before: Table, state: State, waves: tuple[NDArray[np.float64], ...]
) -> Layers:
    """Cumulus on top of the mixing layer where it is convective, or a deck under the lid."""
    cumulus, gap, strength, ripple = waves
    # it needs thermals; when they die it does not come down with the collapsing layer
    is_convective = (state.activity > 0.3) & (state.growth > 0.6) & (state.regime != DECAY)
    is_cumulus = (cumulus > cover_threshold(now["cumulus_cover"])) & is_convective
    presence, day = _event(hour, now, before, "deck", 0.3)
    is_deck = (presence > 0.5) & (gap > cover_threshold(day["deck_cover"]))
    deck_base_m = np.maximum(day["deck_base_share"] * state.lid_m * (1 + 0.012 * ripple), 60.0)
    deck_top_m = np.maximum(state.lid_m, deck_base_m + 80)
    base_m = np.where(is_deck, deck_base_m, now["cumulus_base_share"] * state.mixing_height_m)
    return Layers(
        base_m,
        np.where(is_deck, deck_top_m, base_m + now["cumulus_depth_m"]),
        np.where(is_deck | is_cumulus, CLOUD_BACKSCATTER * np.exp(0.5 * strength), 0.0),
    )


def _middle_cloud(
    hour: NDArray[np.float64], now: Table, before: Table, state: State, waves: tuple[NDArray[np.float64], ...]
) -> Layers:
    """Altocumulus and the like, well above the layers below."""
    broken, strength, ripple = waves
    presence, day = _event(hour, now, before, "middle", 0.3)
    is_there = (presence > 0.5) & (broken > cover_threshold(day["middle_cover"]))
    base_m = np.maximum(day["middle_base_m"], np.maximum(state.lid_m, state.mixing_height_m) + 600) * (
        1 + 0.006 * ripple
    )
    depth_m = day["middle_depth_m"] * np.exp(0.3 * strength)
    return Layers(base_m, base_m + depth_m, np.where(is_there, 1.2e-4 * np.exp(0.8 * strength), 0.0))


def _rain(hour: NDArray[np.float64], now: Table, before: Table, shower: NDArray[np.float64]) -> Layers:
    presence, day = _event(hour, now, before, "rain", 0.15)
    intensity = np.maximum(1 - day["rain_showers"] + day["rain_showers"] * 1.5 * shower, 0)
    return Layers(day["rain_bottom_m"], day["rain_base_m"], presence * day["rain_backscatter"] * intensity)


def _lofted(hour: NDArray[np.float64], now: Table, before: Table, name: str) -> Layers:
    presence, day = _event(hour, now, before, name, 1.5)
    height_m, since_h = day[f"{name}_height_m"], day["event_hour"] - day[f"{name}_start_h"]
    centre_m = height_m * np.exp(-day[f"{name}_sinking_m_per_h"] * since_h / height_m)
    depth_m = day[f"{name}_depth_m"]
    return Layers(centre_m - depth_m, centre_m + depth_m, presence * day[f"{name}_backscatter"])


def _event(
    hour: NDArray[np.float64], now: Table, before: Table, name: str, edge_h: float
) -> tuple[NDArray[np.float64], Table]:
    """How present a kind of event is, 0 to 1, and the numbers of the day that it belongs to.

    Where yesterday's event still lasts, today's waits for it.
    """

    start, end = f"{name}_start_h", f"{name}_end_h"
    names = [key for key in now if key.startswith(name)]
    if not ((now[end] > now[start]) | (before[end] > before[start])).any():
        return np.zeros_like(hour), {key: now[key] for key in names} | {"event_hour": hour}

    def presence(at: NDArray[np.float64], day: Table) -> NDArray[np.float64]:
        edge = np.minimum(edge_h, (day[end] - day[start]) / 2)
        lasts = ramp(at, day[start], day[start] + edge) - ramp(at, day[end] - edge, day[end])
        return np.where(day[end] > day[start], lasts, 0.0)

    lasting = presence(hour + 24, before)
    coming = presence(hour, now) * (1 - lasting)
    is_before = lasting > coming
    day = {key: np.where(is_before, before[key], now[key]) for key in names}
    day["event_hour"] = np.where(is_before, hour + 24, hour)
    return np.maximum(lasting, coming), day


def cover_threshold(cover: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value that a standard wave exceeds for a share `cover` of the time; infinite for none, -infinite for all.

    The normal quantile by its logistic approximation, good to 0.03 for covers between 0.1 and 0.9.
    """
    inner = np.clip(cover, 1e-3, 1 - 1e-3)
    odds = np.log((1 - inner) / inner) / 1.702
    return np.where(cover <= 0, np.inf, np.where(cover >= 1, -np.inf, odds))
