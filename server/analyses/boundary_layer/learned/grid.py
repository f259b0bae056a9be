"""The one grid of heights on which the learned retrieval sees every instrument, and how profiles are brought onto it.

Gates grow with height, as layers' edges do: 10 m at the ground, 27 m at 1 km, 92 m at the top. Knows no network.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GATE_COUNT = 128
FIRST_GATE_M = 10.0
GATE_RATIO = 1.0175
"""Each gate is wider than the one below by this factor."""
GATES_KEPT = 64
"""Matrices kept: an instrument whose tilt changes with each file makes many."""

EDGES_M = np.asarray(FIRST_GATE_M * (GATE_RATIO ** np.arange(GATE_COUNT + 1) - 1) / (GATE_RATIO - 1), np.float64)
"""(GATE_COUNT + 1,): where gates begin and end, m above the instrument."""
WIDTHS_M: NDArray[np.float64] = np.diff(EDGES_M)
CENTRES_M: NDArray[np.float64] = (EDGES_M[:-1] + EDGES_M[1:]) / 2
TOP_M = float(EDGES_M[-1])
"""About 4.7 km: layers above are not seen."""


def to_grid(beta: NDArray[np.float32], height_m: NDArray[np.float64]) -> NDArray[np.float32]:
    """Means over the grid's gates.

    Args:
        beta: (profiles, gates), m-1 sr-1; NaN where missing.
        height_m: (gates,): centres of the instrument's gates, ascending and evenly spaced.

    Returns:
        (profiles, GATE_COUNT), m-1 sr-1; 0 where the instrument has nothing.
    """
    matrix = _matrix(len(height_m), float(height_m[0]), float(height_m[-1]))
    used = beta[:, : len(matrix)]
    missing = np.isnan(used)
    if not missing.any():
        whole: NDArray[np.float32] = used @ matrix
        return whole
    share = (~missing).astype(np.float32) @ matrix
    means = np.where(missing, np.float32(0), used) @ matrix
    divided: NDArray[np.float32] = np.divide(means, share, out=np.zeros_like(means), where=share > 0.5)
    return divided


def reach(height_m: NDArray[np.float64]) -> int:
    """How many of the grid's gates, from the ground up, the instrument sees."""
    gate_m = float(height_m[1] - height_m[0])
    return int(np.searchsorted(EDGES_M[1:], height_m[-1] + gate_m / 2, side="right"))


@lru_cache(maxsize=GATES_KEPT)
def _matrix(gate_count: int, first_m: float, last_m: float) -> NDArray[np.float32]:
    """What each of the instrument's gates adds to each of the grid's: (gates within the grid, GATE_COUNT)."""
    gate_m = (last_m - first_m) / (gate_count - 1)
    lower = first_m - gate_m / 2 + gate_m * np.arange(gate_count)
    lower = lower[lower < TOP_M]
    upper = lower + gate_m
    lower[0] = min(lower[0], 0.0)  # what lies below the first gate is taken to be like it
    overlap = np.minimum(upper[:, None], EDGES_M[1:]) - np.maximum(lower[:, None], EDGES_M[:-1])
    matrix: NDArray[np.float32] = (np.maximum(overlap, 0) / WIDTHS_M).astype(np.float32)
    return matrix
