"""Sums over the last slots of time, so that a mean or a variance over them is known at any profile.

Part of the state of the versions that remember: one record of fixed size, however often an instrument measures. Knows
no method of retrieval.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.analyses.boundary_layer.classical.coarse import LEVEL_COUNT

SUMS = ("profile_count", "noise_variance", "count", "total")


def slot_fields(slot_count: int) -> list[tuple[str, str, int | tuple[int, int]]]:
    """The fields of a record that holds so many slots, the newest last.

    `slot` numbers them since 1970, 0 where there is none; `profile_count` and `noise_variance` (a sum) are of a slot's
    profiles, `count` and `total` of their backscatter at each level.
    """
    return [
        ("slot", "<i8", slot_count),
        ("profile_count", "<u4", slot_count),
        ("noise_variance", "<f8", slot_count),
        ("count", "<u2", (slot_count, LEVEL_COUNT)),
        ("total", "<f4", (slot_count, LEVEL_COUNT)),
    ]


def remember(memory: NDArray[np.void], slot: int, beta: NDArray[np.float32], noise_variance: float) -> bool:
    """Adds a profile to its slot, or to the newest if that is later; True where the slot is new."""
    is_new = bool(slot > memory["slot"][-1])
    if is_new:
        for name in ("slot", *SUMS):
            memory[name][:-1] = memory[name][1:]
            memory[name][-1] = 0
        memory["slot"][-1] = slot
    is_there = np.isfinite(beta)
    memory["profile_count"][-1] += 1
    memory["noise_variance"][-1] += noise_variance
    memory["count"][-1] += is_there
    memory["total"][-1] += np.where(is_there, beta, 0)
    return is_new


def recent_mean(memory: NDArray[np.void], slot_count: int) -> tuple[NDArray[np.float64], float]:
    """Mean profile of the newest slots, and the standard deviation of its noise before range correction.

    A level that is missing in half of the profiles is no part of it: a cloud that comes and goes would make an edge.

    Returns:
        (LEVEL_COUNT,), m-1 sr-1, NaN where missing; and m-3 sr-1.
    """
    recent = memory["slot"] > memory["slot"][-1] - slot_count
    count = memory["count"][recent].sum(axis=0)
    profile_count = int(memory["profile_count"][recent].sum())
    total = memory["total"][recent].sum(axis=0, dtype=np.float64)
    mean = np.where(count > profile_count / 2, total / np.maximum(count, 1), np.nan)
    return mean, float(np.sqrt(memory["noise_variance"][recent].sum()) / profile_count)
