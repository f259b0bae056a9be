"""A seed's instrument and day: the one way in which simulated courses are drawn, for training and for comparing.

Knows no retrieval.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fieldpost.simulation import Atmosphere, Climate, SimulatedCeilometer
from fieldpost.sun import DAY_S
from fieldpost.telegrams import Profiles
from server.analyses.boundary_layer.clock import course_start_unix_s

INSTRUMENTS = ("cl31", "cl51", "cl61", "chm15k")
FIRST_DAY, DAY_SPAN = 18_262, 1826
"""Courses begin on any day of five years, from 2020-01-01 on."""
_DAY_STREAM = 77
"""Keeps the day apart from all else that is drawn with the seed."""


def draw_course(seed: int, climate: Climate, model: str | None = None) -> tuple[SimulatedCeilometer, int]:
    """The instrument of a seed under its sky, and the start of its course, seconds since 1970-01-01 UTC.

    Args:
        seed: Decides day, site, weather and what is wrong with the instrument.
        climate: What they are drawn from.
        model: Of the instrument; the seed decides where it is None.
    """
    atmosphere = Atmosphere(seed, climate)
    instrument = SimulatedCeilometer(model or INSTRUMENTS[seed % len(INSTRUMENTS)], seed, atmosphere, climate)
    day = FIRST_DAY + int(np.random.default_rng([seed, _DAY_STREAM]).integers(DAY_SPAN))
    return instrument, course_start_unix_s(day * DAY_S, atmosphere.longitude_deg)


def split(profiles: Profiles) -> Iterator[Profiles]:
    """Each profile as an observation of its own."""
    for place in range(len(profiles.unix_nanos)):
        one = slice(place, place + 1)
        yield Profiles(
            profiles.unix_nanos[one],
            profiles.height_m,
            profiles.beta[one],
            profiles.cloud_base_m[one],
            profiles.is_obscured[one],
        )
