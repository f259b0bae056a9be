"""Profiles whose layers are known because they were put there: steps in backscatter, and the noise of a CL51."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fieldpost.telegrams import Profiles
from server.analyses import AnalysisResult

GATE_M, GATE_COUNT = 10.0, 1540
HEIGHT_M: NDArray[np.float64] = (np.arange(GATE_COUNT) + 0.5) * GATE_M
NOISE = 4e-14
EQUINOX_NOON_UNIX_S = 20_167 * 86400.0 + 43200  # 2025-03-20: the sun rises at 6 h and sets at 18 h, everywhere
SITE = (45.0, 0.0)


def layered(
    unix_s: float,
    tops_m: Sequence[float],
    *,
    levels: Sequence[float] = (2e-6, 1e-6, 5e-7),
    free: float = 5e-8,
    cloud_base_m: float = np.nan,
    is_obscured: bool = False,
    gain: float = 1.0,
    noise: float = NOISE,
) -> Profiles:
    """One profile of layers, each up to its top: backscatter `levels` from below, `free` above; the same at a time."""
    beta = np.full(GATE_COUNT, free)
    for top_m, level in reversed(list(zip(tops_m, levels, strict=False))):
        beta[top_m > HEIGHT_M] = level
    random = np.random.default_rng(round(unix_s))
    beta = gain * beta + noise * HEIGHT_M**2 * random.standard_normal(GATE_COUNT)
    return Profiles(
        unix_nanos=np.array([round(unix_s * 1e9)], np.int64),
        height_m=HEIGHT_M,
        beta=beta[None].astype(np.float32),
        cloud_base_m=np.array([[cloud_base_m]], np.float32),
        is_obscured=np.array([is_obscured]),
    )


def column(results: Sequence[AnalysisResult | Exception], name: str) -> NDArray[np.float32]:
    """One variable of all results; raises what stands in the place of one."""
    found = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        found += [variable.values for variable in result.variables if variable.name == name]
    return np.concatenate(found)


def heights(results: Sequence[AnalysisResult | Exception]) -> NDArray[np.float32]:
    """The mixing heights of all results."""
    return column(results, "atmosphere_boundary_layer_thickness")
