"""Which files of a drop folder are finished, by what was seen and what the kernel told of them. Pure: opens no file.

A file that was renamed into the folder is finished by definition: that is the atomic way. One that was closed after
writing is finished where its content says so. Any other is finished where two looks found no change and its content
says so, or where it has rested for settle_s: a logger closes its file after each telegram, and adds the next one later.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAX_NAMES = 5000
"""So many files are watched while they rest, some 2 MB of memory; others wait for their turn."""


class Told(enum.Enum):
    """What the kernel tells of a file."""

    CLOSED = "closed after writing"
    MOVED_IN = "renamed into the folder"


class Readiness(enum.Enum):
    """Whether a file may be taken."""

    NOT_YET = "it may still grow"
    IF_WHOLE = "it may be taken if its content says that nothing is missing"
    FINISHED = "it may be taken"


@dataclass(slots=True)
class Look:
    """What was seen of a file: its length and time of change, since when both are so, and when to look again."""

    size_bytes: int
    mtime_nanos: int
    since_s: float
    due_s: float


class Looks:
    """The looks at files that are not taken yet.

    Args:
        settle_s: How long a file must rest.
        second_look_s: How long after the first look a second one may show that nothing changes.
        max_names: How many files are watched at a time.
    """

    def __init__(self, settle_s: float, second_look_s: float, max_names: int = MAX_NAMES) -> None:
        self._settle_s = settle_s
        self._second_look_s = min(settle_s, second_look_s)
        self._max_names = max_names
        self._looks: dict[str, Look] = {}
        self._told: dict[str, Told] = {}

    @property
    def is_full(self) -> bool:
        """Whether no further file can be watched now."""
        return len(self._looks) >= self._max_names

    @property
    def wake_at_s(self) -> float:
        """When a file is to be looked at next; infinite where none is."""
        return 0.0 if self._told else min((look.due_s for look in self._looks.values()), default=float("inf"))

    def tell(self, name: str, told: Told) -> bool:
        """Takes note of what the kernel tells.

        Returns:
            Whether there was room for it; otherwise the folder must be looked through.
        """
        if name not in self._told and len(self._told) >= self._max_names:
            return False
        self._told[name] = told
        return True

    def due(self, now_s: float) -> list[str]:
        """The files to be looked at now."""
        return [*self._told, *(name for name, look in self._looks.items() if look.due_s <= now_s)]

    def see(self, name: str, size_bytes: int, mtime_nanos: int, now_s: float) -> Readiness:
        """Takes note of a look.

        Args:
            name: The file.
            size_bytes: Its length now.
            mtime_nanos: Its time of change now.
            now_s: Monotonic time.
        """
        told = self._told.pop(name, None)
        look = self._looks.get(name)
        if look is None or (look.size_bytes, look.mtime_nanos) != (size_bytes, mtime_nanos):
            if look is not None or not self.is_full:
                self._looks[name] = Look(size_bytes, mtime_nanos, now_s, now_s + self._second_look_s)
            readiness = Readiness.NOT_YET
        elif now_s < look.due_s:
            readiness = Readiness.NOT_YET
        else:
            is_rested = now_s - look.since_s >= self._settle_s
            readiness = Readiness.FINISHED if is_rested else Readiness.IF_WHOLE
            look.due_s = now_s + self._second_look_s if is_rested else look.since_s + self._settle_s
        if told is Told.MOVED_IN:
            return Readiness.FINISHED
        if told is Told.CLOSED and readiness is Readiness.NOT_YET:
            return Readiness.IF_WHOLE
        return readiness

    def forget(self, name: str) -> None:
        """The file is taken, is gone, or is to be treated as if it were new."""
        self._looks.pop(name, None)
        self._told.pop(name, None)
