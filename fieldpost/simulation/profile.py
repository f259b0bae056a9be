"""The optics: from layers, clouds, rain and fog to attenuated backscatter on a height grid.

Knows no time of day and no instrument: no noise and no overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.course import State
from fieldpost.simulation.sky import Layers, Sky

AEROSOL_LIDAR_RATIO_SR = 45.0
"""Extinction over backscatter; 40 to 60 sr for continental aerosol near 1 µm (Wiegner et al. 2014, AMT 7, 1979)."""
CLOUD_LIDAR_RATIO_SR = 18.8
"""For droplets (O'Connor et al. 2004, JTECH 21, 777); taken for fog and rain too."""
CLOUD_MULTIPLE_SCATTERING = 0.7
"""Share of the extinction that counts: forward-scattered light comes back too (same source)."""
CLOUD_EDGE_M, FOG_EDGE_M, RAIN_EDGE_M, VIRGA_EDGE_M = 25.0, 20.0, 40.0, 150.0
MOLECULAR_BACKSCATTER_532 = 1.54e-6
"""At the surface, m-1 sr-1 (Bucholtz 1995, Appl. Opt. 34, 2765); it falls with the wavelength to the power of 4.09."""
MOLECULAR_LIDAR_RATIO_SR = 8 * np.pi / 3
ANGSTROM_EXPONENT = 1.2
"""Of the aerosol's backscatter, from 910 nm; 1 to 1.5 is usual for continental aerosol (assumption)."""
REFERENCE_NM = 910.0
MOLECULAR_SCALE_M, FREE_SCALE_M = 8000.0, 2500.0
CIRRUS_EXTINCTION_SR = 20.0
RESIDUAL_STEP_WIDTH_M, SECOND_STEP_WIDTH_SHARE, LOFTED_EDGE_SHARE = 40.0, 0.12, 0.25
STREAK_DEPTH, STREAK_LENGTHS_M, RAIN_FALLS_M_PER_S = 0.3, (90.0, 230.0), 5.0
CALM = 0.7
"""Share of the strata that convection takes out of the mixing layer."""
CLEANEST_AEROSOL = 1e-9
BLOCK = 48
"""Profiles worked on at once: so many of 1540 gates stay within the processor's cache."""
F = np.float32
Array = NDArray[np.float32]


def molecular_backscatter(wavelength_nm: float) -> float:
    """At the surface, m-1 sr-1."""
    return float(MOLECULAR_BACKSCATTER_532 * (532 / wavelength_nm) ** 4.09)


def attenuated_backscatter(
    unix_s: NDArray[np.float64],
    state: State,
    sky: Sky,
    textures: tuple[tuple[Array, Array], tuple[Array, Array]],
    z: Array,
    wavelength_nm: float,
) -> Array:
    """The profiles without noise.

    Args:
        unix_s: (times,), seconds since 1970.
        state: The layers at these times.
        sky: The sky at these times.
        textures: Of plumes and of strata: (times, waves) and (waves, gates), whose product has standard deviation 1.
        z: (gates,), m, evenly spaced.
        wavelength_nm: Of the instrument.

    Returns:
        (times, gates), m-1 sr-1, float32.
    """
    result = np.empty((len(unix_s), len(z)), np.float32)
    molecular = F(molecular_backscatter(wavelength_nm)) * np.exp(-z / F(MOLECULAR_SCALE_M))
    colour = F((REFERENCE_NM / wavelength_nm) ** ANGSTROM_EXPONENT)
    for first in range(0, len(unix_s), BLOCK):
        which = slice(first, first + BLOCK)
        fields = [left[which] @ right for left, right in textures]
        aerosol = aerosol_backscatter(
            state.rows(which), sky.lofted[0].rows(which), sky.lofted[1].rows(which), fields, z
        )
        aerosol *= colour
        extinction = F(AEROSOL_LIDAR_RATIO_SR) * aerosol
        extinction += F(MOLECULAR_LIDAR_RATIO_SR) * molecular
        aerosol += molecular
        add_hydrometeors(aerosol, extinction, unix_s[which], sky.rows(which), z)
        np.multiply(aerosol, two_way_transmission(extinction, z), out=result[which])
    return result


def two_way_transmission(extinction: Array, range_m: Array) -> Array:
    """What the way up and back leaves of the light: exp(-2 * integral of extinction), (times, gates).

    Args:
        extinction: (times, gates), m-1.
        range_m: (gates,), evenly spaced, starting near the ground.
    """
    step_m = range_m[1] - range_m[0] if len(range_m) > 1 else range_m[0]
    transmission: Array = np.cumsum(extinction, axis=1)
    transmission *= F(-2) * F(step_m)
    np.exp(transmission, out=transmission)
    return transmission


def erf_top(z: Array, top_m: Array, width_m: Array | np.float32) -> Array:
    """1 below a top, 0 above it, in the shape of an error function: (1 - erf((z - top) / (sqrt(2) width))) / 2.

    The error function by Abramowitz and Stegun (1964), formula 7.1.26: wrong by less than 1.5e-7.

    Args:
        z: (gates,), m.
        top_m: (times, 1), m.
        width_m: Standard deviation of the transition, m; (times, 1) or one number.
    """
    x = z - top_m
    x *= 1 / (F(np.sqrt(2)) * width_m)
    is_below = x < 0
    np.abs(x, out=x)
    np.minimum(x, F(9), out=x)
    t = x * F(0.3275911)
    t += F(1)
    np.divide(F(1), t, out=t)
    series = F(1.061405429) * t
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series += F(coefficient)
        series *= t
    np.square(x, out=x)
    np.negative(x, out=x)
    np.exp(x, out=x)
    series *= x
    series *= F(0.5)
    np.subtract(F(1), series, out=series, where=is_below)
    return series


def aerosol_backscatter(state: State, lofted: Layers, other: Layers, textures: list[Array], z: Array) -> Array:
    """Free troposphere, residual layer, mixing layer, lofted layers: (times, gates), m-1 sr-1.

    Each height has a share of each: the mixing layer's is its erf-shaped top, the residual layer's what its own top
    adds to that. So where the layer has just collapsed nothing shows.
    """
    in_mixed = erf_top(z, column(state.seen_height_m), column(state.top_width_m))
    residual = erf_top(z, column(state.residual_height_m), column(state.residual_width_m))
    residual -= in_mixed
    np.maximum(residual, F(0), out=residual)
    free = column(state.free) * np.exp(-z / F(FREE_SCALE_M))
    above = 1 - in_mixed
    above -= residual
    aerosol: Array = free * above
    _add_residual_step(residual, state, z)
    residual *= column(state.residual)
    residual += column(state.mixed) * in_mixed
    gain = column(state.humidity_gain)
    humid = column(state.humidity_curvature) * np.square(z)
    np.clip(humid, np.minimum(gain, F(0)), np.maximum(gain, F(0)), out=humid)
    humid += F(1)
    residual *= humid
    aerosol += residual
    _add_second_step(aerosol, state, z)
    for layers in (lofted, other):
        _add_lofted(aerosol, layers, in_mixed, z)
    plumes, strata = textures
    plumes *= column(state.plume_share)
    plumes -= F(CALM) * column(state.activity * state.strata_share) * strata
    plumes *= in_mixed
    strata *= column(state.strata_share)
    plumes += strata
    plumes += F(1)
    aerosol *= plumes
    np.maximum(aerosol, F(CLEANEST_AEROSOL), out=aerosol)
    return aerosol


def add_hydrometeors(backscatter: Array, extinction: Array, unix_s: NDArray[np.float64], sky: Sky, z: Array) -> None:
    """Adds clouds, rain and fog, in place, to the profiles that have them."""
    droplets = F(CLOUD_LIDAR_RATIO_SR * CLOUD_MULTIPLE_SCATTERING)
    for cloud in (sky.low, sky.middle):
        rows = np.flatnonzero(cloud.backscatter > 0)
        if len(rows):
            edge_m = F(CLOUD_EDGE_M)
            part = column(cloud.backscatter[rows]) * (
                erf_top(z, column(cloud.top_m[rows]), edge_m) - erf_top(z, column(cloud.base_m[rows]), edge_m)
            )
            np.maximum(part, F(0), out=part)
            _add(backscatter, extinction, rows, part, droplets)
    rows = np.flatnonzero(sky.cirrus.backscatter > 0)
    if len(rows) and z[-1] > 6000:
        centre_m = (sky.cirrus.top_m[rows] + sky.cirrus.base_m[rows]) / 2
        distance = (z - column(centre_m)) / column((sky.cirrus.top_m[rows] - sky.cirrus.base_m[rows]) / 2)
        part = column(sky.cirrus.backscatter[rows]) * np.exp(F(-0.7) * distance * distance)
        _add(backscatter, extinction, rows, part, F(CIRRUS_EXTINCTION_SR))
    rows = np.flatnonzero(sky.rain.backscatter > 0)
    if len(rows):
        _add(backscatter, extinction, rows, _rain(unix_s[rows], sky, rows, z), droplets)
    rows = np.flatnonzero(sky.fog.backscatter > 0)
    if len(rows):
        top_m = column(sky.fog.top_m[rows])
        part = column(sky.fog.backscatter[rows]) * erf_top(z, top_m, np.maximum(top_m * F(0.15), F(FOG_EDGE_M)))
        _add(backscatter, extinction, rows, part, droplets)


def column(values: NDArray[np.float64]) -> Array:
    """(times,) as (times, 1), float32."""
    return values.astype(np.float32)[:, None]


def _add(backscatter: Array, extinction: Array, rows: NDArray[np.int64], part: Array, ratio_sr: np.float32) -> None:
    backscatter[rows] += part
    extinction[rows] += ratio_sr * part


def _add_residual_step(residual: Array, state: State, z: Array) -> None:
    rows = np.flatnonzero(state.residual_step != 0)
    if len(rows):
        below = erf_top(z, column(state.residual_step_height_m[rows]), F(RESIDUAL_STEP_WIDTH_M))
        residual[rows] *= 1 + column(state.residual_step[rows]) * (1 - below)


def _add_second_step(aerosol: Array, state: State, z: Array) -> None:
    rows = np.flatnonzero(state.second > 0)
    if len(rows):
        top_m = column(state.second_height_m[rows])
        low = z < F(1.6 * float(top_m.max()) + 50)
        step = erf_top(z[low], top_m, np.maximum(top_m * F(SECOND_STEP_WIDTH_SHARE), F(10)))
        aerosol[rows, : step.shape[1]] += column(state.second[rows]) * step


def _add_lofted(aerosol: Array, layers: Layers, in_mixed: Array, z: Array) -> None:
    """Where it touches the mixing layer it is entrained, and shows no longer."""
    rows = np.flatnonzero(layers.backscatter > CLEANEST_AEROSOL)
    if len(rows):
        edge_m = np.maximum(column((layers.top_m[rows] - layers.base_m[rows]) / 2) * F(LOFTED_EDGE_SHARE), F(15))
        part = erf_top(z, column(layers.top_m[rows]), edge_m) - erf_top(z, column(layers.base_m[rows]), edge_m)
        part *= column(layers.backscatter[rows]) * (1 - in_mixed[rows])
        aerosol[rows] += np.maximum(part, F(0))


def _rain(unix_s: NDArray[np.float64], sky: Sky, rows: NDArray[np.int64], z: Array) -> Array:
    """Rain with fall streaks: what is above now was below a moment later."""
    rain = column(sky.rain.backscatter[rows]) * erf_top(z, column(sky.rain.top_m[rows]), F(RAIN_EDGE_M))
    evaporated = sky.rain.base_m[rows] > 0
    if evaporated.any():
        virga = 1 - erf_top(z, column(sky.rain.base_m[rows][evaporated]), F(VIRGA_EDGE_M))
        rain[evaporated] *= virga
    for length_m in STREAK_LENGTHS_M:
        # the phase in double precision: seconds since 1970 leave float32 no fractions
        phase = (2 * np.pi / length_m * RAIN_FALLS_M_PER_S * unix_s) % (2 * np.pi)
        rain *= 1 + F(STREAK_DEPTH) * np.sin(F(2 * np.pi / length_m) * z + column(phase))
    return rain
