"""How fast work goes, and how long the rest will take. Pure: time is an argument; knows not what the work is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 120.0
"""Long enough that one large page or one restored day does not make the estimate jump."""
SETTLE_S = 3.0
"""Before this nothing is said: processes are still starting."""


@dataclass(slots=True)
class MovingRate:
    """What was done lately.

    Attributes:
        window_s: How far back "lately" goes.
    """

    window_s: float = WINDOW_S
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, now_s: float, done_count: int) -> None:
        """So much was done by now, all together; both only ever grow."""
        self._marks.append((now_s, done_count))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - self.window_s:
            self._marks.popleft()

    @property
    def per_s(self) -> float:
        """Done in a second, over the window; 0 where nothing can be said yet."""
        if len(self._marks) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s >= SETTLE_S else 0.0

    def left_s(self, left_count: int) -> float | None:
        """How long the rest takes at this rate; None where nothing can be said."""
        if left_count <= 0:
            return 0.0
        return left_count / self.per_s if self.per_s > 0 else None
