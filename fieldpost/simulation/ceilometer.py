"""A simulated ceilometer: looks at a simulated atmosphere and measures what a real one of its model would.

Knows nothing of files, serial ports or stations; time is an argument.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError
from fieldpost.simulation.atmosphere import Atmosphere, Truth
from fieldpost.simulation.climate import Climate
from fieldpost.simulation.climates import FAIR
from fieldpost.simulation.days import day_and_hour, ramp
from fieldpost.simulation.instruments import draw_instrument
from fieldpost.simulation.sky import CLOUD, FOG, RAIN
from fieldpost.simulation.telegram import quantise, write_telegram
from fieldpost.simulation.waves import Waves
from fieldpost.sun import solar_elevation_deg
from fieldpost.telegrams import Profiles

LAYER_COUNT = 3
WAVE_PERIODS_S = (2.0e5, 9.0e4)
"""Dirt on the window, temperature of the instrument."""
WINDOW_DIRT = (-1.0, 2.0)
"""From where to where in its wave the window gets dirty."""
BRIGHT_CLOUD = 0.4
"""How much more light a cloud overhead sends down than the blue sky does, as a share (assumption)."""
HIDDEN_IN_FOG, HIDDEN_IN_RAIN = 0.75, 0.3
"""How often the instrument says that the sky is hidden, and gives no base (assumption)."""


class SimulatedCeilometer:
    """An instrument under an atmosphere; the same for the same seed, at any time and in any order of asking.

    Args:
        model: "cl31", "cl51", "cl61" or "chm15k".
        seed: Which instrument of that model, and which noise.
        atmosphere: What it looks at.
        climate: From what the instrument's errors are drawn.

    Raises:
        InvalidRequestError: There is no such model.
    """

    def __init__(self, model: str, seed: int, atmosphere: Atmosphere, climate: Climate = FAIR) -> None:
        self.model = model
        self.atmosphere = atmosphere
        self._climate = climate
        self._seed = seed
        self._instrument = draw_instrument(model, seed, climate)
        self._waves = Waves(seed, WAVE_PERIODS_S, stream=12)
        self._range_squared = np.square(self._instrument.range_m).astype(np.float32)

    @property
    def range_m(self) -> NDArray[np.float64]:
        """Centre of each gate: (gates,), m."""
        return self._instrument.range_m

    def profiles(self, unix_s: NDArray[np.float64]) -> tuple[Truth, Profiles]:
        """What is true and what the instrument measures, whether or not it was recording.

        Args:
            unix_s: (times,), seconds since 1970-01-01 UTC.
        """
        truth, measured, bases, is_obscured = self._measure(np.asarray(unix_s, np.float64))
        quantum = self._instrument.kind.quantum
        if quantum:
            measured /= np.float32(quantum)
            np.rint(measured, out=measured)
            np.clip(measured, -0x80000, 0x7FFFF, out=measured)
            measured *= np.float32(quantum)
        return truth, Profiles(
            unix_nanos=np.rint(np.asarray(unix_s) * 1e9).astype(np.int64),
            height_m=self.range_m,
            beta=measured,
            cloud_base_m=bases,
            is_obscured=is_obscured,
        )

    def measure(self, unix_s: float) -> tuple[Truth, NDArray[np.float32]]:
        """The truth at one time, and the profile before it is rounded: (gates,), m-1 sr-1."""
        truth, measured, _, _ = self._measure(np.array([unix_s]))
        return truth, measured[0]

    def is_recording(self, unix_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether there is a profile at these times: (times,); False in gaps of hours and for single lost profiles."""
        day, hour = day_and_hour(unix_s, self.atmosphere.longitude_deg)
        is_recording = np.ones(len(unix_s), np.bool_)
        for number in np.unique(np.concatenate([day, day - 1])).tolist():
            random = np.random.default_rng([self._seed, 13, number + 1_000_000])
            has_gap, start_h, length_h = random.random(), random.uniform(0, 24), np.exp(random.uniform(-1, 2.5))
            since_h = hour + 24 * (day - number) - start_h
            if has_gap < self._climate.dropout_share:
                is_recording &= (since_h < 0) | (since_h > length_h)
        if self._climate.lost_share:
            lost = [self._random(t, 14).random() < self._climate.lost_share for t in np.asarray(unix_s).tolist()]
            is_recording &= ~np.array(lost, np.bool_)
        return is_recording

    def telegram(self, unix_s: float, unit: str = "0") -> bytes:
        """What a CL31 or CL51 writes at this time: the same bytes whenever it is asked.

        Raises:
            InvalidRequestError: The model writes no telegrams.
        """
        if self.model not in ("cl31", "cl51"):
            raise InvalidRequestError(
                f"expected a model of cl31 or cl51, but got {self.model!r}", hint="the others write NetCDF files"
            )
        _, measured, bases, is_obscured = self._measure(np.array([unix_s]))
        sunlight = float(self._sunlight(np.array([unix_s]))[0])
        return write_telegram(
            quantise(measured[0]),
            unit=unit,
            model=self.model,
            gate_m=round(float(self.range_m[1] - self.range_m[0])),
            cloud_bases_m=tuple(float(base) for base in bases[0] if np.isfinite(base)),
            is_obscured=bool(is_obscured[0]),
            cover_octas=self.atmosphere.cover_octas(unix_s),
            background_mv=round(2 + 80 * sunlight),
            laser_celsius=round(22 + 8 * sunlight),
        )

    def _measure(
        self, unix_s: NDArray[np.float64]
    ) -> tuple[Truth, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Truth, profiles before they are rounded, cloud bases, hidden skies."""
        instrument, climate = self._instrument, self._climate
        truth, measured = self.atmosphere.scene(unix_s, self.range_m, instrument.kind.wavelength_nm)
        dirt, warmth = self._waves(unix_s)
        window = 1 - instrument.window_loss * ramp(dirt, *WINDOW_DIRT)
        light = self._sunlight(unix_s) * (1 + BRIGHT_CLOUD * (truth.sky == CLOUD))
        background = instrument.night_noise * np.sqrt(1 + (instrument.noon_noise_ratio**2 - 1) * light)
        bases = np.full((len(unix_s), LAYER_COUNT), np.nan, np.float32)
        is_obscured = np.zeros(len(unix_s), np.bool_)
        gate_count, taps = len(self.range_m), instrument.taps
        error_m = self._climate_error_m()
        for index, at in enumerate(unix_s.tolist()):
            random = self._random(at, 1)
            row = measured[index]
            noise = _filtered(random.standard_normal(gate_count + len(taps) - 1, np.float32), taps)
            noise *= np.float32(background[index])
            noise += instrument.baseline
            noise *= self._range_squared
            row *= instrument.gain
            row *= np.float32(window[index]) * (1 + np.float32(np.tanh(warmth[index])) * instrument.overlap_drift)
            row += noise
            missed, hidden, slip = random.random(), random.random(), random.standard_normal()
            base_m = truth.cloud_base_m[index] + error_m * slip
            if truth.sky[index] in (FOG, RAIN):
                is_obscured[index] = hidden < (HIDDEN_IN_FOG if truth.sky[index] == FOG else HIDDEN_IN_RAIN)
                if truth.sky[index] == FOG and not is_obscured[index]:
                    base_m = 20 + 15 * abs(slip)
            if (
                not is_obscured[index]
                and missed >= climate.cloud_missed_share
                and base_m < instrument.kind.highest_base_m
            ):
                bases[index, 0] = max(base_m, 0.0)
        return truth, measured, bases, is_obscured

    def _climate_error_m(self) -> float:
        low, high = self._climate.cloud_base_error_m
        return low + (high - low) * float(np.random.default_rng([self._seed, 15]).random())

    def _random(self, unix_s: float, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, round(unix_s * 1000) & 0x7FFFFFFFFFFFFFFF])

    def _sunlight(self, unix_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sunlight on the sky above, 0 by night to 1 under an overhead sun."""
        elevation = solar_elevation_deg(unix_s, self.atmosphere.latitude_deg, self.atmosphere.longitude_deg)
        sunlight: NDArray[np.float64] = np.maximum(np.sin(np.radians(elevation)), 0)
        return sunlight


def _filtered(white: NDArray[np.float32], taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise of unit standard deviation whose neighbours are alike."""
    count = len(white) - len(taps) + 1
    filtered: NDArray[np.float32] = taps[0] * white[:count]
    for shift in range(1, len(taps)):
        filtered += taps[shift] * white[shift : shift + count]
    return filtered
