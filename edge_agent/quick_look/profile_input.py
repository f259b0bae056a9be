"""Turns decoded profiles of any ceilometer into the one grid that a model reads. Knows no model and no telegram.

Runs in the child process and in the recipe that trains the model: both must see the very same numbers. Needs numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_agent.quick_look.manifest import CHANNELS, InputGrid
from fieldpost.telegrams import Profiles, estimate_noise

ASINH_DIVISOR = np.float32(4.0)
"""Brings asinh(1e-4 / 1e-7), a cloud, to about 2."""


def to_input(profiles: Profiles, grid: InputGrid) -> NDArray[np.float32]:
    """What the model reads of each profile.

    asinh(x) is x near nothing and a logarithm far from it: noise stays as it is, with both signs, and a cloud does not
    drown the rest. Above the instrument's range everything is 0.

    Returns:
        (profiles, channels, gates), float32; channels in the order of CHANNELS: asinh(backscatter / scale) / 4,
        asinh(backscatter / noise) / 4, and 1 below the lowest cloud that the instrument reports, else 0.
    """
    noise = estimate_noise(profiles.beta, profiles.height_m)
    gate_m = float(profiles.height_m[1] - profiles.height_m[0])
    edges_m = np.linspace(0.0, grid.gate_count * grid.gate_m, grid.gate_count + 1)
    centres_m = edges_m[:-1] + grid.gate_m / 2
    beta = average_over(profiles.beta, float(profiles.height_m[0]) - gate_m / 2, gate_m, edges_m)
    # noise is even before range correction; a mean over n gates has 1 / sqrt(n) of it
    noise_share = np.sqrt(min(1.0, gate_m / grid.gate_m))
    sigma = noise[:, None] * np.square(centres_m) * noise_share
    top_m = float(profiles.height_m[-1]) + gate_m / 2
    in_range = edges_m[1:] <= top_m
    cloud_m = np.nan_to_num(profiles.lowest_cloud_base_m, nan=np.inf)[:, None]

    result = np.zeros((len(beta), len(CHANNELS), grid.gate_count), np.float32)
    result[:, 0] = np.arcsinh(beta / grid.backscatter_scale) / ASINH_DIVISOR * in_range
    result[:, 1] = np.arcsinh(beta / sigma) / ASINH_DIVISOR * in_range
    result[:, 2] = (edges_m[1:] <= cloud_m) & in_range
    return result


def average_over(
    values: NDArray[np.floating], bottom_m: float, gate_m: float, edges_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Means between the edges, whether the gates are finer or coarser: (profiles, edges - 1).

    The integral from the bottom is known at the gates' own edges, and is a straight line between them.

    Args:
        values: (profiles, gates).
        bottom_m: Lower edge of the first gate.
        gate_m: Width of a gate.
        edges_m: Ascending; beyond the gates the values count as 0.
    """
    integral = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, dtype=np.float64, out=integral[:, 1:])
    place = np.clip((edges_m - bottom_m) / gate_m, 0, values.shape[1])
    below = np.minimum(place.astype(np.int64), values.shape[1] - 1)
    at_edges = integral[:, below] + (place - below) * (integral[:, below + 1] - integral[:, below])
    means: NDArray[np.float64] = np.diff(at_edges, axis=1) * (gate_m / np.diff(edges_m))
    return means
