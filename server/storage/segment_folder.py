"""Segments as append-only files in a folder.

A segment is never written again after its process has ended: a torn tail can only be bytes that no row points to.
While a process writes to one it holds a lock on it (flock), so that nobody takes it away: see is_being_written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from threading import Lock

from fieldpost.errors import BrokenStateError
from server.storage.segments import Place

SEGMENT_BYTES_MAX = 256 * 1024 * 1024
SEGMENT_AGE_S_MAX = 86_400
"""A quiet server's segment ends after so long: one that gathered weeks could not be let go for as long."""
OPEN_SEGMENTS_MAX = 64
SUFFIX = ".seg"
PART_SUFFIX = ".part"
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
"""Another file system, or one without hard links."""


class FolderWriter:
    """Appends records to the newest segment. One writer, one thread; the disk works in another meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = -1
        self._name = ""
        self._end = 0
        self._start_s = 0.0
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="segment-sync")
        self._syncing: list[Future[None]] = []

    def append(self, records: Sequence[bytes]) -> tuple[str, list[int]]:
        """Writes the records, and has the disk begin with them; they are durable only after sync().

        Returns:
            The segment's name, and the offset of each record in it.

        Raises:
            OSError: The disk refuses. What was written of the group is abandoned with its segment.
        """
        is_old = time.monotonic() - self._start_s >= SEGMENT_AGE_S_MAX
        if self._file < 0 or self._end >= SEGMENT_BYTES_MAX or is_old:
            self._start_segment()
        *offsets, end = accumulate(map(len, records), initial=self._end)
        try:
            _write_all(self._file, b"".join(records))
        except OSError:
            self._cut_torn_end()
            self._end_segment()
            raise
        self._end = end
        self._syncing.append(self._disk.submit(os.fdatasync, self._file))
        return self._name, offsets

    def sync(self) -> None:
        """Returns once everything appended is on the disk.

        Raises:
            OSError: The disk refuses.
        """
        syncing, self._syncing = self._syncing, []
        wait(syncing)  # none may still be at work on a descriptor that is closed: it may be another file's by then
        try:
            for each in syncing:  # all of them: the kernel tells of lost pages once, not until they are written
                each.result()
        except OSError:
            self._end_segment()  # a failed fsync may have dropped the pages: never trust this file again
            raise

    def adopt(self, path: Path) -> str:
        """Makes a finished file a segment; the file itself stays. From any thread.

        Returns:
            The segment's name, durable.

        Raises:
            OSError: The disk refuses.
        """
        name = _new_name()
        final = self._folder / name
        os.utime(path)  # it may have grown over days; a segment without a row is swept once it is old
        _sync(path)
        try:
            final.hardlink_to(path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            part = final.with_suffix(PART_SUFFIX)
            try:
                shutil.copyfile(path, part)
                _sync(part)
                part.rename(final)
            except OSError:
                part.unlink(missing_ok=True)
                raise
        _sync(self._folder)
        return name

    def _start_segment(self) -> None:
        if self._file >= 0:
            self.sync()
            self._end_segment()
        name = _new_name()
        self._file = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._name, self._end, self._start_s = name, 0, time.monotonic()
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _sync(self._folder)  # the name is durable before any row speaks of it
        except OSError:
            self._end_segment()  # nobody may append to a file that may be gone after a power cut
            raise

    def _cut_torn_end(self) -> None:
        """Gives back what a full disk took of a refused group: else the next, smaller one has no room either."""
        with suppress(OSError):
            os.ftruncate(self._file, self._end)

    def _end_segment(self) -> None:
        if self._file >= 0:
            wait(self._syncing)  # the descriptor may be another file's after this
            self._syncing = []
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        """Ends the segment and the thread that waits for the disk."""
        self._end_segment()
        self._disk.shutdown()


class FolderReader:
    """Reads records, from any thread, and removes segments."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, place: Place) -> bytes:
        """The record's bytes.

        Raises:
            BrokenStateError: The segment is missing or too short.
        """
        return self._read(place.segment, place.offset, place.length)

    def read_range(self, place: Place, offset: int, length: int) -> bytes:
        """Some of the record's bytes: from offset on, and fewer than length where the record ends.

        Raises:
            BrokenStateError: The segment is missing or too short.
        """
        start, stop = place.clip(offset, length)
        return self._read(place.segment, start, stop - start)

    def _read(self, name: str, offset: int, length: int) -> bytes:
        with self._lock:
            try:
                # One of its own: the descriptor may be closed by others while a long read goes on outside the lock.
                descriptor = os.dup(self._descriptor(name))
            except FileNotFoundError as error:
                raise BrokenStateError(
                    f"expected segment {name} in {self._folder}, but it is not there",
                    hint="restore the segments folder from its backup, or the days concerned from the archive",
                ) from error
        try:
            content = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        if len(content) != length:
            raise BrokenStateError(
                f"expected {length} bytes at offset {offset} of segment {name}, but got {len(content)}",
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

    def list_names(self, before_unix_s: float) -> Iterator[str]:
        """The segments that were last written before an instant, and what a broken adoption left."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith((SUFFIX, PART_SUFFIX)) and entry.stat().st_mtime < before_unix_s:
                    yield entry.name

    def length(self, name: str) -> int:
        """Bytes of a segment.

        Raises:
            OSError: It is not there.
        """
        return (self._folder / name).stat().st_size

    def is_being_written(self, name: str) -> bool:
        """Whether some process may still append to the segment; also where that cannot be told."""
        try:
            descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)  # NFS locks only what can be written
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def remove(self, name: str) -> None:
        """Removes a segment; one that is gone already is no error.

        Raises:
            OSError: The disk refuses.
        """
        with self._lock:
            descriptor = self._open.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)
        (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes all segments."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


def _new_name() -> str:
    return f"{secrets.token_hex(8)}{SUFFIX}"


def _sync(path: Path) -> None:
    """Has a file, or a folder with its names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
