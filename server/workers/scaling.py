"""How many workers there should be, from how long the oldest observation waits and how busy they are. Pure.

- Up: as soon as the oldest has waited longer than a bound and every worker that there is has started; as many again as
  there are, up to the most. A worker that is still starting has not helped yet, so nothing is added meanwhile.
- Down: one at a time, after a quiet time in which nothing waited long and the work done would have kept the others busy
  for less than a bound of their time. Without this second condition a load that needs three workers would lose and
  regain one for ever.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScalingBounds:
    """When to change.

    Attributes:
        workers_min: Never fewer.
        workers_max: Never more.
        oldest_max_s: More workers where the oldest waits longer.
        quiet_s: One worker fewer after this time at the earliest, and again after it.
        busy_max_ratio: Of their time, for which the remaining workers may be busy.
    """

    workers_min: int
    workers_max: int
    oldest_max_s: float = 2.0
    quiet_s: float = 60.0
    busy_max_ratio: float = 0.7


@dataclass(frozen=True, slots=True)
class Load:
    """What is seen at a moment.

    Attributes:
        now_s: The moment.
        oldest_s: How long the oldest observation has waited; 0 where nothing waits.
        waiting_count: Observations that wait.
        worker_count: Workers that there are, those that start included.
        starting_count: Workers that do not take work yet.
        busy_s: How long all workers together have computed since they began; also those that are gone.
    """

    now_s: float
    oldest_s: float
    waiting_count: int
    worker_count: int
    starting_count: int
    busy_s: float


class Scaling:
    """Decides for the workers of one kind; told of the load about once a second."""

    def __init__(self, bounds: ScalingBounds) -> None:
        self._bounds = bounds
        self._quiet_since: Load | None = None

    def decide(self, load: Load) -> int:
        """How many workers there should be now."""
        bounds = self._bounds
        count = min(max(load.worker_count, bounds.workers_min), bounds.workers_max)
        if load.waiting_count and load.oldest_s > bounds.oldest_max_s:
            self._quiet_since = None
            return count if load.starting_count else min(2 * count, bounds.workers_max)
        if count != load.worker_count or self._quiet_since is None:
            self._quiet_since = load
            return count
        since = self._quiet_since
        if load.now_s - since.now_s < bounds.quiet_s:
            return count
        self._quiet_since = load
        mean_busy = (load.busy_s - since.busy_s) / (load.now_s - since.now_s)
        has_too_many = count > bounds.workers_min and mean_busy <= bounds.busy_max_ratio * (count - 1)
        return count - 1 if has_too_many else count
