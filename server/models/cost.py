"""From measured times of batches to what a model costs and how large its batches should be. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEARLY_BEST_RATIO = 1.05
"""A smaller batch is preferred to one that is faster by no more than this: it answers sooner."""


BATCH_OVERHEAD_S = 0.0004
"""What a batch costs outside the model: the server's loop, the pipe, two wakings of a process. Measured; the trial, in
which there is none of this, would take batches of 8 for as good as batches of 64 of a quick model."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a batch took."""

    count: int
    duration_s: float


def fit_cost(timings: Sequence[Timing]) -> tuple[float, float]:
    """What a batch costs however small it is, and what each observation adds, in s.

    Least squares on relative errors, so that the large batches do not speak for the small ones; never negative.
    """
    if len(timings) == 1:
        return 0.0, timings[0].duration_s / timings[0].count
    weights = [1 / max(each.duration_s, 1e-9) ** 2 for each in timings]
    total = sum(weights)
    mean_count = sum(w * each.count for w, each in zip(weights, timings, strict=True)) / total
    mean_s = sum(w * each.duration_s for w, each in zip(weights, timings, strict=True)) / total
    covariance = sum(
        w * (each.count - mean_count) * (each.duration_s - mean_s) for w, each in zip(weights, timings, strict=True)
    )
    variance = sum(w * (each.count - mean_count) ** 2 for w, each in zip(weights, timings, strict=True))
    observation_s = max(0.0, covariance / variance)
    fixed_s = mean_s - observation_s * mean_count
    if fixed_s < 0:  # through the origin then
        return 0.0, sum(w * each.count * each.duration_s for w, each in zip(weights, timings, strict=True)) / sum(
            w * each.count**2 for w, each in zip(weights, timings, strict=True)
        )
    return fixed_s, observation_s


def choose_batch_max(timings: Sequence[Timing]) -> int:
    """The smallest measured batch that is nearly as fast for each observation as the fastest."""
    each_s = {timing.count: (BATCH_OVERHEAD_S + timing.duration_s) / timing.count for timing in timings}
    best_s = min(each_s.values())
    return min(count for count, duration_s in each_s.items() if duration_s <= best_s * NEARLY_BEST_RATIO)
