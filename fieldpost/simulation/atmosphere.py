"""A diurnal boundary layer whose height is known exactly, seen as attenuated backscatter.

Knows no instrument: no noise, no overlap, no telegram. It is a caricature with the right features, made so that a
retrieval can be scored; it is not a forecast model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.course import DAY_S, WAVE_PERIODS_S, State, course, is_cumulus_time
from fieldpost.simulation.weather import Waves, draw_day

AEROSOL_LIDAR_RATIO_SR = 45.0
"""Extinction over backscatter; 40 to 60 sr for continental aerosol near 1 µm (Wiegner et al. 2014, AMT 7, 1979)."""
CLOUD_LIDAR_RATIO_SR = 18.8
"""For droplets (O'Connor et al. 2004, JTECH 21, 777)."""
CLOUD_MULTIPLE_SCATTERING = 0.7
"""Share of the extinction that counts: forward-scattered light comes back too (same source)."""
CLOUD_BACKSCATTER, CLOUD_DEPTH_M, CLOUD_EDGE_M = 4e-4, 250.0, 15.0
MOLECULAR_BACKSCATTER = 1.7e-7
"""At the surface, 910 nm, m-1 sr-1: 1.54e-6 at 532 nm (Bucholtz 1995, Appl. Opt. 34, 2765) x (532/910)**4.09."""
MOLECULAR_LIDAR_RATIO_SR = 8 * np.pi / 3
MOLECULAR_SCALE_M, FREE_SCALE_M = 8000.0, 2500.0
STRATA_WAVELENGTHS_M = (170.0, 290.0, 470.0, 760.0)
STRATA_AMPLITUDE = 0.056
RESIDUAL_TOP_WIDTH_M, LOFTED_WIDTH_M = 40.0, 180.0
CLEANEST_AEROSOL = 1e-9
NO_HEIGHT_M = 1e6


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of the simulated atmosphere, at each time asked for; each attribute is (times,), float64.

    Attributes:
        mixing_height_m: Depth of the layer in contact with the ground: mixing layer by day, stable layer by night.
        residual_layer_height_m: Top of the residual layer above it; NaN where there is none.
        cloud_base_m: Base of the cumulus overhead; NaN where there is none.
    """

    mixing_height_m: NDArray[np.float64]
    residual_layer_height_m: NDArray[np.float64]
    cloud_base_m: NDArray[np.float64]


class Atmosphere:
    """A fair-weather atmosphere, the same for the same seed, at any time and in any order of asking.

    What it assumes, with magnitudes:

    * Solar time is UTC; sunrise 05:30, sunset 18:30 on every day. No rain, no fog, no stratus, no snow.
    * By night a stable layer of 110-260 m that gathers aerosol from the ground; after sunrise growth along a logistic
      curve, half done between 09:30 and 11:30, to 900-2100 m; collapse within an hour about 18:00 (the course in
      Stull 1988, An Introduction to Boundary Layer Meteorology, figure 1.7).
    * The day's top stays behind as the residual layer. It sinks 5 mm/s (fair-weather subsidence is of this order,
      Stull 1988), keeps 50-85 % of the aerosol, and is gone when the next day's mixing layer reaches it, at the latest
      at 15:00. When the layer has just collapsed, the air below and above the new top is the same: no instrument that
      looks at aerosol sees the new top for an hour or two.
    * Thermals move the top by 4 % within minutes by day; waves by 6 % within the hour by night.
    * The top is erf-shaped (Steyn et al. 1999, JTECH 16, 953), standard deviation 3-7 % of the height, at least 20 m.
    * Aerosol backscatter 0.5-3e-6 m-1 sr-1 in the mixing layer, changing with height by -10 to +20 % as humidity
      does; 3-12e-8 above it; a lofted layer on one day of four; lidar ratio 45 sr. Water vapour does not absorb here,
      as it does at 910 nm in nature (Wiegner and Gasteiger 2015, AMT 8, 3971: up to 20 % of the signal).
    * Faint strata everywhere in the aerosol, 170 to 760 m from one to the next, 8 % (standard deviation) of the
      backscatter, changing within the hour: edges that mean nothing, as all real profiles have them.
    * Cumulus on 45 % of the days between 10:30 and 17:00, 250 m deep, with its base at 96 % of the mixing height.

    Args:
        seed: Which atmosphere; 0 or more.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._waves = Waves(seed, WAVE_PERIODS_S)

    def truth(self, unix_s: NDArray[np.float64]) -> Truth:
        """The heights at these times.

        Args:
            unix_s: (times,), seconds since 1970-01-01 UTC.
        """
        return _truth(course(self.seed, self._waves, unix_s))

    def attenuated_backscatter(self, unix_s: NDArray[np.float64], range_m: NDArray[np.float64]) -> NDArray[np.float32]:
        """The profiles at these times, without noise.

        Args:
            unix_s: (times,), seconds since 1970-01-01 UTC.
            range_m: (gates,), height above the ground, ascending and evenly spaced.

        Returns:
            (times, gates), m-1 sr-1, float32.
        """
        return self.scene(unix_s, range_m)[1]

    def scene(self, unix_s: NDArray[np.float64], range_m: NDArray[np.float64]) -> tuple[Truth, NDArray[np.float32]]:
        """Returns truth and attenuated_backscatter at once, for half the work."""
        state = course(self.seed, self._waves, unix_s)
        z = np.asarray(range_m, np.float32)
        aerosol = _aerosol_backscatter(state, z)
        molecular = np.float32(MOLECULAR_BACKSCATTER) * np.exp(-z / np.float32(MOLECULAR_SCALE_M))
        extinction = np.float32(AEROSOL_LIDAR_RATIO_SR) * aerosol + np.float32(MOLECULAR_LIDAR_RATIO_SR) * molecular
        backscatter = aerosol + molecular
        if not np.isnan(state.cloud_base_m).all():
            cloud = _cloud_backscatter(state, z)
            extinction += np.float32(CLOUD_LIDAR_RATIO_SR * CLOUD_MULTIPLE_SCATTERING) * cloud
            backscatter += cloud
        return _truth(state), backscatter * two_way_transmission(extinction, z)

    def cover_octas(self, unix_s: float) -> int:
        """Cloud cover in eighths, as an observer would call it for the hour; 0 where the hour has no cumulus."""
        day, share_of_day = divmod(unix_s / DAY_S, 1.0)
        has_cumulus = bool(is_cumulus_time(np.array(share_of_day * 24)))
        return round(8 * draw_day(self.seed, int(day)).cloud_cover) if has_cumulus else 0


