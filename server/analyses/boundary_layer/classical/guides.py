"""Between which heights the top of the layer may be looked for, by the sun: what path methods call guides.

Pathfinder (de Bruine et al. 2017, AMT 10, 1893) limits its search so, by the hours since sunrise and to sunset. Knows
no profile. Where an instrument's place on Earth is unknown there is one pair of limits, day and night.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldpost.sun import solar_elevation_deg, solar_hour_angle
from server.analyses.boundary_layer.classical.batch import CEILING_M, FLOOR_M

DAY_S = 86400.0
SINCE_SUNRISE_H = (0.0, 1.0, 1.5, 2.0, 3.0, 4.5, 6.0)
CEILING_SINCE_SUNRISE_M = (500.0, 650.0, 1000.0, 1700.0, 2600.0, 3200.0, 4000.0)
PAST_SUNSET_H = (-1.5, -1.25, -0.75, -0.5, -0.25, 0.0, 0.25)
CEILING_PAST_SUNSET_M = (4000.0, 2300.0, 1500.0, 1000.0, 500.0, 450.0, 450.0)
"""From simulated courses of the climate TRAINING (seeds 700 000 to 700 399). By day one true height of 200 lies above
these, less a tenth of margin; around sunset one of 15, which cost the shortest path the least: tighter limits cut off
layers that collapse late, wider ones leave it on the residual layer (seeds to 700 023: RMSE 190 to 197 m against 218 m
with one of 200).
"""
FLOOR_SINCE_SUNRISE_H, FLOOR_SINCE_SUNRISE_M = (2.0, 4.0, 5.5), (FLOOR_M, 150.0, 200.0)
FLOOR_PAST_SUNSET_H, FLOOR_PAST_SUNSET_M = (-2.0, -1.5), (200.0, FLOOR_M)
"""One true height of 200 lies below these, by day."""


class Limits(NamedTuple):
    """Between which heights a top is looked for, each (times,), m."""

    floor_m: NDArray[np.float64]
    ceiling_m: NDArray[np.float64]

    def hold(self, height_m: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of these heights, (heights,), lie between them: (times, heights)."""
        held: NDArray[np.bool_] = (height_m >= self.floor_m[:, None]) & (height_m <= self.ceiling_m[:, None])
        return held


def sun_hours(
    unix_s: NDArray[np.float64], latitude_deg: float, longitude_deg: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hours since the sunrise and to the sunset of the solar day that each instant belongs to, each (times,).

    Before sunrise the first is negative, after sunset the second. In a polar day both are 12 h from noon, in a polar
    night both are 0 at noon. From sin(elevation) = a + b cos(hour angle), so that the sun stands on the horizon where
    cos(hour angle) = -a / b; a and b follow from the elevations at noon and half a day from it.
    """
    hour_angle = solar_hour_angle(unix_s, longitude_deg)
    noon_unix_s = unix_s - hour_angle / (2 * np.pi) * DAY_S
    at_noon, at_midnight = (
        np.sin(np.radians(solar_elevation_deg(noon_unix_s + shift_s, latitude_deg, longitude_deg)))
        for shift_s in (0.0, DAY_S / 2)
    )
    cosine = -(at_noon + at_midnight) / np.maximum(at_noon - at_midnight, 1e-6)
    half_day = np.arccos(np.clip(cosine, -1, 1))
    per_radian_h = 12 / np.pi
    return (hour_angle + half_day) * per_radian_h, (half_day - hour_angle) * per_radian_h


def limits(unix_s: NDArray[np.float64], latitude_deg: float | None, longitude_deg: float | None) -> Limits:
    """The limits at these times, (times,), at a place on Earth."""
    if latitude_deg is None or longitude_deg is None:
        return Limits(np.full(len(unix_s), FLOOR_M), np.full(len(unix_s), CEILING_M))
    since_sunrise_h, to_sunset_h = sun_hours(unix_s, latitude_deg, longitude_deg)
    floor_m: NDArray[np.float64] = np.minimum(
        np.interp(since_sunrise_h, FLOOR_SINCE_SUNRISE_H, FLOOR_SINCE_SUNRISE_M),
        np.interp(-to_sunset_h, FLOOR_PAST_SUNSET_H, FLOOR_PAST_SUNSET_M),
    )
    ceiling_m: NDArray[np.float64] = np.minimum(
        np.interp(since_sunrise_h, SINCE_SUNRISE_H, CEILING_SINCE_SUNRISE_M),
        np.interp(-to_sunset_h, PAST_SUNSET_H, CEILING_PAST_SUNSET_M),
    )
    return Limits(floor_m, ceiling_m)
