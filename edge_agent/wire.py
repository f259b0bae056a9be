"""Puts records of the buffer into a bundle without taking them apart: the bytes on the disk are the bytes on the wire.

A bundle in the protobuf encoding is a sequence of fields, each a tag, a length and its bytes; so the stored header and
payload only need those in front. Made by the library instead, a backlog drains at a third of the speed
(benchmarks/edge.py). tests/test_edge_wire.py holds it against the library.

Source: protobuf.dev/programming-guides/encoding; field numbers as in observation.proto.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_BUNDLE_OBSERVATIONS = b"\x0a"  # field 1, length-delimited
_OBSERVATION_HEADER = b"\x0a"  # field 1
_OBSERVATION_PAYLOAD = b"\x12"  # field 2


def bundle_bytes(observations: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A serialised fieldpost.v1.Bundle.

    Args:
        observations: (serialised header, payload) of each.
    """
    parts: list[bytes] = []
    for header, payload in observations:
        before_payload = _OBSERVATION_PAYLOAD + _varint(len(payload)) if payload else b""
        before_header = _OBSERVATION_HEADER + _varint(len(header))
        length = len(before_header) + len(header) + len(before_payload) + len(payload)
        parts += (_BUNDLE_OBSERVATIONS, _varint(length), before_header, header, before_payload, payload)
    return b"".join(parts)


@lru_cache(1 << 14)
def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have the highest bit set."""
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)
