"""Whether the wall clock may be believed where something is deleted for its age. Pure; reads no clock.

A time server that is wrong for an hour, or a receiver whose week number wraps, shows 2099; by that date everything is
past its retention. Monotonic time does not jump, so a jump shows. What is deleted too late costs nothing: a disk
without room has rules of its own.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

JUMP_S = 86400.0
"""A smaller one deletes nothing that would not go tomorrow."""
TRUST_AFTER_S = 3 * 86400.0
"""So long a clock has to go on without a jump."""


class ClockTrust:
    """How long the wall clock has gone on without a jump.

    Args:
        newest_day: The day of the newest day file, by the clock as it was then; None where there is none.
    """

    def __init__(self, newest_day: date | None) -> None:
        self._newest_day = newest_day
        self._offset_s: float | None = None
        self._trusted_from_s = 0.0

    def note(self, now_s: float, now_unix_s: float, *, is_synchronised: bool) -> bool:
        """Takes what the clocks show.

        Args:
            now_s: Monotonic time.
            now_unix_s: Wall time.
            is_synchronised: Whether the kernel holds wall time for synchronised.

        Returns:
            Whether wall time may be believed.
        """
        offset_s = now_unix_s - now_s
        if self._offset_s is None:
            has_jumped = self._is_far_from_newest(now_unix_s)
            self._trusted_from_s = now_s
        else:
            has_jumped = abs(offset_s - self._offset_s) > JUMP_S
        if has_jumped:
            self._trusted_from_s = now_s + TRUST_AFTER_S
        self._offset_s = offset_s
        return is_synchronised and now_s >= self._trusted_from_s

    def _is_far_from_newest(self, now_unix_s: float) -> bool:
        """At the start: the day files tell what the clock showed last. A long time switched off looks like a jump."""
        today = datetime.fromtimestamp(now_unix_s, UTC).date()
        return self._newest_day is not None and abs(today - self._newest_day) > timedelta(days=1)
