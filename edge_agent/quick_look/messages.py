"""How the agent and its child speak over pipes: a length, then a JSON head and blobs. Knows no process.

u32 length of the rest | u32 number of parts | u32 length of each part | the parts, the first of them JSON
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from fieldpost.errors import BrokenStateError

MESSAGE_BYTES_MAX = 64 << 20

Message = tuple[dict[str, Any], list[bytes]]


def pack(head: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """A message as bytes."""
    parts = [json.dumps(head, separators=(",", ":")).encode(), *blobs]
    lengths = struct.pack(f">{len(parts) + 1}I", len(parts), *map(len, parts))
    size = len(lengths) + sum(map(len, parts))
    return b"".join([struct.pack(">I", size), lengths, *parts])


class MessageBuffer:
    """Collects bytes as they come, and gives whole messages back."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, content: bytes) -> None:
        """Takes what was read."""
        self._bytes += content

    def next(self) -> Message | None:
        """The next message; None where it is not whole yet.

        Raises:
            BrokenStateError: The bytes are no message.
        """
        if len(self._bytes) < 4:
            return None
        (size,) = struct.unpack_from(">I", self._bytes)
        if size > MESSAGE_BYTES_MAX:
            raise BrokenStateError(f"expected a message of at most {MESSAGE_BYTES_MAX} bytes, but got {size}")
        if len(self._bytes) < 4 + size:
            return None
        body = bytes(self._bytes[4 : 4 + size])
        del self._bytes[: 4 + size]
        return _parse(body)


def _parse(body: bytes) -> Message:
    try:
        (count,) = struct.unpack_from(">I", body)
        lengths = struct.unpack_from(f">{count}I", body, 4)
        place = 4 + 4 * count
        parts = []
        for length in lengths:
            parts.append(body[place : place + length])
            place += length
        head = json.loads(parts[0])
    except (struct.error, ValueError, IndexError) as error:
        raise BrokenStateError(f"expected a message, but got {body[:40]!r}: {error}") from error
    if place != len(body) or not isinstance(head, dict):
        raise BrokenStateError(f"expected a message of {len(body)} bytes, but got {place} bytes of parts")
    return head, parts[1:]
