"""The drop folder: an instrument or its logger puts finished files there, and the station takes them away.

The kernel tells of finished files at once (folder_watch); which are finished is decided in folder_looks. The folder is
looked through from time to time as well, in the order of names and some thousand at a time, so that 100,000 waiting
files cost neither memory nor time. Observations are on the disk before their files are deleted or moved. Knows no
buffer and no network.
"""

from __future__ import annotations

import fnmatch
import heapq
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edge_agent.framing.netcdf import is_netcdf, is_whole_netcdf
from edge_agent.source_settings import FolderSettings
from edge_agent.sources.file_batch import FileBatch, WaitingFile
from edge_agent.sources.folder_looks import Looks, Readiness
from edge_agent.sources.folder_watch import FolderWatch
from edge_agent.sources.framed_file import frame_file, join_unframed, printable, to_captures
from edge_agent.sources.source import Sink

NAMES_AT_ONCE = 2000
"""So many names, the first by name, are taken out of the folder's listing at a time."""
SCAN_SHARE = 0.1
"""Looking through the folder may take this share of the time."""
MAX_OWED = 1000
"""With so many files whose bytes are safe, but that cannot be removed, no more are taken: each would come again."""
MAX_PROBLEMS = 16
HEAD_BYTES = 64
TAKEN_FOLDER = "taken"
UNFINISHED_SUFFIXES = (".part", ".tmp", ".filepart", ".crdownload", ".swp")


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
        self._parameters = settings.framing_parameters()
        self._matches = re.compile(fnmatch.translate(settings.pattern)).match
        self._prefix = f"{settings.name}:"
        self._highest = {name: index for name, index in origins.items() if name.startswith(self._prefix)}
        self._looks = Looks(settings.settle_s, settings.poll_interval_s)
        self._scan_at_s = 0.0
        self._scan_took_s = 0.0
        self._cursor = ""  # the last name that this look through the folder has come to
        self._folder_problem = ""
        self._problems: dict[str, str] = {}
        self._owed: dict[str, tuple[int, int]] = {}  # files that are safe and still have to be removed

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """See Source."""
        with FolderWatch(self._settings.folder) as watch:
            while not stop.is_set():
                watch.refresh()
                sink.alarm(self.turn(sink, stop, time.monotonic()))
                wait_s = min(self._scan_at_s, self._looks.wake_at_s) - time.monotonic()
                if watch.wait(max(0.0, wait_s), stop, self._looks.tell):
                    self._scan_at_s = 0.0

    def turn(self, sink: Sink, stop: threading.Event, now_s: float) -> str:
        """Takes every file that is finished, among those that the kernel told of, that are due, and the next by name.

        Returns:
            What is wrong, in plain words; empty where nothing is.
        """
        names = set(self._looks.due(now_s))
        if now_s >= self._scan_at_s:
            names.update(self._next_names(now_s))
        batch = FileBatch(sink, self._highest, self._remove)
        for name in sorted(names):
            if stop.is_set():
                break
            try:
                found = self._read_if_finished(name, now_s)
            except FileNotFoundError:
                self._forget(name)  # taken back by whoever put it there
            except OSError as error:
                self._looks.forget(name)
                self._note(name, f"expected to take {printable(name)} out of the drop folder, but got {_reason(error)}")
            else:
                if found is not None:
                    self._hand_over(name, *found, batch, sink)
                    self._forget(name)
        batch.write()
        return self._folder_problem or self._file_problem()

    # --- which files there are ---

    def _next_names(self, now_s: float) -> list[str]:
        """The next names of the look through the folder."""
        if self._looks.is_full:
            # What rests must go first; the look goes on where it is.
            self._scan_at_s = now_s + self._settings.poll_interval_s
            return []
        begun_s = time.monotonic()
        try:
            names = heapq.nsmallest(NAMES_AT_ONCE, self._names_behind(self._cursor))
        except OSError as error:
            self._folder_problem = f"expected the drop folder {self._settings.folder}, but got {_reason(error)}"
            names = []
        else:
            self._folder_problem = ""
        self._scan_took_s += time.monotonic() - begun_s
        self._cursor = names[-1] if len(names) == NAMES_AT_ONCE else ""
        if not self._cursor:
            self._scan_at_s = now_s + max(self._settings.poll_interval_s, self._scan_took_s / SCAN_SHARE)
            self._scan_took_s = 0.0
            self._forget_vanished()
        return names

    def _names_behind(self, cursor: str) -> Iterator[str]:
        with os.scandir(self._settings.folder) as entries:
            for entry in entries:
                name = entry.name
                if name > cursor and self._is_ours(name) and entry.is_file(follow_symlinks=False):
                    yield name

    def _is_ours(self, name: str) -> bool:
        is_hidden = name.startswith(".") or name.endswith(UNFINISHED_SUFFIXES)
        return not is_hidden and self._matches(name) is not None

    # --- one file ---

    def _read_if_finished(self, name: str, now_s: float) -> tuple[bytes, tuple[int, int]] | None:
        """(the bytes of a file, its length and time of change); None where it must not be taken now."""
        path = self._settings.folder / name
        status = path.lstat()
        identity = (status.st_size, status.st_mtime_ns)
        if not self._is_candidate(path, status):
            self._looks.forget(name)
            return None
        readiness = self._looks.see(name, *identity, now_s)
        if readiness is Readiness.NOT_YET or len(self._owed) >= MAX_OWED:
            return None
        content = _read(path, self._may_be_whole if readiness is Readiness.IF_WHOLE else None)
        if content is None or (readiness is Readiness.IF_WHOLE and not is_whole_netcdf(content)):
            return None
        status = path.lstat()
        is_same = (status.st_size, status.st_mtime_ns, len(content)) == (*identity, identity[0])
        return (content, identity) if is_same else None

    def _is_candidate(self, path: Path, status: os.stat_result) -> bool:
        """Whether the file may be taken one day. Removes it where that is all that is left to do."""
        name, identity = path.name, (status.st_size, status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode) or not self._is_ours(name):
            return False
        if self._owed.get(name) == identity:
            if self._remove(WaitingFile(path, "", identity)):
                self._forget(name)
            return False
        if status.st_size > self._settings.max_file_bytes:
            what = f"at most {self._settings.max_file_bytes} bytes, but {printable(name)} has {status.st_size}"
            self._note(name, f"expected files of {what}")
            return False
        return True

    def _may_be_whole(self, head: bytes) -> bool:
        """Whether a file that begins so can tell by its content that it is whole."""
        return self._settings.payload_format in {None, "netcdf"} and is_netcdf(head)

    def _hand_over(
        self, file_name: str, content: bytes, identity: tuple[int, int], batch: FileBatch, sink: Sink
    ) -> None:
        """Frames a file; what cannot be framed is on the disk on return, the rest once the batch is written."""
        name = printable(file_name)
        file = frame_file(content, self._settings.payload_format, self._parameters)
        for raw, reason in join_unframed(file.unframed):
            sink.set_aside(raw, name, reason)
        origin_name = f"{self._prefix}{name}@{identity[1]}"
        captures = to_captures(file, self.instrument, origin_name, self._highest.get(origin_name, -1))
        batch.add(WaitingFile(self._settings.folder / file_name, origin_name, identity), captures)

    def _remove(self, file: WaitingFile) -> bool:
        """Deletes or moves a file whose bytes are safe; returns whether it is gone.

        Not synced: where a power cut brings the file back, its origin is known and nothing is handed over twice.
        """
        path = file.path
        try:
            status = path.lstat()
            if (status.st_size, status.st_mtime_ns) != file.identity:
                return True  # replaced meanwhile: another file, which is taken in its turn
            if self._settings.after == "delete":
                path.unlink()
            else:
                taken = self._settings.folder / TAKEN_FOLDER
                taken.mkdir(exist_ok=True)
                path.replace(_free_name(taken / path.name, file.identity[1]))
        except FileNotFoundError:
            return True
        except OSError as error:
            self._owed[path.name] = file.identity
            what = f"expected to remove {printable(path.name)} from the drop folder, but got {_reason(error)}"
            self._note(path.name, f"{what}; its bytes are safe")
            return False
        return True

    # --- what is wrong ---

    def _note(self, name: str, problem: str) -> None:
        if name in self._problems or len(self._problems) < MAX_PROBLEMS:
            self._problems[name] = problem

    def _forget(self, name: str) -> None:
        """The file is taken, or gone."""
        self._looks.forget(name)
        self._problems.pop(name, None)
        self._owed.pop(name, None)

    def _forget_vanished(self) -> None:
        for name in {*self._problems, *self._owed}:
            if not os.path.lexists(self._settings.folder / name):
                self._forget(name)

    def _file_problem(self) -> str:
        if not self._problems:
            return ""
        first, *others = self._problems.values()
        return f"{first} (and {len(others)} more such files)" if others else first


def _read(path: Path, is_wanted: Callable[[bytes], bool] | None) -> bytes | None:
    """The bytes of a file; None where its first ones are not wanted: what grows may be large and often looked at."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if is_wanted is not None and not is_wanted(os.pread(descriptor, HEAD_BYTES, 0)):
            return None
        return file.read()


def _free_name(path: Path, mtime_nanos: int) -> Path:
    """A logger may use a name again; what was kept under it is not overwritten by other bytes."""
    return path.with_name(f"{path.name}@{mtime_nanos}") if os.path.lexists(path) else path


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
