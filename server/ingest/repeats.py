"""Keeps the log readable: what happens again and again is said once in a while, with how often. Pure."""

from __future__ import annotations

from collections.abc import Hashable

INTERVAL_S = 600.0
KEYS_MAX = 10_000
"""Beyond so many different things all are forgotten: some are then said again."""


class Repeats:
    """What was said, when, and how often it has happened since."""

    def __init__(self) -> None:
        self._said: dict[Hashable, tuple[float, int]] = {}

    def note(self, key: Hashable, count: int, now_s: float) -> int:
        """Notes that something happened.

        Returns:
            How often it happened since it was last said, if it is to be said now; else 0.
        """
        said_at_s, unsaid = self._said.get(key, (float("-inf"), 0))
        unsaid += count
        if now_s - said_at_s < INTERVAL_S:
            self._said[key] = (said_at_s, unsaid)
            return 0
        if len(self._said) >= KEYS_MAX:
            self._said.clear()
        self._said[key] = (now_s, 0)
        return unsaid
