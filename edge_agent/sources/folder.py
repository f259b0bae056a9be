"""The drop folder: an instrument or its logger puts finished files there, and the station takes them away.

A file is taken when it has not changed between two looks and either its content tells that it is whole, or it has
rested for settle_s. Its observations are on the disk before it is deleted or moved. Knows no buffer and no network.
"""

from __future__ import annotations

import fnmatch
import heapq
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.framing import Unframed, frame, recognise
from edge_agent.source_settings import FolderSettings
from edge_agent.sources.framed_file import frame_file, in_groups, to_captures
from edge_agent.sources.source import Sink

logger = logging.getLogger(__name__)

FILES_A_LOOK = 1000
"""So many are looked at at once, the first by name; the rest waits, so that 100,000 files cost no memory."""
TAKEN_FOLDER = "taken"
UNFINISHED_SUFFIXES = (".part", ".tmp", ".filepart", ".crdownload", ".swp")
SELF_CONTAINED_FORMATS = frozenset({"netcdf"})
"""Formats whose content tells whether a file is whole."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look says of a file: its length, its time of change, and since when both have been so."""

    size_bytes: int
    mtime_nanos: int
    since_s: float


def look_again(before: Mapping[str, Look], now: Mapping[str, tuple[int, int]], now_s: float) -> dict[str, Look]:
    """Brings the looks up to date; a file that changed begins anew. Pure.

    Args:
        before: The looks of the last time, by file name.
        now: (size_bytes, mtime_nanos) of the files that are there now.
        now_s: Monotonic time.
    """
    looks = {}
    for name, (size_bytes, mtime_nanos) in now.items():
        last = before.get(name)
        is_same = last is not None and (last.size_bytes, last.mtime_nanos) == (size_bytes, mtime_nanos)
        looks[name] = last if last is not None and is_same else Look(size_bytes, mtime_nanos, now_s)
    return looks


def is_whole(content: bytes, payload_format: str | None) -> bool:
    """Whether the bytes tell of themselves that nothing more will come."""
    payload_format = payload_format or recognise(content)
    if payload_format not in SELF_CONTAINED_FORMATS:
        return False
    return not any(isinstance(part, Unframed) for part in frame(payload_format, content))


class FolderSource:
    """Takes files out of a drop folder.

    Args:
        settings: Its settings.
        origins: How far this and other sources have come, by origin name.
    """

    is_finite = False

    def __init__(self, settings: FolderSettings, origins: Mapping[str, int]) -> None:
        self.instrument = settings.name
        self._settings = settings
        self._prefix = f"{settings.name}:"
        self._highest = {name: index for name, index in origins.items() if name.startswith(self._prefix)}
        self._looks: dict[str, Look] = {}

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """See Source."""
        while not stop.is_set():
            problem = self.look(sink, stop, time.monotonic())
            sink.alarm(problem)
            stop.wait(self._settings.poll_interval_s)

    def look(self, sink: Sink, stop: threading.Event, now_s: float) -> str:
        """One look at the folder: takes every file that is finished.

        Returns:
            What is wrong, in plain words; empty where nothing is.
        """
        try:
            present = dict(self._list())
        except OSError as error:
            return f"expected the drop folder {self._settings.folder}, but got {error.strerror or error}"
        before = self._looks
        self._looks = look_again(before, present, now_s)
        problem = ""
        for name in sorted(self._looks):
            if stop.is_set():
                break
            look = self._looks[name]
            if name not in before or look.since_s == now_s:
                continue
            try:
                problem = self._take(name, look, sink, now_s) or problem
            except OSError as error:
                problem = f"expected to take {name} out of the drop folder, but got {error.strerror or error}"
        return problem

    def _list(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """(name, (size_bytes, mtime_nanos)) of the first files by name."""
        with os.scandir(self._settings.folder) as entries:
            names = heapq.nsmallest(FILES_A_LOOK, (entry.name for entry in entries if self._is_ours(entry)))
        for name in names:
            try:
                status = (self._settings.folder / name).stat()
            except FileNotFoundError:
                continue  # taken back by whoever put it there
            yield name, (status.st_size, status.st_mtime_ns)

    def _is_ours(self, entry: os.DirEntry[str]) -> bool:
        name = entry.name
        if (
            name.startswith(".")
            or name.endswith(UNFINISHED_SUFFIXES)
            or not fnmatch.fnmatch(name, self._settings.pattern)
        ):
            return False
        return entry.is_file(follow_symlinks=False)

    def _take(self, name: str, look: Look, sink: Sink, now_s: float) -> str:
        """Takes one file that rests; leaves it where it may still grow.

        Returns:
            What is wrong; empty where nothing is.
        """
        path = self._settings.folder / name
        if look.size_bytes > self._settings.max_file_bytes:
            return f"expected files of at most {self._settings.max_file_bytes} bytes, but {name} has {look.size_bytes}"
        is_rested = now_s - look.since_s >= self._settings.settle_s
        if not is_rested and self._settings.payload_format not in {None, *SELF_CONTAINED_FORMATS}:
            return ""
        content = path.read_bytes()
        if not is_rested and not is_whole(content, self._settings.payload_format):
            return ""
        status = path.stat()
        if (status.st_size, status.st_mtime_ns, len(content)) != (look.size_bytes, look.mtime_nanos, look.size_bytes):
            return ""
        origin_name = f"{self._prefix}{name}@{look.mtime_nanos}"
        self._hand_over(content, name, origin_name, sink)
        self._remove(path)
        # What the file's origin was is needed until the file is gone, and no longer.
        self._highest.pop(origin_name, None)
        del self._looks[name]
        return ""

    def _hand_over(self, content: bytes, name: str, origin_name: str, sink: Sink) -> None:
        """Returns once every byte of the file is on the disk, as observations or in quarantine."""
        file = frame_file(content, self._settings.payload_format)
        for part in file.unframed:
            sink.set_aside(part.raw, name, part.reason)
        captures = to_captures(file, self.instrument, origin_name, self._highest.get(origin_name, -1))
        for group in in_groups(captures):
            sink.put(group)
            self._highest[origin_name] = group[-1].origin_index

    def _remove(self, path: Path) -> None:
        """Deletes or moves a file whose bytes are safe.

        Not synced: where a power cut brings the file back, its origin is known and nothing is handed over twice.
        """
        if self._settings.after == "delete":
            path.unlink()
        else:
            taken = self._settings.folder / TAKEN_FOLDER
            taken.mkdir(exist_ok=True)
            path.replace(taken / path.name)
