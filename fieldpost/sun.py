"""Where the sun stands: elevation above the horizon, and solar noon. Good to a few tenths of a degree, 1950 to 2050.

After the low-precision formulas of the Astronomical Almanac, as in Michalsky (1988), Solar Energy 40, 227. Refraction
is left out. Needs numpy; `import fieldpost` alone does not load it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DAY_S = 86400.0
J2000_UNIX_S = 946_728_000.0
"""2000-01-01T12:00Z."""


def solar_elevation_deg(unix_s: NDArray[np.float64], latitude_deg: float, longitude_deg: float) -> NDArray[np.float64]:
    """The elevation of the sun's centre.

    Args:
        unix_s: (times,), seconds since 1970-01-01 UTC.
        latitude_deg: North is positive.
        longitude_deg: East is positive.

    Returns:
        (times,), degrees; negative below the horizon.
    """
    declination, hour_angle = _declination_and_hour_angle(np.asarray(unix_s, np.float64), longitude_deg)
    latitude = np.radians(latitude_deg)
    sine = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    elevation: NDArray[np.float64] = np.degrees(np.arcsin(np.clip(sine, -1, 1)))
    return elevation


def solar_hour_angle(unix_s: NDArray[np.float64], longitude_deg: float) -> NDArray[np.float64]:
    """How far the sun has gone past the south (or north) at these times: (times,), radians, -pi to pi; 0 at noon."""
    return _declination_and_hour_angle(np.asarray(unix_s, np.float64), longitude_deg)[1]


def solar_noon_unix_s(unix_s: float, longitude_deg: float) -> float:
    """The last noon of mean solar time at or before a time: whole seconds, and exactly a day apart."""
    shift_s = round(longitude_deg * 240.0)
    return float((unix_s + shift_s - DAY_S / 2) // DAY_S * DAY_S + DAY_S / 2 - shift_s)


def _declination_and_hour_angle(
    unix_s: NDArray[np.float64], longitude_deg: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in radians, each (times,)."""
    days = (unix_s - J2000_UNIX_S) / DAY_S
    mean_longitude = np.radians((280.460 + 0.9856474 * days) % 360)
    mean_anomaly = np.radians((357.528 + 0.9856003 * days) % 360)
    ecliptic = mean_longitude + np.radians(1.915 * np.sin(mean_anomaly) + 0.020 * np.sin(2 * mean_anomaly))
    obliquity = np.radians(23.439 - 4e-7 * days)
    ascension = np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic))
    declination = np.arcsin(np.sin(obliquity) * np.sin(ecliptic))
    sidereal_deg = (280.46061837 + 360.98564736629 * days + longitude_deg) % 360
    hour_angle = (np.radians(sidereal_deg) - ascension + np.pi) % (2 * np.pi) - np.pi
    return declination, hour_angle
