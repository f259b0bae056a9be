"""A simulated CL51: looks at a simulated atmosphere and writes the telegrams that a real one would.

Knows nothing of files, serial ports or stations; time is an argument.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.atmosphere import Atmosphere, Truth
from fieldpost.simulation.course import DAY_S, SUNRISE_HOUR, SUNSET_HOUR
from fieldpost.simulation.telegram import GATE_COUNT, GATE_M, quantise, write_telegram

NIGHT_NOISE = 3.3e-14
"""Standard deviation of one gate of the signal before range correction, m-3 sr-1. Two CL51 of the test data have
3.2e-14 (Chennai, night) and 4.5e-14 (late afternoon), over the top third of the profile."""
NOON_NOISE_RATIO = 3.0
"""How much sunlight raises it; the background light rises with its square."""
NEIGHBOUR_WEIGHT = 0.4
"""What a gate shares with its neighbour, since the pulse is longer than the gate: lag-1 correlation 0.34, in the real
telegrams 0.29 to 0.56."""
OVERLAP_ERROR, OVERLAP_SCALE_M = 0.15, 50.0
"""What the instrument's own overlap correction leaves: 15 % too little at the ground, gone above some 200 m."""


class SimulatedCl51:
    """A CL51 with its own noise, under the atmosphere of the same seed.

    Args:
        seed: Which atmosphere, and which noise.
        unit: The id character in its telegrams.
    """

    def __init__(self, seed: int, unit: str = "0") -> None:
        if len(unit) != 1 or not (unit.isascii() and unit.isalnum()):
            raise ValueError(f"expected a unit of one character 0-9, A-Z or a-z, but got {unit!r}")
        self.atmosphere = Atmosphere(seed)
        self.unit = unit
        self._seed = seed
        self._range_m = (np.arange(GATE_COUNT, dtype=np.float64) + 0.5) * GATE_M
        overlap = 1 - OVERLAP_ERROR * np.exp(-self._range_m / OVERLAP_SCALE_M)
        self._overlap: NDArray[np.float32] = overlap.astype(np.float32)
        self._range_squared: NDArray[np.float32] = np.square(self._range_m).astype(np.float32)

    def telegram(self, unix_s: float) -> bytes:
        """What the instrument writes at this time: the same bytes whenever it is asked."""
        truth, measured = self.measure(unix_s)
        sunlight = _sunlight(unix_s)
        return write_telegram(
            quantise(measured),
            unit=self.unit,
            cloud_base_m=float(truth.cloud_base_m[0]),
            cover_octas=self.atmosphere.cover_octas(unix_s),
            background_mv=round(2 + 80 * sunlight),
            laser_celsius=round(22 + 8 * sunlight),
        )

    def measure(self, unix_s: float) -> tuple[Truth, NDArray[np.float32]]:
        """The truth, and the profile before it is rounded to the telegram's steps.

        Returns:
            The truth at this one time, and attenuated backscatter with noise and overlap: (1540,), m-1 sr-1.
        """
        truth, clean = self.atmosphere.scene(np.array([unix_s]), self._range_m)
        noise = np.float32(NIGHT_NOISE * math.sqrt(1 + (NOON_NOISE_RATIO**2 - 1) * _sunlight(unix_s)))
        measured = self._noise(unix_s)
        measured *= noise * self._range_squared
        measured += clean[0] * self._overlap
        return truth, measured

    def _noise(self, unix_s: float) -> NDArray[np.float32]:
        """Noise of unit standard deviation, correlated between neighbours: (1540,)."""
        random = np.random.default_rng([self._seed, 1, round(unix_s * 1000) & 0x7FFFFFFFFFFFFFFF])
        white = random.standard_normal(GATE_COUNT + 1, dtype=np.float32)
        mixed: NDArray[np.float32] = white[:-1] + np.float32(NEIGHBOUR_WEIGHT) * white[1:]
        mixed /= np.float32(math.sqrt(1 + NEIGHBOUR_WEIGHT**2))
        return mixed


def _sunlight(unix_s: float) -> float:
    """Sunlight on the receiver, 0 by night to 1 at noon."""
    hour = unix_s % DAY_S / 3600
    return max(0.0, float(np.sin(np.pi * (hour - SUNRISE_HOUR) / (SUNSET_HOUR - SUNRISE_HOUR))))
