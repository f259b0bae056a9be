"""Where certificate and key lie, which of them belong together, and how a new pair takes the place of the old one.

Knows neither what a certificate says nor whether a broker likes it.

In use are <certificate> and <key>; a new pair stands beside them as <certificate>.new and <key>.new, the former one as
.old. A certificate that was renewed for the same key comes as <certificate>.new alone. Two files cannot change their
names at once, so a promotion goes in steps, and every step leaves a pair that belongs together:

    1. The pair in use is copied to .old: in use (old), .new (new).
    2. The new key takes its place:      .old (old), <certificate>.new with <key> (new).
    3. The new certificate follows:      .old (old), in use (new).

Whoever finds the files as after step 2 sees the former pair, and a new certificate for the key in use: it is tried and
promoted as any other.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from edge_agent.storage.durable import disk_error, sync_folder

Version = tuple[tuple[int, int, int], ...]
"""Which files these were: inode, time of change and size of each."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and the key it was made for."""

    certificate: Path
    key: Path

    def version(self) -> Version | None:
        """Which files these are now; None where one is missing."""
        try:
            found = [path.stat() for path in (self.certificate, self.key)]
        except OSError:
            return None
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """What lies there now.

    Attributes:
        current: The pair in use; the former one where those in use are unusable; None where there is none at all.
        new: One that waits beside it.
        problems: What is wrong with files that are there, in words.
    """

    current: Pair | None
    new: Pair | None
    problems: tuple[str, ...] = ()


class PairFiles:
    """The files of one station.

    Args:
        certificate_file: The certificate in use, PEM; may hold its chain, and the key as well.
        key_file: Its key; may be the same file.
    """

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        self.in_use = Pair(certificate_file, key_file)
        self.former = Pair(_beside(certificate_file, ".old"), _beside(key_file, ".old"))
        self._new_certificate, self._new_key = _beside(certificate_file, ".new"), _beside(key_file, ".new")
        self._checked: dict[Pair, tuple[Version | None, str]] = {}

    def find(self) -> FoundPairs:
        """Looks which pairs are there."""
        fault = self._fault(self.in_use)
        problems = []
        current: Pair | None = self.in_use
        if fault:
            current = self.former if not self._fault(self.former) else None
            goes_on = "the former pair is used instead" if current else "nothing can be sent without them"
            problems.append(f"{fault}; {goes_on}")
        new = self._find_new()
        new_fault = self._fault(new) if new else ""
        if new_fault:
            problems.append(f"{new_fault}; the new certificate is not tried")
        return FoundPairs(current, None if new_fault else new, tuple(problems))

    def promote(self, new: Pair, version: Version | None) -> bool:
        """Puts a new pair in the place of the one in use, and keeps that one as .old.

        Args:
            new: The pair, as find gave it.
            version: What it was when a broker accepted it.

        Returns:
            False where it is not that pair any more: somebody has just put another one there.

        Raises:
            TryAgainError: The disk is full.
            BrokenStateError: The folder cannot be written to. The files are as before, or will be found.
        """
        if version is None or new.version() != version:
            return False
        try:
            for path in {new.certificate, new.key}:
                _sync_file(path)
            if not self._fault(self.in_use):
                for source, copy in zip(_paths(self.in_use), _paths(self.former), strict=True):
                    _copy_file(source, copy)
            for source, target in reversed(list(zip(_paths(new), _paths(self.in_use), strict=True))):
                if source != target:
                    _move_file(source, target)
        except OSError as error:
            raise disk_error(error, self.in_use.certificate) from error
        return not self._fault(self.in_use)

    def _find_new(self) -> Pair | None:
        """A key alone is no pair yet: its certificate is still to come."""
        if not _is_there(self._new_certificate):
            return None
        return Pair(self._new_certificate, self._new_key if _is_there(self._new_key) else self.in_use.key)

    def _fault(self, pair: Pair) -> str:
        """Why the pair cannot be used, in words; "" where it can. Looked up where the files are the same as before."""
        version = pair.version()
        known = self._checked.get(pair)
        if known is None or version is None or known[0] != version:
            known = self._checked[pair] = (version, _examine(pair))
        return known[1]


def _paths(pair: Pair) -> list[Path]:
    """Each file once, the certificate first."""
    return list(dict.fromkeys((pair.certificate, pair.key)))


def _examine(pair: Pair) -> str:
    for path in _paths(pair):
        try:
            path.open("rb").close()
        except OSError as error:
            return f"expected to read {path}, but got {error.strerror}"
    try:
        # Without a password of our own OpenSSL would ask for one at the terminal, and wait.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(pair.certificate, pair.key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"expected {pair.key} to be the key of {pair.certificate}, but it is another one's"
        return f"expected PEM in {pair.certificate} and {pair.key}, without a password, but got {error.reason or error}"
    except OSError as error:  # of a worn card: a file can be opened, but not be read
        return f"expected to read {pair.certificate} and {pair.key}, but got {error.strerror or error}"
    return ""


def _is_there(path: Path) -> bool:
    """Whether there is such a file; Path.exists raises where the folder may not be looked into, or is broken."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_file(source: Path, target: Path) -> None:
    """Copied, not linked: some file systems have no links, and the kernel forbids them for files of another's."""
    content, mode = source.read_bytes(), source.stat().st_mode & 0o777
    temporary = _beside(target, ".part")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _move_file(temporary, target)


def _move_file(source: Path, target: Path) -> None:
    """Each name is on the disk before the next one changes: a power cut must not turn the steps round."""
    os.replace(source, target)  # noqa: PTH105  (the tests count the system's calls)
    sync_folder(target.parent)
