"""What a bag in the archive holds, read from the bag itself: nothing is let go of on the word of a database alone.

Every file of the bag is read and compared with its manifest, and the manifest with what was recorded of it. What is
kept of a day of a million observations is some tens of megabytes, in sorted columns. Knows the names of files and
columns that docs/archive.md promises, and nothing of how a bag is made.
"""

from __future__ import annotations

import csv
import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import netCDF4
import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import BrokenStateError
from server.archive.shelf import MANIFEST

OBSERVATIONS = "data/observations.csv"
PREDICTIONS_PREFIX, PREDICTIONS_SUFFIX = "data/predictions-", ".nc"
SHA256_BYTES = 32
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Column:
    """Values by sequence.

    Attributes:
        sequences: Ascending: (values,), int64.
        values: (values,), of any dtype.
    """

    sequences: NDArray[np.int64]
    values: NDArray[Any]

    @classmethod
    def sort(cls, sequences: NDArray[np.int64], values: NDArray[Any]) -> Self:
        """The same in order of sequence; those that are in order already are taken as they are."""
        if len(sequences) < 2 or bool(np.all(sequences[:-1] <= sequences[1:])):
            return cls(sequences, values)
        order = np.argsort(sequences, kind="stable")
        return cls(sequences[order], values[order])

    def find(self, sequence: int) -> NDArray[Any]:
        """The values of a sequence: none, one, or more where it came more than once."""
        first, last = np.searchsorted(self.sequences, (sequence, sequence + 1))
        return self.values[first:last]


class BagContents:
    """What may be found in the archive.

    Args:
        sha256: Of each observation, as 32 bytes, by epoch and sequence.
        predict_s: When each prediction was made, in seconds from the day's first instant, by analysis, model version,
            epoch and sequence; a prediction that was made again after its bag is not among them.
    """

    def __init__(self, sha256: dict[str, Column], predict_s: dict[tuple[str, int, str], Column]) -> None:
        self._sha256 = sha256
        self._predict_s = predict_s

    def has_observation(self, epoch: str, sequence: int, sha256: bytes) -> bool:
        """Whether these very bytes of the instrument are in the bag."""
        column = self._sha256.get(epoch)
        return column is not None and any(each.tobytes() == sha256 for each in column.find(sequence))

    def has_prediction(self, analysis: str, version: int, epoch: str, sequence: int, predict_s: float) -> bool:
        """Whether the prediction that was made at this instant is in the bag."""
        column = self._predict_s.get((analysis, version, epoch))
        return column is not None and predict_s in column.find(sequence)


def read_contents(folder: Path, manifest_sha256: str) -> BagContents:
    """Reads a whole bag.

    Args:
        folder: The bag.
        manifest_sha256: Of its manifest, as it was recorded when the bag had been verified.

    Raises:
        BrokenStateError: The bag is not there, or not what was recorded.
    """
    try:
        names = _check_files(folder, manifest_sha256)
        sha256 = _read_observations(folder / OBSERVATIONS)
        predict_s: dict[tuple[str, int, str], Column] = {}
        for name in names:
            if name.startswith(PREDICTIONS_PREFIX) and name.endswith(PREDICTIONS_SUFFIX):
                predict_s |= _read_predictions(folder / name)
        return BagContents(sha256, predict_s)
    except OSError as error:
        raise BrokenStateError(f"expected a bag in {folder}, but it cannot be read: {error}", hint=_HINT) from error
    except (KeyError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise BrokenStateError(f"expected a bag of Fieldpost in {folder}, but got: {error!r}", hint=_HINT) from error


def _check_files(folder: Path, manifest_sha256: str) -> list[str]:
    """Compares every file with the manifest; returns their names."""
    manifest = (folder / MANIFEST).read_bytes()
    _compare(folder / MANIFEST, hashlib.sha256(manifest).hexdigest(), manifest_sha256)
    names = []
    for line in manifest.decode().splitlines():
        sha256, name = line.split("  ", 1)
        with (folder / name).open("rb") as file:
            _compare(folder / name, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
        names.append(name)
    return names


def _compare(path: Path, got: str, expected: str) -> None:
    if got != expected:
        raise BrokenStateError(f"expected {path} with SHA-256 {expected}, but it has {got}", hint=_HINT)


def _read_observations(path: Path) -> dict[str, Column]:
    sequences: dict[str, array[int]] = {}
    digests: dict[str, bytearray] = {}
    with path.open(newline="", encoding="utf-8") as table:
        lines = csv.reader(table)
        header = next(lines)
        epoch_at, sequence_at, sha256_at = (header.index(name) for name in ("epoch", "sequence", "sha256"))
        for line in lines:
            digest = bytes.fromhex(line[sha256_at])
            if len(digest) != SHA256_BYTES:
                raise ValueError(f"{line[sha256_at]!r} is no SHA-256")
            epoch = line[epoch_at]
            sequences.setdefault(epoch, array("q")).append(int(line[sequence_at]))
            digests.setdefault(epoch, bytearray()).extend(digest)
    return {
        epoch: Column.sort(
            np.frombuffer(sequences[epoch], np.int64), np.frombuffer(digests[epoch], np.uint8).reshape(-1, SHA256_BYTES)
        )
        for epoch in sequences
    }


def _read_predictions(path: Path) -> dict[tuple[str, int, str], Column]:
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        analysis, version = str(file.analysis), int(file.model_version)
        epochs = str(file["epoch"].flag_meanings).split()
        codes, sequences, predict_s = _read_first_rows(file)
    columns = {}
    for code, epoch in enumerate(epochs):
        is_here = codes == code
        here = slice(None) if is_here.all() else is_here  # of one epoch, as nearly always, nothing is copied
        columns[analysis, version, epoch] = Column.sort(sequences[here], predict_s[here])
    return columns


def _read_first_rows(file: netCDF4.Dataset) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]:
    """Epoch, sequence and predict time of each prediction's first row: one of many samples has as many rows."""
    columns = [file[name] for name in ("epoch", "sequence", "predict_time")]
    row_count = len(columns[0])
    codes, sequences = np.empty(row_count, np.int32), np.empty(row_count, np.int64)
    predict_s = np.empty(row_count, np.float64)
    end = 0
    for first in range(0, row_count, ROWS_AT_ONCE):
        code, sequence, predict = (column[first : first + ROWS_AT_ONCE] for column in columns)
        is_new = np.ones(len(code), bool)
        is_new[1:] = (code[1:] != code[:-1]) | (sequence[1:] != sequence[:-1]) | (predict[1:] != predict[:-1])
        here = slice(end, end := end + int(is_new.sum()))
        codes[here], sequences[here], predict_s[here] = code[is_new], sequence[is_new], predict[is_new]
    return codes[:end], sequences[:end], predict_s[:end]


_HINT = "nothing of that day is let go; check that the archive is mounted, and run the archive flow for the day"
