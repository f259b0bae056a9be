"""What a power cut may leave of a folder, told from the log of all that was done to it (faults.c, with contents).

The model is stricter than any file system in use. A write is on the disk once its file was synced; until then each
write may be lost, kept, or kept up to a sector. A name that was made, moved or removed is on the disk once its folder
was synced; until then each change may be lost or kept by itself. Only a rename is never half done. Knows no buffer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

SECTOR_BYTES = 512


@dataclass(slots=True)
class File:
    """A file: what the disk has for sure, and what was done since. A change is (offset, bytes), or (size, None)."""

    synced: bytes = b""
    changes: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        self.synced = _changed(self.synced, self.changes)
        self.changes.clear()

    def size(self) -> int:
        return len(_changed(self.synced, self.changes))


NameChange = dict[str, File | None]
"""Names that change together, and what they stand for afterwards; None for nothing."""


class Disk:
    """A folder on a disk, followed through a log.

    Args:
        before: What lies there at the beginning, synced: content by path; None for a folder.
    """

    def __init__(self, before: dict[str, bytes | None]) -> None:
        self.names: dict[str, File | None] = {}
        """Every name as a running program sees it; a folder has no File."""
        self.folders: set[str] = {""}
        self._synced_names: dict[str, File] = {}
        self._synced_folders: set[str] = {""}
        self._name_changes: list[tuple[set[str], NameChange]] = []
        self._new_folders: list[tuple[str, str]] = []
        for path, content in before.items():
            if content is None:
                self.folders.add(path)
                self._synced_folders.add(path)
            else:
                self.names[path] = self._synced_names[path] = File(content)

    def take(self, line: str) -> None:
        """Follows one line of the log."""
        name, path, other, offset, _, content = line.split("\t")
        match name:
            case "create":
                self._change_names({path: File()})
            case "empty":
                self._file(path).changes.append((0, None))
            case "write":
                self._file(path).changes.append((int(offset), bytes.fromhex(content)))
            case "truncate":
                self._file(path).changes.append((int(offset), None))
            case "rename":
                self._change_names({path: None, other: self._file(path)})
            case "unlink" if path in self.names:
                self._change_names({path: None})
            case "mkdir":
                self.folders.add(path)
                self._new_folders.append((_parent(path), path))
            case "fsync" | "fdatasync" if path in self.folders:
                self._sync_folder(path)
            case "fsync" | "fdatasync":
                self._file(path).sync()
            case "open" | "unlink":
                pass
            case _:
                raise ValueError(f"expected a line of the log, but got {line[:80]!r}")

    def cut(self, chance: random.Random, target: Path) -> None:
        """Writes what a power cut now leaves into an empty folder."""
        lucky = {path for _, path in self._new_folders if chance.random() < 0.5}
        kept_folders: set[str] = set()
        for path in sorted(self._synced_folders | lucky):
            if path == "" or _parent(path) in kept_folders:  # a folder without a name is out of reach
                kept_folders.add(path)
        names = dict(self._synced_names)
        for _, change in self._name_changes:
            if chance.random() < 0.5:
                _apply(names, change)
        contents: dict[int, bytes] = {}
        for path in sorted(kept_folders):
            (target / path.lstrip("/")).mkdir(exist_ok=True)
        for path, file in names.items():
            if _parent(path) in kept_folders:
                content = contents.setdefault(id(file), _cut_content(file, chance))
                (target / path.lstrip("/")).write_bytes(content)

    def _file(self, path: str) -> File:
        file = self.names.get(path)
        if file is None:
            raise ValueError(f"expected a file {path}, but the log made none")
        return file

    def _change_names(self, change: NameChange) -> None:
        for path, file in change.items():
            if file is None:
                self.names.pop(path, None)
            else:
                self.names[path] = file
        self._name_changes.append(({_parent(path) for path in change}, change))

    def _sync_folder(self, folder: str) -> None:
        """A change across two folders is on the disk once either is synced: a rename is one change."""
        waiting = []
        for folders, change in self._name_changes:
            if folder in folders:
                _apply(self._synced_names, change)
            else:
                waiting.append((folders, change))
        self._name_changes = waiting
        self._synced_folders |= {path for parent, path in self._new_folders if parent == folder}
        self._new_folders = [(parent, path) for parent, path in self._new_folders if parent != folder]


def _apply(names: dict[str, File], change: NameChange) -> None:
    for path, file in change.items():
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file


def _cut_content(file: File, chance: random.Random) -> bytes:
    """The synced bytes, and some of the changes since."""
    kept: list[tuple[int, bytes | None]] = []
    for offset, content in file.changes:
        fate = chance.choice(["lost", "kept", "torn"])
        if fate == "lost":
            continue
        if fate == "torn" and content:
            first_end = SECTOR_BYTES - offset % SECTOR_BYTES
            ends = range(first_end, len(content), SECTOR_BYTES)
            content = content[: chance.choice(ends)] if ends else b""
        kept.append((offset, content))
    return _changed(file.synced, kept)


def _changed(content: bytes, changes: Iterable[tuple[int, bytes | None]]) -> bytes:
    result = bytearray(content)
    for offset, written in changes:
        if written is None:
            del result[offset:]
            result.extend(bytes(offset - len(result)))
        elif written:
            result.extend(bytes(max(0, offset - len(result))))
            result[offset : offset + len(written)] = written
    return bytes(result)


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent) if path else ""
    return "" if parent == "/" else parent


def contents_of(folder: Path) -> dict[str, bytes | None]:
    """What lies in a folder: content by path, None for a folder."""
    return {
        "/" + path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }
