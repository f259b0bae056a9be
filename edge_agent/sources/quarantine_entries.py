"""Joins what a stream gives that cannot be framed to few entries of the quarantine. Pure; opens no file.

A noisy line gives something unframed every second, for years, and each entry costs two files. The first such bytes
after a quiet time are an entry at once. What follows within a minute becomes one entry, then within two, up to an hour,
as long as the noise goes on; where much waits, it does not wait longer. It waits in memory: a power cut costs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_agent.framing import Unframed

WAITING_MAX_BYTES = 1 << 20
"""Of all senders together."""
INTERVAL_FIRST_S = 60.0
INTERVAL_MAX_S = 3600.0
MAX_NAMES = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the quarantine: where its bytes came from, the bytes, and why."""

    source_name: str
    content: bytes
    reason: str


@dataclass(slots=True)
class _Run:
    """The noise of one sender."""

    due_s: float
    interval_s: float = INTERVAL_FIRST_S
    content: bytearray = field(default_factory=bytearray)
    part_count: int = 0
    reason: str = ""

    def take(self, source_name: str) -> Entry:
        """What was joined; begins anew."""
        more = f" (the first of {self.part_count} such parts)" if self.part_count > 1 else ""
        entry = Entry(source_name, bytes(self.content), self.reason + more)
        self.content, self.part_count, self.reason = bytearray(), 0, ""
        return entry


class QuarantineEntries:
    """What waits to be set aside, by sender."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait."""
        return sum(len(run.content) for run in self._runs.values())

    def add(self, source_name: str, part: Unframed, now_s: float) -> None:
        """Takes a part that could not be framed.

        Args:
            source_name: Its sender; of very many, the last ones are taken together.
            part: The part.
            now_s: Monotonic time.
        """
        if source_name not in self._runs and len(self._runs) >= MAX_NAMES:
            source_name = "several senders"
        run = self._runs.setdefault(source_name, _Run(due_s=now_s))
        run.reason = run.reason or part.reason
        run.content += part.raw
        run.part_count += 1

    def due(self, now_s: float) -> list[Entry]:
        """The entries that are to be written now."""
        entries = []
        is_much = self.waiting_bytes >= WAITING_MAX_BYTES
        for name, run in list(self._runs.items()):
            if now_s < run.due_s and not (is_much and run.part_count):
                continue
            if not run.part_count:
                del self._runs[name]  # quiet for a whole interval
                continue
            entries.append(run.take(name))
            run.due_s = now_s + run.interval_s
            run.interval_s = min(2 * run.interval_s, INTERVAL_MAX_S)
        return entries

    def take_all(self) -> list[Entry]:
        """Everything, due or not: at the end."""
        entries = [run.take(name) for name, run in self._runs.items() if run.part_count]
        self._runs.clear()
        return entries
