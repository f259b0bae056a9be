"""Where payloads lie, and what writing and reading them means, in whatever store.

A record is the bytes of one fieldpost.v1.Observation; where it lies (segment, offset, length) stands in the database.
Bytes that no row points to (a crash between append and commit) are harmless. Knows neither files nor networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from fieldpost.errors import InvalidRequestError


class Place(NamedTuple):
    """Where a record lies."""

    segment: str
    offset: int
    length: int

    def clip(self, offset: int, length: int) -> tuple[int, int]:
        """Where, in the segment, a part of the record begins and ends; no further than the record does."""
        if offset < 0 or length < 0:
            raise InvalidRequestError(f"expected a range from 0 upward, but got {length} bytes at offset {offset}")
        start = self.offset + min(offset, self.length)
        return start, min(start + length, self.offset + self.length)


class SegmentWriter(Protocol):
    """Takes records. One writer, one thread; adopt() alone may be called from others."""

    def append(self, records: Sequence[bytes]) -> tuple[str, list[int]]:
        """Takes records; they are durable only after sync(). Returns the segment's name, and each record's offset."""

    def sync(self) -> None:
        """Returns once everything appended is durable; raises OSError where that was refused."""

    def adopt(self, path: Path) -> str:
        """Makes a finished file a segment, durably; the file itself stays. Returns the segment's name."""

    def close(self) -> None:
        """Ends writing."""


class SegmentReader(Protocol):
    """Reads records, and removes segments; from any thread."""

    def read(self, place: Place) -> bytes:
        """A record; raises BrokenStateError where it is not there whole, TryAgainError where nobody answers."""

    def read_range(self, place: Place, offset: int, length: int) -> bytes:
        """A part of a record; raises like read."""

    def list_names(self, before_unix_s: float) -> Iterator[str]:
        """The segments that were last written before an instant."""

    def length(self, name: str) -> int:
        """Bytes of a segment; raises FieldpostError or OSError where nobody can tell."""

    def is_being_written(self, name: str) -> bool:
        """Whether some process may still append to the segment."""

    def remove(self, name: str) -> None:
        """Removes a segment; one that is gone already is no error. Raises OSError where that was refused."""

    def close(self) -> None:
        """Ends reading."""
