"""Several files' observations as one write: one sync of the disk for many small files. Opens and removes no file.

A file is removed only when all its observations are on the disk. After a `kill -9` between the two, the origins of all
files of the batch are known, and nothing is handed over twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.capture import Capture
from edge_agent.sources.framed_file import GROUP_BYTES, GROUP_OBSERVATIONS
from edge_agent.sources.source import Sink


@dataclass(frozen=True, slots=True)
class WaitingFile:
    """A file that is to be removed once its observations are safe.

    Attributes:
        path: Where it is.
        origin_name: What its observations' origins are called.
        identity: (size_bytes, mtime_nanos) when it was read.
    """

    path: Path
    origin_name: str
    identity: tuple[int, int]


class FileBatch:
    """Collects captures until they are worth a write.

    Args:
        sink: Where they go.
        highest: The highest index on the disk by origin name; kept up to date while a file is there.
        remove: Removes a file; returns whether it is gone.
    """

    def __init__(self, sink: Sink, highest: dict[str, int], remove: Callable[[WaitingFile], bool]) -> None:
        self._sink = sink
        self._highest = highest
        self._remove = remove
        self._captures: list[Capture] = []
        self._bytes = 0
        self._complete: list[WaitingFile] = []  # all of whose captures are in the batch or on the disk

    def add(self, file: WaitingFile, captures: list[Capture]) -> None:
        """Adds a file; writes whenever the batch is full.

        Args:
            file: The file.
            captures: Those of its observations that are not on the disk yet.
        """
        for capture in captures:
            is_full = len(self._captures) >= GROUP_OBSERVATIONS or self._bytes + len(capture.content) > GROUP_BYTES
            if self._captures and is_full:
                self.write()
            self._captures.append(capture)
            self._bytes += len(capture.content)
        self._complete.append(file)

    def write(self) -> None:
        """Returns once everything is on the disk and the files are removed."""
        if self._captures:
            self._sink.put(self._captures)
            for capture in self._captures:
                self._highest[capture.origin_name] = capture.origin_index
        complete, self._complete = self._complete, []
        self._captures, self._bytes = [], 0
        for file in complete:
            if self._remove(file):
                # What the file's origin was is needed until the file is gone, and no longer.
                self._highest.pop(file.origin_name, None)
