"""What each simulated day is like, and the slow waves that keep two hours of it from being alike.

Knows no profiles: it draws numbers, the same ones for the same (seed, day), in whatever order days are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WAVE_COUNT = 5
"""Sines in one wave; five with unrelated periods do not repeat within a month."""


@dataclass(frozen=True, slots=True)
class Day:
    """The numbers of one UTC day.

    Attributes:
        maximum_height_m: Afternoon height of the mixing layer: 900 to 2100 m, fair weather over land in mid-latitudes.
        growth_hour: When the morning growth is half done, UTC hours.
        stable_depth_m: Depth of the stable layer in the night that begins on this day.
        mixed_backscatter: Aerosol backscatter of the afternoon mixing layer at 910 nm, m-1 sr-1: log-normal about
            1.2e-6, clean to hazy continental air.
        surface_excess: What the surface has added to the stable layer by the end of the night, as a share of
            mixed_backscatter.
        residual_share: What is left of the mixing layer's aerosol in the residual layer, as a share.
        entrainment_share: Standard deviation of the erf-shaped top, as a share of the mixing height.
        free_backscatter: Aerosol backscatter at the bottom of the free troposphere, m-1 sr-1.
        cloud_cover: Share of midday and afternoon under cumulus; 0 on more than half of the days.
        lofted_height_m: Centre of a lofted aerosol layer.
        lofted_backscatter: Its backscatter, m-1 sr-1; 0 on three days of four.
        lofted_hour: When it passes, UTC hours.
    """

    maximum_height_m: float
    growth_hour: float
    stable_depth_m: float
    mixed_backscatter: float
    surface_excess: float
    residual_share: float
    entrainment_share: float
    free_backscatter: float
    cloud_cover: float
    lofted_height_m: float
    lofted_backscatter: float
    lofted_hour: float


@lru_cache(maxsize=1024)
def draw_day(seed: int, day: int) -> Day:
    """Draws the numbers of a day; day counts from 1970-01-01 and may be negative."""
    random = np.random.default_rng([seed, day + 1_000_000])
    return Day(
        maximum_height_m=random.uniform(900, 2100),
        growth_hour=random.uniform(9.5, 11.5),
        stable_depth_m=random.uniform(110, 260),
        mixed_backscatter=1.2e-6 * np.exp(random.normal(0, 0.4)),
        surface_excess=random.uniform(0.4, 1.4),
        residual_share=random.uniform(0.5, 0.85),
        entrainment_share=random.uniform(0.03, 0.07),
        free_backscatter=random.uniform(3e-8, 1.2e-7),
        cloud_cover=random.uniform(0.15, 0.7) if random.random() < 0.45 else 0.0,
        lofted_height_m=random.uniform(2500, 4500),
        lofted_backscatter=random.uniform(2e-7, 9e-7) if random.random() < 0.25 else 0.0,
        lofted_hour=random.uniform(3, 21),
    )


@lru_cache(maxsize=64)
def day_table(seed: int, days: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
    """The numbers of these days, as one array (days,) for each attribute of Day."""
    drawn = [draw_day(seed, day) for day in days]
    return {name: np.array([getattr(day, name) for day in drawn]) for name in Day.__slots__}


class Waves:
    """Smooth, reproducible fluctuations: each is a sum of sines with unrelated periods and phases drawn once.

    Args:
        seed: The same seed gives the same waves.
        periods_s: (waves,): the typical period of each wave; its sines have 0.6 to 1.7 times that.
    """

    def __init__(self, seed: int, periods_s: tuple[float, ...]) -> None:
        random = np.random.default_rng([seed, 0])
        shape = (len(periods_s), WAVE_COUNT)
        periods = np.array(periods_s)[:, None] * np.exp(random.uniform(-0.5, 0.5, shape))
        self._omega = 2 * np.pi / periods
        self._phase = random.uniform(0, 2 * np.pi, shape)
        self._amplitude = np.sqrt(2 / WAVE_COUNT)

    def __call__(self, unix_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The waves at these times: (waves, times), each with mean 0 and standard deviation 1."""
        angle = self._omega[:, :, None] * unix_s + self._phase[:, :, None]
        result: NDArray[np.float64] = self._amplitude * np.sin(angle).sum(axis=1)
        return result
