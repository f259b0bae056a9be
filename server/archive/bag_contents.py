"""What a bag in the archive holds, read from the bag itself: nothing is let go of on the word of a database alone.

Every file of the bag is read and compared with its manifest, and the manifest with what was recorded of it. Knows the
names of files and columns that docs/archive.md promises, and nothing of how a bag is made.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import netCDF4

from fieldpost.errors import BrokenStateError

MANIFEST = "manifest-sha256.txt"
OBSERVATIONS = "data/observations.csv"
PREDICTIONS_PREFIX, PREDICTIONS_SUFFIX = "data/predictions-", ".nc"

Identity = tuple[str, int]
"""(epoch, sequence)."""
PredictionIdentity = tuple[str, int, str, int, float]
"""(analysis, model version, epoch, sequence, seconds from the day's first instant to when it was made)."""


@dataclass(frozen=True, slots=True)
class BagContents:
    """What may be found in the archive.

    Attributes:
        sha256: Of each observation, in hexadecimal digits.
        predictions: All predictions; one that was made again after its bag is not among them.
    """

    sha256: Mapping[Identity, str]
    predictions: frozenset[PredictionIdentity]


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
        with (folder / OBSERVATIONS).open(newline="", encoding="utf-8") as table:
            sha256 = {(line["epoch"], int(line["sequence"])): line["sha256"] for line in csv.DictReader(table)}
        is_predictions = [name.startswith(PREDICTIONS_PREFIX) and name.endswith(PREDICTIONS_SUFFIX) for name in names]
        files = [folder / name for name, is_wanted in zip(names, is_predictions, strict=True) if is_wanted]
        return BagContents(sha256, frozenset(each for path in files for each in _read_predictions(path)))
    except OSError as error:
        raise BrokenStateError(f"expected a bag in {folder}, but it cannot be read: {error}", hint=_HINT) from error
    except (KeyError, ValueError, AttributeError, IndexError, RuntimeError) as error:
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


def _read_predictions(path: Path) -> Iterator[PredictionIdentity]:
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        analysis, version = str(file.analysis), int(file.model_version)
        epochs = str(file["epoch"].flag_meanings).split()
        columns = (file[name][:].tolist() for name in ("epoch", "sequence", "predict_time"))
        for epoch, sequence, predict_time_s in zip(*columns, strict=True):
            yield analysis, version, epochs[epoch], sequence, predict_time_s


_HINT = "nothing of that day is let go; check that the archive is mounted, and run the archive flow for the day"
