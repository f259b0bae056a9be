"""Append-only files of serialized observations: the server's payload store.

A record is the bytes of one fieldpost.v1.Observation; where it lies (segment, offset, length) stands in the database.
Bytes that no row points to (a crash between append and commit) are harmless. A segment is never written again after
its process has ended: a torn tail can only be such bytes.
"""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from fieldpost.errors import BrokenStateError

SEGMENT_BYTES_MAX = 256 * 1024 * 1024
OPEN_SEGMENTS_MAX = 64


class Place(NamedTuple):
    """Where a record lies."""

    segment: str
    offset: int
    length: int


class SegmentWriter:
    """Appends records to the newest segment. One writer, one thread; the disk works in another meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = -1
        self._name = ""
        self._end = 0
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="segment-sync")
        self._syncing: Future[None] | None = None

    def append(self, records: Sequence[bytes]) -> tuple[str, list[int]]:
        """Writes the records, and has the disk begin with them; they are durable only after sync().

        Returns:
            The segment's name, and the offset of each record in it.

        Raises:
            OSError: The disk refuses. What was written of the group is abandoned with its segment.
        """
        if self._file < 0 or self._end >= SEGMENT_BYTES_MAX:
            self._start_segment()
        *offsets, end = accumulate(map(len, records), initial=self._end)
        try:
            _write_all(self._file, b"".join(records))
        except OSError:
            self.close()
            raise
        self._end = end
        self._syncing = self._disk.submit(os.fdatasync, self._file)
        return self._name, offsets

    def sync(self) -> None:
        """Returns once everything appended is on the disk."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            try:
                syncing.result()
            except OSError:
                self.close()  # after a failed fsync the kernel may have dropped the pages: never trust this file again
                raise

    def _start_segment(self) -> None:
        if self._file >= 0:
            self.sync()
            self.close()
        name = f"{secrets.token_hex(8)}.seg"
        self._file = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._name, self._end = name, 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name is durable before any row speaks of it
        finally:
            os.close(folder)

    def close(self) -> None:
        """Ends the segment; a later append starts a new one."""
        if self._file >= 0:
            wait([self._syncing] if self._syncing else [])  # the descriptor may be another file's after this
            self._syncing = None
            os.close(self._file)
            self._file = -1


class SegmentReader:
    """Reads records, from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, place: Place) -> bytes:
        """The record's bytes.

        Raises:
            BrokenStateError: The segment is missing or too short.
        """
        with self._lock:  # a pread is short; the lock keeps the descriptor from being closed under it
            try:
                content = os.pread(self._descriptor(place.segment), place.length, place.offset)
            except FileNotFoundError as error:
                raise BrokenStateError(
                    f"expected segment {place.segment} in {self._folder}, but it is not there",
                    hint="restore the segments folder from its backup, or the days concerned from the archive",
                ) from error
        if len(content) != place.length:
            raise BrokenStateError(
                f"expected {place.length} bytes at offset {place.offset} of segment {place.segment}, "
                f"but got {len(content)}",
                hint="the file was cut; restore it from its backup, or the days concerned from the archive",
            )
        return content

    def _descriptor(self, name: str) -> int:
        descriptor = self._open.get(name)
        if descriptor is None:
            descriptor = self._open[name] = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > OPEN_SEGMENTS_MAX:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(name)
        return descriptor

    def close(self) -> None:
        """Closes all segments."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
