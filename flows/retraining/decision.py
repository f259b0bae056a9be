"""Whether a trained version may take the place of the one at work: decided from scores of days alone. Pure.

The same held-out days are given to both, so that the difficulty of a day cancels out. What is left is chance: which
days were drawn. It is measured by drawing the days again, with replacement, many times (paired bootstrap; Efron and
Tibshirani 1993, An Introduction to the Bootstrap), days and not instants, since the errors of one day go together.

Better: the 95 % interval of the difference over all days lies below zero, by each measure that has to improve. Not
worse: no interval, of any measure in any group, lies above zero. So many intervals are looked at for the second rule
that one of them would lie there by chance: together, not each, they have 95 % (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.analyses.retraining import ALL, DayScore, Measure

RESAMPLES = 4000
DAYS_MIN = 8
"""Of fewer days the bootstrap does not know how different days are."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both versions by one measure in one group.

    Attributes:
        group: ALL, a regime, or a kind of day.
        measure: By what.
        active: The value of the version at work.
        candidate: That of the trained one.
        low: The end of the interval of candidate minus active, from below.
        high: And from above.
        day_count: Days that have instants of the group.
    """

    group: str
    measure: Measure
    active: float
    candidate: float
    low: float
    high: float
    day_count: int

    @property
    def is_known(self) -> bool:
        """Whether there were days enough for an interval."""
        return self.day_count >= DAYS_MIN

    @property
    def is_better(self) -> bool:
        """Whether the candidate is better beyond noise."""
        return self.is_known and self.high < 0

    @property
    def is_worse(self) -> bool:
        """Whether it is worse beyond noise."""
        return self.is_known and self.low > 0

    def __str__(self) -> str:
        values = (
            f"{format_value(self.candidate, self.measure)}, the active one {format_value(self.active, self.measure)}"
        )
        ends = f"{format_value(self.low, self.measure, '+')} to {format_value(self.high, self.measure, '+')}"
        return f"{self.measure.name} ({self.group}, {self.day_count} days): {values}; difference {ends}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of the trained version.

    Attributes:
        is_promoted: Whether it takes the place of the active one.
        reasons: Why, in words with numbers.
        comparisons: All that was looked at.
    """

    is_promoted: bool
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


def decide(scores: Sequence[DayScore], measures: Sequence[Measure], seed: int = 0) -> Decision:
    """Whether the trained version is better beyond noise, and nowhere worse.

    Args:
        scores: Of both versions, by day, group and measure.
        measures: What they are compared by.
        seed: Of the resampling.
    """
    groups = sorted({each.group for each in scores} - {ALL})
    looks = [(group, measure) for group in (ALL, *groups) for measure in measures]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(looks))
    family = [compare(scores, group, measure, confidence, seed) for group, measure in looks]
    wanted = [compare(scores, ALL, measure, CONFIDENCE, seed) for measure in measures if measure.must_improve]
    missing = [f"not better beyond noise: {each}" for each in wanted if each.is_known and not each.is_better]
    unknown = [
        f"too few days to tell: expected {DAYS_MIN}, but got {each.day_count} ({each.measure.name})"
        for each in wanted
        if not each.is_known
    ]
    worse = [f"worse beyond noise: {each}" for each in family if each.is_worse]
    against = (*unknown, *missing, *worse)
    better = tuple(f"better beyond noise: {each}" for each in wanted)
    return Decision(not against, against or better, tuple(family))


def compare(scores: Sequence[DayScore], group: str, measure: Measure, confidence: float, seed: int) -> Comparison:
    """Compares both by one measure in one group."""
    mine = [each for each in scores if (each.group, each.measure) == (group, measure.name) and each.divisor > 0]
    if not mine:
        nothing = float("nan")
        return Comparison(group, measure, nothing, nothing, nothing, nothing, 0)
    days = {day: place for place, day in enumerate(sorted({each.day for each in mine}))}
    sums = np.zeros((len(days), 3))
    for each in mine:
        sums[days[each.day]] += (each.active, each.candidate, each.divisor)
    active, candidate = _values(sums.sum(axis=0)[None], measure)[0]
    drawn = np.random.default_rng(seed).multinomial(len(days), np.full(len(days), 1 / len(days)), RESAMPLES)
    resampled = _values(drawn @ sums, measure)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled[:, 1] - resampled[:, 0], [tail, 1 - tail])
    return Comparison(group, measure, float(active), float(candidate), float(low), float(high), len(days))


def _values(sums: NDArray[np.float64], measure: Measure) -> NDArray[np.float64]:
    """Of (resamples, 3) sums the values of both versions: (resamples, 2)."""
    distance = np.abs(sums[:, :2] / sums[:, 2:] - measure.target)
    return np.sqrt(distance) if measure.is_root else distance


def format_value(value: float, measure: Measure, sign: str = "") -> str:
    """A value in its unit, or in per cent; with sign "+" always with its sign."""
    return f"{value:{sign}.1f} {measure.unit}" if measure.unit else f"{value:{sign}.1%}"
