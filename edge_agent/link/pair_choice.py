"""Which certificate a station shows next: the one in use, or the new one beside it. Pure; knows no files and no TLS.

The rules:

1. A new pair that was never tried goes first, once.
2. Where it does not connect, it is the other one's turn, at once and at the same broker.
3. While the one in use connects, the new one is tried again every hour. Other files are another pair: rule 1.
4. Where neither connects they take turns, so that whichever is right gets its chance at every broker.
5. Only what a broker has accepted, connection and subscriptions, may take the other one's place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

RETRY_INTERVAL_S = 3600.0


class Choice(Enum):
    """One of the two pairs."""

    CURRENT = auto()
    NEW = auto()


@dataclass(frozen=True, slots=True)
class Trials:
    """What is known of the attempts so far.

    Attributes:
        new_version: Which new pair this is about, as anything that can be compared; None for none.
        retry_at_s: When the new pair may be tried again; None where it was never tried.
        last_failed: Who failed last, if nobody has connected since.
        is_new_accepted: Whether a broker has accepted the new pair. It still is one where its files could not be moved.
    """

    new_version: object = None
    retry_at_s: float | None = None
    last_failed: Choice | None = None
    is_new_accepted: bool = False

    def see(self, new_version: object) -> Trials:
        """Notes which new pair lies there now."""
        return self if new_version == self.new_version else Trials(new_version)

    def is_new_due(self, now_s: float) -> bool:
        """Whether it is time to try the new pair while the other one connects."""
        return self.new_version is not None and (self.retry_at_s is None or now_s >= self.retry_at_s)

    def choose(self, has_current: bool, now_s: float) -> Choice | None:
        """The pair for the next attempt; None where there is none."""
        if self.new_version is None:
            return Choice.CURRENT if has_current else None
        if not has_current:
            return Choice.NEW
        if self.last_failed is not None:
            return Choice.CURRENT if self.last_failed is Choice.NEW else Choice.NEW
        return Choice.NEW if self.is_new_accepted or self.is_new_due(now_s) else Choice.CURRENT

    def failed(self, choice: Choice, now_s: float) -> Trials:
        """The attempt with this pair did not get as far as the subscriptions."""
        retry_at_s = now_s + RETRY_INTERVAL_S if choice is Choice.NEW else self.retry_at_s
        return replace(self, last_failed=choice, retry_at_s=retry_at_s)

    def accepted(self, choice: Choice) -> Trials:
        """A broker has taken this pair, and the subscriptions."""
        return replace(self, last_failed=None, is_new_accepted=choice is Choice.NEW)
