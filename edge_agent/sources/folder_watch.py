"""What the kernel tells of a folder (inotify): finished files at once, and that it came, went or was renamed.

Knows nothing of what is in files. inotify sees nothing of what other machines do on a network mount, and its queue may
overflow: whoever uses this looks through the folder from time to time. Where the system gives no inotify (none is left,
or it is not installed), wait only waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.sources.folder_looks import Told

if TYPE_CHECKING:
    from inotify_simple import INotify  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

STOP_LATENCY_S = 0.25

# linux/inotify.h
CLOSE_WRITE, MOVED_TO, CREATE = 0x8, 0x80, 0x100
DELETE_SELF, MOVE_SELF = 0x400, 0x800
UNMOUNT, Q_OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000
ONLYDIR, ISDIR = 0x1000000, 0x40000000
FOLDER_MASK = CLOSE_WRITE | MOVED_TO | DELETE_SELF | MOVE_SELF | ONLYDIR
ANCESTOR_MASK = CREATE | MOVED_TO | DELETE_SELF | MOVE_SELF | ONLYDIR
GONE_MASK = DELETE_SELF | MOVE_SELF | UNMOUNT | IGNORED


class FolderWatch:
    """Watches one folder, or the nearest folder above it while it is not there.

    Args:
        folder: The folder; it may be absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inotify = _open_inotify()
        self._descriptor: int | None = None  # of the one watch that counts
        self._watched: tuple[Path, tuple[int, int]] | None = None  # the path, and what it was

    def __enter__(self) -> FolderWatch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def refresh(self) -> None:
        """Watches what the path means now. Call before looking through the folder, so that nothing falls between."""
        if self._inotify is None:
            return
        while (target := _nearest(self._folder)) is not None and target != self._watched:
            self._drop()
            mask = FOLDER_MASK if target[0] == self._folder else ANCESTOR_MASK
            try:
                self._descriptor = self._inotify.add_watch(target[0], mask)
            except FileNotFoundError:
                continue  # gone meanwhile
            except OSError as error:
                logger.warning(
                    "folder not watched, only looked at", extra={"folder": str(target[0]), "error": str(error)}
                )
            self._watched = target

    def wait(self, timeout_s: float, stop: threading.Event, tell: Callable[[str, Told], bool]) -> bool:
        """Waits until something happens, the time is over, or stop is set.

        Args:
            timeout_s: The longest wait.
            stop: Ends it early.
            tell: Told of each finished file; False where it has no room for more.

        Returns:
            Whether the folder must be looked through now.
        """
        if self._inotify is None:
            stop.wait(timeout_s)
            return False
        end_s = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, min(end_s - time.monotonic(), STOP_LATENCY_S))
            events = self._inotify.read(timeout=int(1000 * left_s))
            if events:
                needs = [self._take(event.wd, event.mask, event.name, tell) for event in events]
                return any(needs)
            if stop.is_set() or time.monotonic() >= end_s:
                return False

    def _take(self, descriptor: int, mask: int, name: str, tell: Callable[[str, Told], bool]) -> bool:
        """One event; returns whether the folder must be looked through."""
        if mask & Q_OVERFLOW:
            return True
        if descriptor != self._descriptor or self._watched is None:
            return False  # of a watch that was given up
        if mask & GONE_MASK:
            self._drop()
            return True
        watched = self._watched[0]
        if watched != self._folder:
            return name == self._folder.relative_to(watched).parts[0]
        if mask & ISDIR:
            return False
        return not tell(name, Told.MOVED_IN if mask & MOVED_TO else Told.CLOSED)

    def _drop(self) -> None:
        if self._descriptor is not None and self._inotify is not None:
            with suppress(OSError):  # the kernel drops the watch of a folder that is deleted
                self._inotify.rm_watch(self._descriptor)
        self._descriptor = self._watched = None


def _open_inotify() -> INotify | None:
    try:
        from inotify_simple import INotify

        return INotify()
    except (ImportError, OSError) as error:
        logger.warning("no inotify, the folder is only looked at", extra={"error": str(error)})
        return None


def _nearest(folder: Path) -> tuple[Path, tuple[int, int]] | None:
    """The folder, or the nearest above it that is there, and which one it is by device and inode."""
    for path in (folder, *folder.parents):
        try:
            status = path.stat()
        except OSError:
            continue
        if path.is_dir():
            return path, (status.st_dev, status.st_ino)
    return None