def two_way_transmission(extinction: NDArray[np.float32], range_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the way up and back leaves of the light: exp(-2 * integral of extinction), (times, gates).

    Args:
        extinction: (times, gates), m-1.
        range_m: (gates,), evenly spaced, starting near the ground.
    """
    step_m = range_m[1] - range_m[0] if len(range_m) > 1 else range_m[0]
    transmission: NDArray[np.float32] = np.exp(np.float32(-2) * step_m * np.cumsum(extinction, axis=1))
    return transmission


def erf_top(
    z: NDArray[np.float32], top_m: NDArray[np.float32], width_m: NDArray[np.float32] | np.float32
) -> NDArray[np.float32]:
    """1 below a top, 0 above it, in the shape of an error function: (1 - erf((z - top) / (sqrt(2) width))) / 2.

    The error function by Abramowitz and Stegun (1964), formula 7.1.26: wrong by less than 1.5e-7.

    Args:
        z: (gates,), m.
        top_m: (times, 1), m.
        width_m: Standard deviation of the transition, m; (times, 1) or one number.
    """
    x = (z - top_m) / (np.float32(np.sqrt(2)) * width_m)
    magnitude = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * magnitude)
    series = np.float32(1.061405429) * t
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(coefficient)) * t
    tail = np.float32(0.5) * series * np.exp(-np.minimum(magnitude * magnitude, np.float32(80)))
    top: NDArray[np.float32] = np.where(x < 0, 1 - tail, tail)
    return top


def _truth(state: State) -> Truth:
    has_residual = state.residual_height_m > state.mixing_height_m + 50
    return Truth(
        mixing_height_m=state.mixing_height_m,
        residual_layer_height_m=np.where(has_residual, state.residual_height_m, np.nan),
        cloud_base_m=state.cloud_base_m,
    )


def _aerosol_backscatter(state: State, z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Free troposphere + residual layer + mixing layer + lofted layer: (times, gates), m-1 sr-1."""
    free = _column(state.free) * np.exp(-z / np.float32(FREE_SCALE_M))
    height_m, width_m = _column(state.mixing_height_m), _column(state.top_width_m)
    residual_width_m = np.maximum(width_m, np.float32(RESIDUAL_TOP_WIDTH_M))
    in_residual = erf_top(z, _column(state.residual_height_m), residual_width_m)
    aerosol: NDArray[np.float32] = free + _column(state.residual - state.free) * in_residual
    humid = 1 + _column(state.gradient) * np.minimum(z / height_m, np.float32(1))
    aerosol += (_column(state.mixed) * humid - _column(state.residual)) * erf_top(z, height_m, width_m)
    # where the layer is too faint to matter it is left out, for each time alone: company must not change an answer
    lofted = np.where(state.lofted > CLEANEST_AEROSOL, state.lofted, 0)
    if lofted.any():
        distance = (z - _column(state.lofted_height_m)) / np.float32(LOFTED_WIDTH_M)
        aerosol += _column(lofted) * np.exp(np.float32(-0.5) * distance * distance)
    aerosol *= _strata(state, z)
    np.maximum(aerosol, np.float32(CLEANEST_AEROSOL), out=aerosol)
    return aerosol


def _strata(state: State, z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Waves along the height about 1: (times, gates). sin(kz + p) = sin(kz) cos(p) + cos(kz) sin(p) is one product."""
    basis = _strata_basis(len(z), float(z[0]), float(z[-1]))
    phase = state.strata_phase.T.astype(np.float32)
    weights = np.float32(STRATA_AMPLITUDE) * np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    strata: NDArray[np.float32] = np.float32(1) + weights @ basis
    return strata


@lru_cache(maxsize=8)
def _strata_basis(gate_count: int, first_m: float, last_m: float) -> NDArray[np.float32]:
    """Sines and cosines along the height: (2 * strata, gates)."""
    wavelengths_m = np.array(STRATA_WAVELENGTHS_M)[:, None]
    angle = 2 * np.pi * np.linspace(first_m, last_m, gate_count) / wavelengths_m
    return np.concatenate([np.sin(angle), np.cos(angle)]).astype(np.float32)


def _cloud_backscatter(state: State, z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cumulus with soft edges: (times, gates), m-1 sr-1; 0 where there is none."""
    base_m = _column(np.nan_to_num(state.cloud_base_m, nan=NO_HEIGHT_M))
    edge_m = np.float32(CLOUD_EDGE_M)
    above_base = 1 - erf_top(z, base_m, edge_m)
    below_top = erf_top(z, base_m + np.float32(CLOUD_DEPTH_M), edge_m)
    cloud: NDArray[np.float32] = np.float32(CLOUD_BACKSCATTER) * above_base * below_top
    return cloud


def _column(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)[:, None]
