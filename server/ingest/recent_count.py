"""How much happened lately: a count over the last so many seconds. The time is an argument."""

from __future__ import annotations

from collections import deque


class RecentCount:
    """Counts what happened during the last window_s seconds, to the second."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._seconds: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, count: int, now_s: float) -> None:
        """So much happened now."""
        self.total(now_s)  # lets go of what is older: nobody may ever ask
        self._total += count
        second = int(now_s)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))

    def total(self, now_s: float) -> int:
        """What happened since window_s seconds ago."""
        while self._seconds and self._seconds[0][0] <= now_s - self._window_s:
            self._total -= self._seconds.popleft()[1]
        return self._total
