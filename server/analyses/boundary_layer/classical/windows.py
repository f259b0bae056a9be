"""Sums and maxima over windows along a profile, each the same whatever profiles stand beside it. Pure numpy."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Values = TypeVar("Values", bound=NDArray[Any])


def weighted_sums(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of weights times values about each place; NaN where the window leaves the profile or holds a NaN.

    Added weight by weight: a product of matrices would round otherwise in another company.

    Args:
        values: (profiles, gates).
        weights: (window,), an odd number, the lowest gate's first.
    """
    sums = np.full(values.shape, np.nan)
    reach = len(weights) // 2
    inside = values.shape[1] - 2 * reach
    if inside > 0:
        total = np.zeros((len(values), inside))
        for shift, weight in enumerate(weights.tolist()):
            total += weight * values[:, shift : shift + inside]
        sums[:, reach : reach + inside] = total
    return sums


def largest_around(values: Values, reach: int) -> Values:
    """The largest value among so many places to either side and the place itself; (profiles, gates), no NaN."""
    padded = np.pad(values, ((0, 0), (reach, reach)), mode="edge")
    largest: Values = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=1).max(axis=-1)
    return largest
