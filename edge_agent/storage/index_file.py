"""The index beside a day file: the offset of each sequence, 8 bytes little-endian. Never synced, and never trusted."""

from __future__ import annotations

import os
import sys
from array import array
from pathlib import Path

_ENTRY_BYTES = 8


def read_index(path: Path) -> array[int]:
    """The offsets as far as they are written; none where there is no index that can be read."""
    offsets = array("Q")
    try:
        content = path.read_bytes()
    except OSError:
        return offsets
    offsets.frombytes(content[: len(content) // _ENTRY_BYTES * _ENTRY_BYTES])
    return _swapped(offsets)


def write_index(path: Path, offsets: array[int], begin: int, *, is_new: bool = False) -> int:
    """Writes the offsets from begin on. A failure is no loss: the next opening finds them in the records.

    Args:
        path: The index.
        offsets: All offsets of the day file.
        begin: How many of them are in the index already.
        is_new: Whether to forget what is in it.

    Returns:
        How many offsets are in it now.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if is_new else 0)
    try:
        descriptor = os.open(path, flags, 0o640)
        try:
            written = os.pwrite(descriptor, _swapped(offsets[begin:]).tobytes(), _ENTRY_BYTES * begin)
        finally:
            os.close(descriptor)
    except OSError:
        return begin
    return begin + written // _ENTRY_BYTES


def _swapped(offsets: array[int]) -> array[int]:
    if sys.byteorder == "big":
        offsets.byteswap()
    return offsets
