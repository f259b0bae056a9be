"""From a file's bytes to captures: what a drop folder and a replay have in common. Opens no file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from edge_agent.capture import Capture
from edge_agent.framing import FORMATS, Framed, FramingParameters, Unframed, frame, recognise

GROUP_OBSERVATIONS = 64
GROUP_BYTES = 4 << 20
QUARANTINE_ENTRY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FramedFile:
    """What is in a file.

    Attributes:
        payload_format: How it was framed; empty where nothing was.
        observations: In the order of the file.
        unframed: What goes to quarantine.
    """

    payload_format: str
    observations: list[Framed]
    unframed: list[Unframed]


def frame_file(content: bytes, payload_format: str | None, parameters: FramingParameters) -> FramedFile:
    """Frames a file's bytes.

    Args:
        content: All bytes of the file.
        payload_format: A key of FORMATS; None to recognise the format by the content.
        parameters: What the format needs to be told.
    """
    if not content:
        return FramedFile("", [], [Unframed(content, "expected a file with an observation, but it is empty")])
    payload_format = payload_format or recognise(content)
    if payload_format is None:
        reason = f"expected one of the formats {', '.join(FORMATS)}, but the file begins with {content[:16]!r}"
        return FramedFile("", [], [Unframed(content, reason)])
    parts = frame(payload_format, content, parameters)
    return FramedFile(
        payload_format,
        [part for part in parts if isinstance(part, Framed)],
        [part for part in parts if isinstance(part, Unframed)],
    )


def join_unframed(parts: list[Unframed]) -> Iterator[tuple[bytes, str]]:
    """Joins what could not be framed to few entries of the quarantine: (bytes, reason).

    A file of noise has thousands of such parts, and each entry costs two files and four syncs of the disk.
    """
    joined: list[Unframed] = []
    joined_bytes = 0
    for part in parts:
        if joined and joined_bytes + len(part.raw) > QUARANTINE_ENTRY_BYTES:
            yield _entry(joined)
            joined, joined_bytes = [], 0
        joined.append(part)
        joined_bytes += len(part.raw)
    if joined:
        yield _entry(joined)


def _entry(parts: list[Unframed]) -> tuple[bytes, str]:
    more = f" (the first of {len(parts)} such parts)" if len(parts) > 1 else ""
    return b"".join(part.raw for part in parts), parts[0].reason + more


def to_captures(file: FramedFile, instrument: str, origin_name: str, after_index: int) -> list[Capture]:
    """The captures of a file's observations, without those that were handed over before.

    Args:
        file: What is in the file.
        instrument: Name of the instrument.
        origin_name: What the source calls the file.
        after_index: The highest index handed over before; -1 where there is none.
    """
    return [
        Capture(
            instrument=instrument,
            payload_format=file.payload_format,
            content=observation.raw,
            origin_name=origin_name,
            origin_index=index,
            measure_unix_nanos=None if observation.measure_unix_s is None else observation.measure_unix_s * 10**9,
        )
        for index, observation in enumerate(file.observations)
        if index > after_index
    ]


def in_groups(captures: list[Capture]) -> Iterator[list[Capture]]:
    """Splits captures into groups that are small enough to wait together for one disk write."""
    group: list[Capture] = []
    group_bytes = 0
    for capture in captures:
        if group and (len(group) >= GROUP_OBSERVATIONS or group_bytes + len(capture.content) > GROUP_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append(capture)
        group_bytes += len(capture.content)
    if group:
        yield group


def printable(name: str) -> str:
    """A file name as text that any message can hold: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
