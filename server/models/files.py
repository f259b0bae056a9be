"""Keeps the files of models, users' and trained ones, each under the SHA-256 of its content. Knows no database."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fieldpost.errors import BrokenStateError

ONNX, SAFETENSORS = ".onnx", ".safetensors"
"""What the names of files end in: a user's model, and the weights of a trained version."""


class ModelFiles:
    """A folder of files that never change. Server processes that share a database share it too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, content: bytes, suffix: str = ONNX) -> str:
        """Keeps a file; once this returns its SHA-256 in hexadecimal digits, it is on the disk."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._path(sha256, suffix)
        if path.exists() and path.read_bytes() == content:
            return sha256
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return sha256

    def read(self, sha256: str, suffix: str = ONNX) -> bytes:
        """Reads a file.

        Raises:
            BrokenStateError: It is damaged or gone.
        """
        path = self._path(sha256, suffix)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BrokenStateError(
                f"expected a model file at {path}, but it cannot be read: {error}",
                hint="restore the folder of models from a backup, or submit or train the model again",
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise BrokenStateError(
                f"expected a model file with SHA-256 {sha256}, but got {found} ({path})",
                hint="the disk damaged it: restore it from a backup, or submit or train the model again",
            )
        return content

    def _path(self, sha256: str, suffix: str) -> Path:
        return self._folder / f"{sha256}{suffix}"
