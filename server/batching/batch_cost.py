"""What a batch of a model version costs in time and memory, learnt from the batches that were run.

Pure: it is told what was measured, and knows neither clock nor worker.
"""

from __future__ import annotations

FORGET_RATIO = 0.95
"""What a measurement still counts after the next one: the last twenty or so make the estimate."""
OUTLIER_RATIO = 4.0
"""A batch that took so many times the expected, or that part of it, counts as no more: one hiccup is not news."""
PRIOR_WEIGHT = 2.0
"""Measurements that the figures of the trial are worth, at either end."""
SPREAD_RATIO_MIN = 0.05
"""Batches whose sizes differ less than this cannot tell the fixed time from that of each observation."""
DURATION_S_MIN = 1e-5
GROW_AFTER_MIN = 32
GROW_AFTER_MAX = 4096


class BatchCost:
    """The time of a batch: fixed_s + each_s * count, a running least-squares line over recent batches.

    Args:
        fixed_s: From the trial; 0 where there was none.
        each_s: From the trial; 0 where there was none.
        count_max: The largest batch of the trial.
    """

    def __init__(self, fixed_s: float = 0.0, each_s: float = 0.0, count_max: int = 64) -> None:
        self.fixed_s = fixed_s
        self.each_s = each_s
        self._last_direction = 0
        # Weighted sums: of 1, count, count², seconds, count * seconds.
        self._sums = [0.0] * 5
        if fixed_s + each_s > 0:
            for count in (1, count_max):
                self._add(count, self.estimate(count), PRIOR_WEIGHT)

    def estimate(self, count: int) -> float:
        """Seconds that a batch of so many will take; 0 where nothing is known."""
        return self.fixed_s + self.each_s * count

    def count_within(self, seconds: float) -> int:
        """The largest batch that takes no longer than this, but 1 at least."""
        if self.each_s <= 0:
            return 2**31 if self.fixed_s <= seconds else 1
        return max(1, int(min((seconds - self.fixed_s) / self.each_s, 2**31)))

    def note(self, count: int, duration_s: float) -> None:
        """Learns from a batch that was run."""
        duration_s = max(duration_s, DURATION_S_MIN)
        if self._sums[0] > 0:
            expected_s = max(self.estimate(count), DURATION_S_MIN)
            slower, faster = duration_s > OUTLIER_RATIO * expected_s, duration_s * OUTLIER_RATIO < expected_s
            direction = slower - faster
            if direction and direction == self._last_direction:
                self._sums = [each / 2 for each in self._sums]  # the second in a row: it is the past that was odd
            else:
                duration_s = min(max(duration_s, expected_s / OUTLIER_RATIO), OUTLIER_RATIO * expected_s)
            self._last_direction = direction
        self._sums = [each * FORGET_RATIO for each in self._sums]
        self._add(count, duration_s, 1.0)
        self._fit()

    def _add(self, count: int, duration_s: float, weight: float) -> None:
        terms = (1, count, count * count, duration_s, count * duration_s)
        self._sums = [total + weight * term for total, term in zip(self._sums, terms, strict=True)]

    def _fit(self) -> None:
        weight, counts, squares, seconds, products = self._sums
        mean_count, mean_s = counts / weight, seconds / weight
        variance = squares / weight - mean_count**2
        if variance > (SPREAD_RATIO_MIN * mean_count) ** 2:
            slope = (products / weight - mean_count * mean_s) / variance
            self.each_s = min(max(slope, 0.0), mean_s / mean_count)  # neither part of the time is negative
            self.fixed_s = max(mean_s - self.each_s * mean_count, 0.0)
        elif (known_s := self.estimate(1)) > 0:
            ratio = mean_s / (known_s + self.each_s * (mean_count - 1))
            self.fixed_s, self.each_s = self.fixed_s * ratio, self.each_s * ratio
        else:
            self.fixed_s, self.each_s = mean_s / 2, mean_s / 2 / mean_count


class CountCap:
    """How many observations a batch may have without running out of memory.

    Args:
        count_max: Where it begins, and never goes beyond.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self.count = count_max
        self._successes = 0
        self._grow_after = GROW_AFTER_MIN

    def note_out_of_memory(self, count: int) -> None:
        """A batch of so many did not fit: half of it may. It grows back, the more slowly the oftener this happens."""
        self.count = max(1, min(self.count, count // 2))
        self._successes = 0
        self._grow_after = min(2 * self._grow_after, GROW_AFTER_MAX)

    def take_back(self, times: int) -> None:
        """An observation does not fit even alone: it was to blame that so many batches did not."""
        self.count = min(self._count_max, self.count << times)
        self._grow_after = max(GROW_AFTER_MIN, self._grow_after >> times)

    def note_success(self, count: int) -> None:
        """A batch of so many did fit."""
        if self.count < self._count_max and count >= self.count:
            self._successes += 1
            if self._successes >= self._grow_after:
                self._successes = 0
                self.count = min(self._count_max, self.count + max(1, self.count // 8))
