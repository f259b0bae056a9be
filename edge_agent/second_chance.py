"""When observations that the server refused are offered again: those whose reason an operator can take away. Pure.

One of them goes ahead, now and then and at every connection. Only when the server holds that one do the others follow:
a year of an instrument that nobody registers must not travel every hour.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.storage.ledger import OFFERED_AGAIN, Ledger

INTERVAL_S = 600.0

Range = tuple[int, int]


class SecondChance:
    """Which sequence goes ahead, and since when."""

    def __init__(self) -> None:
        self._probe = 0
        self.due_at_s = 0.0
        """When the next one is to go ahead, on the monotonic clock."""

    def choose(self, ledger: Ledger, now_s: float) -> list[Range]:
        """What to send again now: one sequence, or nothing."""
        if now_s < self.due_at_s:
            return []
        self.due_at_s = now_s + INTERVAL_S
        waiting = _waiting(ledger)
        if not waiting:
            return []
        self._probe = waiting[0][0]
        return [(self._probe, self._probe)]

    def after_delivery(self, ranges: Sequence[Range], ledger: Ledger) -> list[Range]:
        """What to send again after a receipt for these: everything that waits, where the one ahead is among them."""
        if not any(first <= self._probe <= last for first, last in ranges):
            return []
        self._probe = 0
        return _waiting(ledger)


def _waiting(ledger: Ledger) -> list[Range]:
    ranges = [
        pair for reason in OFFERED_AGAIN if reason in ledger.refusals for pair in ledger.refusals[reason].sequences
    ]
    return sorted(ranges)
