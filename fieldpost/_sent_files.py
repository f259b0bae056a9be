"""Remembers which file was sent under which identity, so that sending it again stores nothing twice.

One journal for each station, in the folder for state of the person who sends: the epoch in its first line, then one
line for each file. A file is the same while its path, its instrument and its content are. Talks to no server.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from fieldpost._outbox import Outbox, new_epoch
from fieldpost._times import Moment
from fieldpost._uploading import Sendable
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.names import check_name

_Known: TypeAlias = tuple[str, str, str]
"""(instrument, path, SHA-256)."""


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where a person's programs keep their state."""
    home = environment.get("XDG_STATE_HOME") or str(Path(environment.get("HOME", "/")) / ".local" / "state")
    return Path(home) / "fieldpost" / "sent"


class SentFiles:
    """The journal of a station, for one process at a time.

    Args:
        folder: Where the journals lie.
        station: The station in whose name files are sent.

    Raises:
        InvalidObservationError: The station's name breaks the rule for names.
        InvalidRequestError: Another process sends for this station now.
        BrokenStateError: The journal cannot be read.
    """

    def __init__(self, folder: Path, station: str) -> None:
        self.station = check_name("station", station)
        self.path = folder / f"{station}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self._file.close()
            raise InvalidRequestError(
                f"expected to be the only one who sends for {station}, but another process does ({self.path})",
                hint="wait for it, or send in the name of another station",
            ) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # the process died while it wrote; nothing was sent under it
            self._file.truncate(sum(len(line.encode()) for line in lines[:-1]))
            lines.pop()
        self._known: dict[_Known, int] = {}
        try:
            facts = [json.loads(line) for line in lines]
            self.epoch = facts[0]["epoch"] if facts else self._begin()
            for fact in facts[1:]:
                self._known[fact["instrument"], fact["file"], fact["sha256"]] = fact["sequence"]
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenStateError(
                f"expected a journal of sent files, but it cannot be read: {error} ({self.path})",
                hint="move it away: what is sent again is then stored as new observations",
            ) from error
        self._last_sequence = max(self._known.values(), default=0)

    def _begin(self) -> str:
        epoch = new_epoch()
        self._append([{"epoch": epoch}])
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power cut may take the whole file away
        finally:
            os.close(folder)
        return epoch

    def _append(self, facts: Iterable[Mapping[str, object]]) -> None:
        self._file.writelines(json.dumps(fact) + "\n" for fact in facts)
        self._file.flush()
        os.fsync(self._file.fileno())

    def number(self, instrument: str, paths: Iterable[Path]) -> list[tuple[int, Path]]:
        """Gives each file its sequence: that which it had, or a new one, on the disk before it is returned; ascending.

        Raises:
            InvalidObservationError: The instrument's name breaks the rule for names.
            InvalidRequestError: A file cannot be read.
        """
        check_name("instrument", instrument)
        numbered: dict[int, Path] = {}
        fresh = []
        for path in paths:
            known = (instrument, str(path.resolve()), _sha256(path))
            if known not in self._known:
                self._last_sequence += 1
                self._known[known] = self._last_sequence
                fresh.append(
                    dict(zip(("instrument", "file", "sha256"), known, strict=True), sequence=self._last_sequence)
                )
            numbered[self._known[known]] = path
        self._append(fresh)
        return sorted(numbered.items())

    def observations(
        self,
        instrument: str,
        numbered: Iterable[tuple[int, Path]],
        measured: Mapping[Path, Moment],
        payload_format: str,
    ) -> Iterator[Sendable]:
        """The observations of the files, as they are asked for."""
        for sequence, path in numbered:
            outbox = Outbox(self.station, epoch=self.epoch, next_sequence=sequence, payload_format=payload_format)
            yield outbox.file(instrument, path, measured.get(path))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidRequestError(f"expected a file that can be read, but got: {error}") from error
