"""The files of a training: written whole or not at all, so that a run that was killed goes on.

Knows no network and no loss.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fieldpost.errors import InvalidRequestError, TryAgainError


def make_folder(path: Path) -> None:
    """Makes a folder, and sees that it can be written to before hours of work are to end there.

    Raises:
        InvalidRequestError: It cannot.
    """
    probe = path / f".writable-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidRequestError(
            f"expected a folder that can be written to, but got {path}: {error.strerror}", hint="choose another --out"
        ) from error


def read_input(path: Path, what: str) -> bytes:
    """A file that was named.

    Raises:
        InvalidRequestError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"expected {what}, but got {path}: {error.strerror}") from error


def write_checkpoint(path: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes where a training stands.

    Args:
        path: Of the file.
        run: What makes a run the same, plain values.
        state: What it goes on from.

    Raises:
        TryAgainError: The disk does not take it; the checkpoint before it is still there.
    """
    _write_whole(path, lambda file: torch.save({"run": dict(run), **state}, file))


def read_checkpoint(path: Path, run: Mapping[str, Any], device: torch.device | str) -> dict[str, Any] | None:
    """What write_checkpoint has written; None where there is nothing that can be read.

    Raises:
        InvalidRequestError: It is of another run.
    """
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        known = saved.pop("run")
    except FileNotFoundError:
        return None
    except (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError):
        return None  # cut short by a power cut or a full disk: all that is lost is time
    if known != run:
        names = sorted(name for name in {*known, *run} if known.get(name) != run.get(name))
        raise InvalidRequestError(
            f"expected the checkpoint of a run with the same {', '.join(names)}, but got another's ({path})",
            hint="remove it, or choose another --out",
        )
    return saved


def write_file(path: Path, content: bytes) -> None:
    """Writes a file.

    Raises:
        TryAgainError: The disk does not take it.
    """
    _write_whole(path, lambda file: file.write(content))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes values for programs and people."""
    write_file(path, (json.dumps(values, indent=1) + "\n").encode())


def _write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    partial = path.with_suffix(".part")
    try:
        with partial.open("wb") as file:
            write(file)
            _sync(file)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
        partial.unlink(missing_ok=True)
        raise TryAgainError(
            f"expected room for {path}, but got: {error}",
            hint="make room and run again with the same --out: it goes on from the last checkpoint",
        ) from error


def _sync(file: BinaryIO) -> None:
    """Until it is on the disk, a power cut would leave an empty file under the final name."""
    file.flush()
    if Path(file.name).is_file():
        os.fsync(file.fileno())
