"""The CL51 of the demo and of a simulated station. Knows no file, serial port or station."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.atmosphere import Atmosphere, Truth
from fieldpost.simulation.ceilometer import SimulatedCeilometer
from fieldpost.simulation.climates import FAIR, HELD_OUT, TRAINING, Climate

CLIMATES: Mapping[str, Climate] = MappingProxyType({"fair": FAIR, "training": TRAINING, "held-out": HELD_OUT})
"""By the names that a station's settings have for them."""


class SimulatedCl51:
    """A CL51 with its own noise and errors, under the atmosphere of the same seed and climate. It never pauses.

    Args:
        seed: Which atmosphere, and which noise.
        unit: The id character in its telegrams.
        climate: From what both are drawn.
        latitude_deg: Of the site, north positive; drawn where not given.
        longitude_deg: East positive; drawn where not given.
    """

    def __init__(
        self,
        seed: int,
        unit: str = "0",
        climate: Climate = FAIR,
        *,
        latitude_deg: float | None = None,
        longitude_deg: float | None = None,
    ) -> None:
        if len(unit) != 1 or not (unit.isascii() and unit.isalnum()):
            raise ValueError(f"expected a unit of one character 0-9, A-Z or a-z, but got {unit!r}")
        self.unit = unit
        self.atmosphere = Atmosphere(seed, climate, latitude_deg=latitude_deg, longitude_deg=longitude_deg)
        self._ceilometer = SimulatedCeilometer("cl51", seed, self.atmosphere, climate)

    def telegram(self, unix_s: float) -> bytes:
        """What the instrument writes at this time: the same bytes whenever it is asked."""
        return self._ceilometer.telegram(unix_s, self.unit)

    def measure(self, unix_s: float) -> tuple[Truth, NDArray[np.float32]]:
        """The truth, and the profile before it is rounded to the telegram's steps.

        Returns:
            The truth at this one time, and attenuated backscatter with noise and overlap: (1540,), m-1 sr-1.
        """
        return self._ceilometer.measure(unix_s)
