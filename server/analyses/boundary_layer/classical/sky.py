"""Tells profiles with fog, precipitation or unreported droplets from those that can be searched. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.analyses.boundary_layer.classical.layers import Sky

RAIN_BACKSCATTER = 1e-5
"""Mean backscatter of the lowest 300 m, m-1 sr-1, above which it is rain, snow or fog; hazy air has up to 5e-6."""
RAIN_UNDER_CLOUD_BACKSCATTER = 5e-6
"""The same where there is a cloud from which it may fall."""
RAIN_DEPTH_M = 300.0
LOWEST_CLOUD_BASE_M = 60.0
"""A cloud below this is fog."""
DROPLET_BACKSCATTER = 2e-5
"""No aerosol has this, m-1 sr-1."""
DROPLET_CEILING_M = 2500.0
"""Above, the noise of one gate may reach DROPLET_BACKSCATTER."""
CLOUD_MARGIN_M = 60.0
"""So far below a reported cloud base a profile is left out, since droplets begin to grow there."""


def below_cloud(
    beta: NDArray[np.float32], height_m: NDArray[np.float64], cloud_base_m: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The profiles up to their lowest cloud, with NaN from there on.

    Args:
        beta: (profiles, gates), m-1 sr-1.
        height_m: (gates,).
        cloud_base_m: (profiles,); NaN where there is none.
    """
    top_m = np.nan_to_num(cloud_base_m, nan=np.inf)[:, None] - CLOUD_MARGIN_M
    return np.where(height_m < top_m, beta, np.float32(np.nan))


def judge_sky(
    clear: NDArray[np.float32],
    height_m: NDArray[np.float64],
    cloud_base_m: NDArray[np.float32],
    is_obscured: NDArray[np.bool_],
) -> Sky:
    """What is in the way of a retrieval.

    Args:
        clear: (profiles, gates), m-1 sr-1: from below_cloud.
        height_m: (gates,).
        cloud_base_m: (profiles,); NaN where there is none.
        is_obscured: (profiles,): the instrument says that fog or precipitation hides the sky.
    """
    lowest = clear[:, : max(1, int(np.searchsorted(height_m, RAIN_DEPTH_M)))]
    valid = np.isfinite(lowest)
    level = np.where(valid, lowest, 0).sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
    limit = np.where(np.isfinite(cloud_base_m), RAIN_UNDER_CLOUD_BACKSCATTER, RAIN_BACKSCATTER)
    has_droplets = (clear > DROPLET_BACKSCATTER) & (height_m < DROPLET_CEILING_M)
    droplets_m = np.where(has_droplets.any(axis=1), height_m[has_droplets.argmax(axis=1)], np.nan)
    return Sky(
        cloud_base_m=cloud_base_m,
        is_hidden=is_obscured | (level > limit) | (cloud_base_m < LOWEST_CLOUD_BASE_M),
        droplets_m=droplets_m.astype(np.float32),
    )
