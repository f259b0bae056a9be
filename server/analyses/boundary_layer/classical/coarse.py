"""Profiles of any instrument on one even grid of heights, and their running means: what versions 3 and 4 remember.

What is remembered of an instrument should not depend on its gates, and not be large. Knows no method of retrieval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.analyses.boundary_layer.classical.batch import CEILING_M, EDGE_ROOM_M, Group
from server.analyses.boundary_layer.classical.layers import Sky

LEVEL_M = 20.0
LEVEL_COUNT = int((CEILING_M + EDGE_ROOM_M) / LEVEL_M)
LEVELS_M: NDArray[np.float64] = (np.arange(LEVEL_COUNT, dtype=np.float64) + 0.5) * LEVEL_M
"""Centres of the levels, m."""
MIN_VALID_SHARE = 0.5
"""A level of which less than this was measured has nothing."""
NANOS = 1e9


@dataclass(frozen=True, slots=True)
class CoarseProfiles:
    """Profiles on the levels.

    Attributes:
        unix_s: (profiles,), float64.
        beta: (profiles, LEVEL_COUNT), float32, m-1 sr-1: means below the lowest cloud; NaN in it and above.
        noise_variance: (profiles,), m-6 sr-2: variance of a level before range correction.
        sky: Of each profile.
    """

    unix_s: NDArray[np.float64]
    beta: NDArray[np.float32]
    noise_variance: NDArray[np.float64]
    sky: Sky

    def take(self, order: NDArray[np.intp]) -> CoarseProfiles:
        """Those at these places."""
        return CoarseProfiles(
            self.unix_s[order],
            self.beta[order],
            self.noise_variance[order],
            Sky(self.sky.cloud_base_m[order], self.sky.is_hidden[order], self.sky.droplets_m[order]),
        )


def coarsen(group: Group) -> CoarseProfiles:
    """Brings profiles of one grid onto the levels; each alone, so that company makes no difference."""
    clear, sky = group.screened()
    is_there = np.isfinite(clear)
    total = _means(np.where(is_there, clear, 0), group)
    share = _means(is_there.astype(np.float64), group)
    beta = np.where(share >= MIN_VALID_SHARE, total / np.maximum(share, MIN_VALID_SHARE), np.nan)
    return CoarseProfiles(
        unix_s=group.unix_nanos / NANOS,
        beta=beta.astype(np.float32),
        noise_variance=np.square(group.noise) * min(1.0, group.gate_m / LEVEL_M),
        sky=sky,
    )


def join(parts: list[CoarseProfiles]) -> CoarseProfiles:
    """One after the other."""
    skies = [part.sky for part in parts]
    return CoarseProfiles(
        np.concatenate([part.unix_s for part in parts]),
        np.concatenate([part.beta for part in parts]),
        np.concatenate([part.noise_variance for part in parts]),
        Sky(
            np.concatenate([sky.cloud_base_m for sky in skies]),
            np.concatenate([sky.is_hidden for sky in skies]),
            np.concatenate([sky.droplets_m for sky in skies]),
        ),
    )


def _means(values: NDArray[np.float64], group: Group) -> NDArray[np.float64]:
    """Means over the levels of what is constant over each gate: (profiles, LEVEL_COUNT); 0 beyond the gates.

    The integral from the ground is linear between the ends of gates, so a mean is the difference of two of its values.
    """
    integral = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=integral[:, 1:])
    bottom_m = float(group.searched_m[0]) - group.gate_m / 2
    place = np.clip((np.arange(LEVEL_COUNT + 1) * LEVEL_M - bottom_m) / group.gate_m, 0, values.shape[1])
    below = np.minimum(place.astype(np.intp), values.shape[1] - 1)
    share = place - below
    at_ends = integral[:, below] * (1 - share) + integral[:, below + 1] * share
    means: NDArray[np.float64] = np.diff(at_ends, axis=1) * (group.gate_m / LEVEL_M)
    return means
