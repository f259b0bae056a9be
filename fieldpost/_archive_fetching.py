"""The folder into which a bag is fetched: written aside, taken up again, compared with its manifests, then named.

Nothing unverified ever has a final name, and what is named is on the disk. Opens no connection: it is handed bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from fieldpost._archive_requests import ArchivedBag, BagFile
from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError

MANIFEST, TAG_MANIFEST, PAYLOAD_PREFIX = "manifest-sha256.txt", "tagmanifest-sha256.txt", "data/"
_BLOCK_BYTES = 1024 * 1024
_ASK = "the bag in the archive is damaged: ask the server's operator to run the flow scrub, then fetch again"


class PartFile:
    """One file while it is fetched; what an ended run left of it is kept.

    Args:
        path: Where it is written.
        file: What it is to become.
    """

    def __init__(self, path: Path, file: BagFile) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._path = path
        self._stream = path.open("ab+")
        self._digest = hashlib.sha256()
        self.done_bytes = 0
        self._stream.seek(0)
        while block := self._stream.read(_BLOCK_BYTES):
            self._note(block)
        self._is_resumed = self.done_bytes > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()

    def write(self, piece: bytes) -> None:
        """Appends a piece."""
        self._stream.write(piece)
        self._note(piece)

    def _note(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.done_bytes += len(piece)

    def is_whole(self) -> bool:
        """Whether all bytes are there and right; brings them down to the disk then.

        Where they are wrong and an ended run had left some of them, the file is emptied: it is to be read once more.

        Raises:
            BrokenStateError: The bytes that came are not those that the manifest promises.
        """
        if self.done_bytes < self.file.file_bytes:
            return False
        if self._digest.hexdigest() == self.file.sha256 and self.done_bytes == self.file.file_bytes:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            return True
        got = f"{self.done_bytes} with {self._digest.hexdigest()}"
        self._stream.truncate(0)
        self._digest, self.done_bytes = hashlib.sha256(), 0
        if self._is_resumed:
            self._is_resumed = False
            return False
        raise BrokenStateError(
            f"expected {self.file.file_bytes} bytes with SHA-256 {self.file.sha256}, but got {got} ({self._path})",
            hint=_ASK,
        )


class Fetch:
    """A bag on its way into a folder.

    Args:
        bag: The bag.
        files: Its files.
        folder: Below which it appears, as in the archive: station/instrument/YYYY/YYYY-MM-DD.vN.
    """

    def __init__(self, bag: ArchivedBag, files: Iterable[BagFile], folder: Path) -> None:
        self.final = folder / bag.station / bag.instrument / f"{bag.day:%Y}" / f"{bag.day}.v{bag.version}"
        self._bag = bag
        # The few that say what the others must be come first.
        self.files = sorted(files, key=lambda each: (each.file.startswith(PAYLOAD_PREFIX), each.file))
        self._part = self.final.with_name(f".part-{self.final.name}-{bag.manifest_sha256[:8]}")

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(each.file_bytes for each in self.files)

    @contextmanager
    def alone(self) -> Generator[None]:
        """Keeps other processes away from what is written; what the disk refuses is told in our words.

        Raises:
            TryAgainError: Another process fetches the bag into this folder now, or the disk refuses.
        """
        try:
            self._part.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._part, os.O_RDONLY)  # the folder itself: freed however the process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(lock), self._part.stat()):  # it got its name in between
                    raise BlockingIOError
                yield
            finally:
                with suppress(OSError):  # it is left only where something is in it
                    self._part.rmdir()
                os.close(lock)
        except BlockingIOError as error:
            raise TryAgainError(
                f"expected to be the only one who fetches {self._bag} into {self.final.parent}, but another process "
                "does",
                hint="wait for it, or fetch into another folder",
            ) from error
        except OSError as error:
            raise TryAgainError(
                f"the bag could not be written: {error}",
                hint="make room, or choose a folder that can be written; what has come so far is taken up again",
            ) from error

    def is_there(self) -> bool:
        """Whether the bag has been fetched before; reads it whole.

        Raises:
            InvalidRequestError: Something else has its name.
        """
        if not self.final.exists():
            return False
        got = {str(path.relative_to(self.final)): path for path in self.final.rglob("*") if not path.is_dir()}
        wanted = {each.file: each.sha256 for each in self.files}
        if got.keys() != wanted.keys() or any(_sha256(path) != wanted[name] for name, path in got.items()):
            raise InvalidRequestError(
                f"expected nothing in {self.final}, or this bag, but it holds something else",
                hint="move it away, or fetch into another folder; nothing was overwritten",
            )
        return True

    def parts(self) -> Iterator[PartFile]:
        """Each file, to be filled until it is whole; the manifests are compared before the first payload file comes.

        Raises:
            BrokenStateError: The bag is not the one that is recorded, or its manifests do not name its files.
        """
        is_payload_due = False
        for file in self.files:
            if file.file.startswith(PAYLOAD_PREFIX) and not is_payload_due:
                self._check_manifests()
                is_payload_due = True
            with PartFile(self._part / file.file, file) as part:
                yield part
        if not is_payload_due:
            self._check_manifests()

    def _check_manifests(self) -> None:
        hashes = {each.file: each.sha256 for each in self.files}
        if hashes.get(MANIFEST) != self._bag.manifest_sha256:
            raise BrokenStateError(
                f"expected {MANIFEST} with SHA-256 {self._bag.manifest_sha256}, but got {hashes.get(MANIFEST)} "
                f"({self._bag})",
                hint=_ASK,
            )
        tag_hash = hashes.pop(TAG_MANIFEST, None)
        promised = _read_manifest(self._part / MANIFEST)
        if tag_hash is not None:
            promised |= _read_manifest(self._part / TAG_MANIFEST)
        if promised != hashes:
            wrong = sorted({name for name, _ in promised.items() ^ hashes.items()})
            raise BrokenStateError(
                f"expected the files that the manifests of {self._bag} promise, but these differ: {', '.join(wrong)}",
                hint=_ASK,
            )

    def publish(self) -> Path:
        """Gives the bag its name, once all files are whole; returns its folder."""
        names = {each.file for each in self.files}
        for path in self._part.rglob("*"):
            if not path.is_dir() and str(path.relative_to(self._part)) not in names:
                path.unlink()
        for folder in [*(path for path in self._part.rglob("*") if path.is_dir()), self._part]:
            _sync(folder)
        self._part.rename(self.final)
        _sync(self.final.parent)
        return self.final


def _read_manifest(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: sha256 for sha256, name in (line.split("  ", 1) for line in lines)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
