"""Sets of whole numbers held as ranges: what a receipt promises, what a station has delivered.

A set of a million consecutive sequences is one pair here. Pure; knows nothing of stations or protocols.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """A set of integers, stored as disjoint closed ranges in ascending order.

    Adding and removing a range costs O(log ranges + ranges touched).
    """

    __slots__ = ("_count", "_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._count = 0
        for first, last in ranges:
            self.add(first, last)

    @classmethod
    def of(cls, numbers: Iterable[int]) -> RangeSet:
        """The set of these numbers."""
        result = cls()
        for number in numbers:
            result.add(number)
        return result

    def add(self, first: int, last: int | None = None) -> None:
        """Adds first..last, both included; without last, the one number."""
        last = first if last is None else last
        if last < first:
            raise ValueError(f"expected a range with last >= first, but got {first}..{last}")
        if self._lasts and first == self._lasts[-1] + 1:  # counting upward is nearly all that ever happens
            self._lasts[-1] = last
            self._count += last - first + 1
            return
        lo = bisect_left(self._lasts, first - 1)  # the first range that touches or follows
        hi = bisect_right(self._firsts, last + 1)  # one past the last range that touches
        if lo < hi:
            first = min(first, self._firsts[lo])
            last = max(last, self._lasts[hi - 1])
        self._replace(lo, hi, [(first, last)])

    def discard(self, first: int, last: int | None = None) -> None:
        """Removes first..last, both included, as far as they are in the set."""
        last = first if last is None else last
        lo = bisect_left(self._lasts, first)
        hi = bisect_right(self._firsts, last)
        if lo >= hi:
            return
        kept = []
        if self._firsts[lo] < first:
            kept.append((self._firsts[lo], first - 1))
        if self._lasts[hi - 1] > last:
            kept.append((last + 1, self._lasts[hi - 1]))
        self._replace(lo, hi, kept)

    def _replace(self, lo: int, hi: int, new: list[tuple[int, int]]) -> None:
        self._count += sum(last - first + 1 for first, last in new)
        self._count -= sum(self._lasts[i] - self._firsts[i] + 1 for i in range(lo, hi))
        self._firsts[lo:hi] = [first for first, _ in new]
        self._lasts[lo:hi] = [last for _, last in new]

    def first_missing(self, start: int) -> int:
        """The smallest number >= start that is not in the set."""
        i = bisect_left(self._lasts, start)
        if i < len(self._firsts) and self._firsts[i] <= start:
            return self._lasts[i] + 1
        return start

    def gaps(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges within first..last that are not in the set, ascending."""
        start = self.first_missing(first)
        while start <= last:
            i = bisect_left(self._firsts, start)
            end = self._firsts[i] - 1 if i < len(self._firsts) else last
            yield start, min(end, last)
            start = self.first_missing(end + 1)

    def common(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges within first..last that are in the set, ascending."""
        i = bisect_left(self._lasts, first)
        while i < len(self._firsts) and self._firsts[i] <= last:
            yield max(first, self._firsts[i]), min(last, self._lasts[i])
            i += 1

    def __contains__(self, number: int) -> bool:
        i = bisect_left(self._lasts, number)
        return i < len(self._firsts) and self._firsts[i] <= number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The ranges, ascending."""
        return iter(list(zip(self._firsts, self._lasts, strict=True)))

    def __len__(self) -> int:
        """How many numbers are in the set (not how many ranges)."""
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"
