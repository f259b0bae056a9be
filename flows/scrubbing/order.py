"""Which bags a run reads, and in which order: the one that was not read for longest first. Pure.

So whatever ends a run, the next one goes on where it was, and runs of bounded size go round the whole archive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flows.scrubbing.records import RecordedBag

NANOS_PER_DAY = 86_400 * 10**9
NEVER = -1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    Attributes:
        due: The bags to read, in this order.
        later: Those that were not read lately either, and are left to later runs.
        recent: Those that were read lately.
        sides: 2 where the copies are read too, else 1.
    """

    due: tuple[RecordedBag, ...]
    later: tuple[RecordedBag, ...]
    recent: tuple[RecordedBag, ...]
    sides: int

    @property
    def due_bytes(self) -> int:
        """About how many bytes are to be read."""
        return sum(estimate_bytes(self.due)) * self.sides


def make_plan(
    bags: Sequence[RecordedBag], now_unix_nanos: int, *, skip_days: int, max_bytes: float | None, has_copy: bool
) -> Plan:
    """Decides.

    Args:
        bags: Those that the run is about.
        now_unix_nanos: The time.
        skip_days: Those that were read in the last so many days are left out.
        max_bytes: So many bytes at most, on both sides together; but one bag at least. None for no limit.
        has_copy: Whether there is a second place.
    """
    sides = 2 if has_copy else 1
    oldest_first = sorted(bags, key=lambda bag: (last_read(bag, has_copy=has_copy), bag.path))
    begin = now_unix_nanos - skip_days * NANOS_PER_DAY
    waiting = [bag for bag in oldest_first if not skip_days or last_read(bag, has_copy=has_copy) < begin]
    recent = oldest_first[len(waiting) :]
    count, total_bytes = 0, 0.0
    for bag_bytes in estimate_bytes(waiting):
        total_bytes += bag_bytes * sides
        if max_bytes is not None and count and total_bytes > max_bytes:
            break
        count += 1
    return Plan(tuple(waiting[:count]), tuple(waiting[count:]), tuple(recent), sides)


def last_read(bag: RecordedBag, *, has_copy: bool) -> int:
    """When the bag, and its copy if it has one, were both last found whole; NEVER where one was not.

    A bag that was found damaged keeps the time at which it was last whole, so that it soon comes first.
    """
    check = NEVER if bag.check_unix_nanos is None else bag.check_unix_nanos
    if not has_copy or bag.copy_unix_nanos is None:
        return check
    return min(check, bag.copy_unix_nanos)


def estimate_bytes(bags: Sequence[RecordedBag]) -> list[int]:
    """The size of each bag; where it is not recorded, as large as the others are on average."""
    known = [bag.bag_bytes for bag in bags if bag.bag_bytes is not None]
    usual = sum(known) // len(known) if known else 1
    return [usual if bag.bag_bytes is None else bag.bag_bytes for bag in bags]


def in_chunks(bags: Iterable[RecordedBag], count: int) -> Iterator[list[RecordedBag]]:
    """Some bags at a time."""
    chunk: list[RecordedBag] = []
    for bag in bags:
        chunk.append(bag)
        if len(chunk) == count:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
