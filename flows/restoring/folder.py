"""Puts archived days into a folder as plain files: the instrument's own, the table, predictions, provenance.

    <folder>/<station>/<instrument>/<day>/           the newest version of the day
    <folder>/<station>/<instrument>/<day>/v<N>/      an older one, only where it holds what the newer ones lack

Written beside, brought to the disk, read back, and only then renamed; a day that lies there already is compared and
left alone. Knows no database and no shelf.
"""

from __future__ import annotations

import csv
import ctypes
import hashlib
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fieldpost.errors import BrokenStateError
from fieldpost.ranges import RangeSet
from flows.bags.bag_format import MANIFEST, PAYLOAD_FOLDER
from flows.bags.observations_file import CSV_NAME, TAR_NAME
from flows.bags.reading import BagReader, parse_instant
from server.archive.disk import make_folder, remove_folder, sync

PART_PREFIX = ".part-"
READ_BYTES = 1024 * 1024


class FolderStep(StrEnum):
    """What has just been done; a run can end after any of them."""

    VERSION_WRITTEN = "version written"
    SYNCED = "synced"
    VERIFIED = "verified"
    RENAMED = "renamed"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a day in a folder.

    Attributes:
        name: Of its folder in that of the day; empty for the newest, which lies there itself.
        sha256: Of the files that are in the bag as they are here, by name.
        observation_count: Files of the instrument.
        payload_bytes: Their bytes.
    """

    name: str
    sha256: dict[str, str]
    observation_count: int
    payload_bytes: int


class DayFolder:
    """Takes the versions of a day, the newest first, and has them in their place in the end.

    Args:
        final: Where the day is to lie.
        on_step: Told of each step.
    """

    def __init__(self, final: Path, on_step: Callable[[FolderStep], None]) -> None:
        self._final = final
        self._on_step = on_step
        self._known: defaultdict[str, RangeSet] = defaultdict(RangeSet)
        """Sequences of the versions taken so far, by epoch."""
        self._versions: list[Version] = []
        self.is_there = final.exists()
        self._part = final if self.is_there else final.with_name(f"{PART_PREFIX}{final.name}-{secrets.token_hex(4)}")

    def take(self, reader: BagReader) -> None:
        """Writes a version; nothing where the day lies there already, or where it holds nothing that the newer lack."""
        if not self._note(reader) and self._versions:
            return
        version = _describe(reader, "" if not self._versions else f"v{reader.version}")
        self._versions.append(version)
        if not self.is_there:
            _write(self._part / version.name, reader, version)
            self._on_step(FolderStep.VERSION_WRITTEN)

    def finish(self) -> tuple[list[Version], int]:
        """Reads everything back, and gives the day its name.

        Returns:
            The versions that are there, and how many SHA-256 were computed from their files and found equal.

        Raises:
            OSError: The disk refuses, or another run was faster.
            BrokenStateError: What lies there is not what the archive has.
        """
        if self.is_there:
            return self._versions, self._check()
        _sync_file_system(self._part)
        self._on_step(FolderStep.SYNCED)
        checked_count = self._check()
        self._on_step(FolderStep.VERIFIED)
        self._part.rename(self._final)  # refuses by itself where another run was faster
        sync(self._final.parent)
        self._on_step(FolderStep.RENAMED)
        return self._versions, checked_count

    def abandon(self) -> None:
        """Removes what was written and did not get its name."""
        if not self.is_there:
            remove_folder(self._part)

    def _note(self, reader: BagReader) -> bool:
        """Whether a version holds an observation that the ones before it do not."""
        is_news = False
        with (reader.folder / PAYLOAD_FOLDER / CSV_NAME).open(newline="", encoding="utf-8") as table:
            for line in csv.DictReader(table):
                known, sequence = self._known[line["epoch"]], int(line["sequence"])
                is_news = is_news or sequence not in known
                known.add(sequence)
        return is_news

    def _check(self) -> int:
        return sum(_check_version(self._part / version.name, version) for version in self._versions)


def sweep(home: Path) -> None:
    """Removes what ended runs left of an instrument; only where no other run works on it."""
    for part in home.glob(f"{PART_PREFIX}*"):
        remove_folder(part)


def _describe(reader: BagReader, name: str) -> Version:
    lines = (line.split(f"  {PAYLOAD_FOLDER}/", 1) for line in (reader.folder / MANIFEST).read_text().splitlines())
    sha256 = {file: digest for digest, file in lines if file != TAR_NAME}
    facts = reader.facts["observations"]
    return Version(name, sha256, int(facts["observation_count"]), int(facts["payload_bytes"]))


def _write(target: Path, reader: BagReader, version: Version) -> None:
    make_folder(target)
    for name in version.sha256:
        shutil.copyfile(reader.folder / PAYLOAD_FOLDER / name, target / name)
    for line, member in reader.lines():
        if "/" in member.name:
            raise BrokenStateError(f"expected plain names in {reader.folder}, but got {member.name!r}")
        descriptor = os.open(target / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(member.content)
            while view:
                view = view[os.write(descriptor, view) :]
            measured = parse_instant(line["measure_time"])
            os.utime(descriptor, ns=(measured, measured))  # as plain tar does
        finally:
            os.close(descriptor)


def _check_version(target: Path, version: Version) -> int:
    for name, sha256 in version.sha256.items():
        _check_file(target / name, sha256)
    count = len(version.sha256)
    with (target / CSV_NAME).open(newline="", encoding="utf-8") as table:
        for line in csv.DictReader(table):
            _check_file(target / line["member"], line["sha256"])
            count += 1
    return count


def _check_file(path: Path, expected: str) -> None:
    """Compares a file as the disk has it, not as the kernel remembers it."""
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BrokenStateError(f"expected {path}, as the archive has it, but it is not there", hint=_HINT) from error
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := os.read(descriptor, READ_BYTES):
            digest.update(piece)
    finally:
        os.close(descriptor)
    if digest.hexdigest() != expected:
        raise BrokenStateError(
            f"expected {path} with SHA-256 {expected}, as the archive has it, but it has {digest.hexdigest()}",
            hint=_HINT,
        )


_HINT = "move the folder of this day away, if somebody changed it, and run again"


def _sync_file_system(folder: Path) -> None:
    """Returns once all files of the folder's file system are on the disk: one call, where each of thousands would wait.

    Raises:
        OSError: The disk refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        library = ctypes.CDLL(None, use_errno=True)  # os.sync() would not say whether it went well
        if library.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
