"""Whether a version that has just become active should go again: decided from counts and times alone. Pure.

Failing observations: the share of the new version has to be larger than that of the one before beyond any doubt: the
lower bound of the one above the upper bound of the other, each at three standard deviations (Wilson's interval, which
is right for small counts and shares near 0 too). One bound alone would be crossed by chance now and then, since this
is asked every few seconds.

Deaths: whatever kills one worker after the other is not waited for until twenty observations are given up, which may
take an hour where each hangs for a minute.

Time: a version may be slower than the one before; whoever activated it saw that in its trial. It goes when it is much
slower than both its own trial and the version before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

OBSERVATIONS_MIN = 20
DEATHS_IN_A_ROW_MAX = 6
"""Workers lost without one batch computed in between. One observation that kills takes three."""
DEVIATIONS = 3.0
FAILURE_SHARE_ALWAYS_FINE = 0.01
FAILURE_SHARE_WITHOUT_HISTORY = 0.5
SLOWER_RATIO_MAX = 3.0


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a version has done.

    Attributes:
        predicted_count: Observations that it has answered.
        failed_count: Observations that it has not: it broke, hung or refused.
        observation_s: Its time for an observation in a full batch; NaN where that is not known.
        deaths_in_a_row: Workers that died or hung with its newest batches, none of which was computed.
    """

    predicted_count: int
    failed_count: int
    observation_s: float = float("nan")
    deaths_in_a_row: int = 0

    @property
    def count(self) -> int:
        """Observations that it was given."""
        return self.predicted_count + self.failed_count


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done.

    Attributes:
        is_rollback: Whether the version before should be active again.
        reason: Why, in words; empty where not.
    """

    is_rollback: bool
    reason: str = ""


STAY = Decision(False)


def decide(fresh: Conduct, before: Conduct, trial_observation_s: float) -> Decision:
    """Whether to roll back.

    Args:
        fresh: The active version, since it became active.
        before: The one before it.
        trial_observation_s: What the trial of the active version promised; 0 where it was never tried.
    """
    if fresh.deaths_in_a_row >= DEATHS_IN_A_ROW_MAX:
        return Decision(True, f"{fresh.deaths_in_a_row} workers in a row were lost with its batches")
    if fresh.count < OBSERVATIONS_MIN:
        return STAY
    at_least, _ = share_bounds(fresh.failed_count, fresh.count)
    if before.count < OBSERVATIONS_MIN:
        allowed = FAILURE_SHARE_WITHOUT_HISTORY
    else:
        allowed = max(FAILURE_SHARE_ALWAYS_FINE, share_bounds(before.failed_count, before.count)[1])
    if at_least > allowed:
        earlier = f"{before.failed_count} of {before.count}" if before.count else "unknown"
        return Decision(True, f"failed on {fresh.failed_count} of {fresh.count} observations; before: {earlier}")
    known_s = [each for each in (trial_observation_s, before.observation_s) if each > 0]  # NaN is not
    usual_s = max(known_s, default=math.inf)
    if fresh.observation_s > SLOWER_RATIO_MAX * usual_s:
        return Decision(
            True,
            f"takes {fresh.observation_s:.3g} s for an observation; its trial took {trial_observation_s:.3g} s, "
            f"the version before {before.observation_s:.3g} s",
        )
    return STAY


def share_bounds(hits: int, count: int) -> tuple[float, float]:
    """Between which shares the true one surely lies (Wilson), where hits of count were seen."""
    share, z2 = hits / count, DEVIATIONS**2
    middle = share + z2 / (2 * count)
    reach = DEVIATIONS * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)
