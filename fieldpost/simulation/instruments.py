"""The instruments' optics and electronics: gates, noise, overlap and calibration errors, each drawn once a seed.

Knows no atmosphere and no telegram. Heights of noise are those of the real files of the tests; see each constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError
from fieldpost.simulation.climate import Climate, Range
from fieldpost.simulation.weather import log_uniform


@dataclass(frozen=True, slots=True)
class Kind:
    """What all instruments of a model have in common.

    Attributes:
        grids: Gate width in m, number of gates, how often it is set so.
        wavelength_nm: Of the laser.
        noise: Night noise of a gate of 10 m, standard deviation of the signal before range correction, m-3 sr-1.
        smoothing_m: Length of the pulse and filter that neighbouring gates share; 0 for none.
        absorbed: Whether water vapour absorbs the light.
        has_near_steps: Whether small steps between 50 and 120 m are usual.
        overlap_scale_m: How far the overlap error reaches.
        overlap_factor: Factor on the overlap error of the climate.
        quantum: Step of what it writes, m-1 sr-1; 0 where that is a floating-point number.
        highest_base_m: Up to where it reports cloud bases.
    """

    grids: tuple[tuple[float, int, float], ...]
    wavelength_nm: float
    noise: Range
    smoothing_m: float
    absorbed: bool
    has_near_steps: bool
    overlap_scale_m: Range
    overlap_factor: float
    quantum: float
    highest_base_m: float


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # real files: noise 0.8 to 1.6e-13, correlation of neighbours 0.29 to 0.42
        "cl31": Kind(
            ((10.0, 770, 0.7), (5.0, 1500, 0.15), (20.0, 385, 0.15)),
            910.0, (8e-14, 3.6e-13), 15.0, True, True, (25.0, 80.0), 1.0, 1e-8, 7600.0,
        ),
        # real files: 3.2e-14 to 4.7e-14, correlation 0.29 to 0.57
        "cl51": Kind(
            ((10.0, 1540, 1.0),), 910.0, (3e-14, 7e-14), 15.0, True, False, (40.0, 120.0), 1.0, 1e-8, 13_000.0
        ),
        # real files: 3.3e-14 for a gate of 4.8 m, correlation 0.86: with filtering over about seven gates
        "cl61": Kind(
            ((4.8, 3276, 1.0),), 910.55, (1.6e-14, 4e-14), 33.6, True, False, (30.0, 100.0), 0.7, 0.0, 13_000.0
        ),
        # real files: 6.2e-15 to 7.4e-15 for a gate of 15 m, no correlation. The overlap is full at 1500 m only; below
        # some 300 to 600 m what its correction leaves depends on the instrument's temperature (assumption: up to 30 %)
        "chm15k": Kind(
            ((15.0, 1024, 1.0),), 1064.0, (5e-15, 1.6e-14), 0.0, False, False, (120.0, 300.0), 1.5, 0.0, 14_000.0
        ),
    }
)  # fmt: skip
NEAR_STEPS_M = (50.0, 70.0, 120.0)
BASELINE_LENGTHS_M = (4000.0, 9000.0)
WATER_VAPOUR_SCALE_M = 2000.0


@dataclass(frozen=True, slots=True)
class Instrument:
    """One instrument.

    Attributes:
        kind: What its model has in common.
        range_m: (gates,), float64: centre of each gate.
        gain: (gates,), float32: calibration, overlap, near steps and water vapour: what is measured over what is true.
        overlap_drift: (gates,), float32: relative change of that when the instrument warms.
        night_noise: Standard deviation of a gate before range correction, m-3 sr-1.
        noon_noise_ratio: Factor under an overhead sun.
        baseline: (gates,), float32: offset before range correction, m-3 sr-1.
        window_loss: Share that the window takes at its dirtiest.
        taps: (taps,), float32: filter that makes neighbouring gates alike; its squares add up to 1.
    """

    kind: Kind
    range_m: NDArray[np.float64]
    gain: NDArray[np.float32]
    overlap_drift: NDArray[np.float32]
    night_noise: float
    noon_noise_ratio: float
    baseline: NDArray[np.float32]
    window_loss: float
    taps: NDArray[np.float32]


def draw_instrument(model: str, seed: int, climate: Climate) -> Instrument:
    """Draws an instrument of a model.

    Raises:
        InvalidRequestError: There is no such model.
    """
    kind = KINDS.get(model)
    if kind is None:
        raise InvalidRequestError(
            f"expected a model of {', '.join(KINDS)}, but got {model!r}", hint="these instruments are simulated"
        )
    random = np.random.default_rng([seed, 11])
    widths = [grid[2] for grid in kind.grids]
    gate_m, gate_count, _ = kind.grids[int(np.searchsorted(np.cumsum(widths), random.random() * sum(widths) * 0.9999))]
    z = (np.arange(gate_count, dtype=np.float64) + 0.5) * gate_m
    calibration = math.exp(climate.calibration_log_spread * random.standard_normal())
    scale_m = random.uniform(*kind.overlap_scale_m)
    error = random.uniform(*climate.overlap_error) * kind.overlap_factor
    drift = random.uniform(0, 0.3) * abs(error)
    gain = 1 + error * np.exp(-z / scale_m)
    step = random.uniform(*climate.near_step) * random.choice([-1, 1], len(NEAR_STEPS_M))
    if kind.has_near_steps:
        for height_m, size in zip(NEAR_STEPS_M, step, strict=True):
            gain *= 1 + size * np.exp(-np.square((z - height_m) / 15))
    vapour_loss = random.uniform(*climate.water_vapour_loss) * kind.absorbed
    gain *= 1 - vapour_loss * (1 - np.exp(-z / WATER_VAPOUR_SCALE_M))
    noise = log_uniform(random, kind.noise) * random.uniform(*climate.noise_factor) * math.sqrt(10 / gate_m)
    offset, ripple = (random.uniform(*climate.baseline_error) for _ in range(2))
    length_m, phase = random.uniform(*BASELINE_LENGTHS_M), random.uniform(0, 2 * math.pi)
    return Instrument(
        kind=kind,
        range_m=z,
        gain=(calibration * gain).astype(np.float32),
        overlap_drift=(drift * np.exp(-z / scale_m)).astype(np.float32),
        night_noise=noise,
        noon_noise_ratio=random.uniform(*climate.noon_noise_ratio),
        baseline=(noise * (offset + ripple * np.sin(2 * np.pi * z / length_m + phase))).astype(np.float32),
        window_loss=random.uniform(*climate.window_loss),
        taps=_taps(kind.smoothing_m, gate_m),
    )


def _taps(smoothing_m: float, gate_m: float) -> NDArray[np.float32]:
    """A box of that length over the gates, its last tap a part of one: 1.5 gates correlate neighbours by 0.4."""
    length = max(smoothing_m / gate_m, 1.0)
    taps = np.ones(math.ceil(length), np.float32)
    taps[-1] -= np.float32(math.ceil(length) - length)
    scaled: NDArray[np.float32] = taps / np.float32(math.sqrt(float(np.square(taps).sum())))
    return scaled
