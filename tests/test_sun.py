"""The sun's place, against published almanac figures."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from fieldpost.sun import DAY_S, solar_elevation_deg, solar_hour_angle, solar_noon_unix_s


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("instant", "latitude_deg", "longitude_deg", "elevation_deg"),
    [
        ("2003-10-17T19:30:30", 39.742476, -105.1786, 39.888),  # the example of NREL's algorithm (Reda, Andreas 2004)
        ("2024-06-20T20:51:00", 23.44, -132.3, 90.0),  # the June solstice, overhead at the tropic
        ("2024-03-20T03:06:00", 90.0, 0.0, 0.0),  # the March equinox, seen from the pole
    ],
)
def test_the_elevation_is_the_almanacs(instant, latitude_deg, longitude_deg, elevation_deg):
    found = solar_elevation_deg(np.array([_unix_s(instant)]), latitude_deg, longitude_deg)
    assert found[0] == pytest.approx(elevation_deg, abs=0.7 if elevation_deg == 90 else 0.1)


@pytest.mark.parametrize("longitude_deg", [-180.0, -105.2, 0.0, 26.03, 179.9])
def test_a_solar_day_goes_from_noon_to_noon_at_every_longitude(longitude_deg):
    for unix_s in (0.0, 1.7e9, 1.7e9 + 43_210.5, -5.5):
        noon = solar_noon_unix_s(unix_s, longitude_deg)
        assert noon <= unix_s < noon + DAY_S
        assert solar_noon_unix_s(noon, longitude_deg) == noon
        assert solar_noon_unix_s(noon + DAY_S, longitude_deg) == noon + DAY_S
        # mean and true noon differ by the equation of time, at most 17 minutes
        assert abs(solar_hour_angle(np.array([noon]), longitude_deg)[0]) < np.radians(17 / 4)
