"""Frames of one length, with or without a start that is always the same. Knows nothing of what stands in a frame.

With a start, the cutter finds back into step at the next one. Without, only silence tells where a frame begins.
A frame has no checksum: bytes that the line lost inside of one shift it into the next, and only the start of the one
after that brings the step back.
"""

from __future__ import annotations

from edge_agent.framing.parts import Filler, Framed, Part, Unframed
from edge_agent.framing.streams import Ending, leftover


class FixedLengthCutter:
    """Cuts frames of one length.

    Args:
        frame_bytes: The length of a frame, its start included.
        frame_start: What each frame begins with; empty for none.
    """

    def __init__(self, frame_bytes: int, frame_start: bytes) -> None:
        self._frame_bytes = frame_bytes
        self._start = frame_start
        self._is_torn = False

    def cut(self, pending: bytearray) -> list[Part]:
        """See Cutter."""
        parts: list[Part] = []
        while pending:
            parts += self._skip(pending)
            if len(pending) < self._frame_bytes or not pending.startswith(self._start):
                break
            parts.append(Framed(bytes(pending[: self._frame_bytes])))
            del pending[: self._frame_bytes]
        return parts

    def flush(self, pending: bytes, ending: Ending) -> list[Part]:
        """See Cutter."""
        self._is_torn = ending.is_torn
        return leftover(pending, f"a frame of {self._frame_bytes} bytes", ending)

    def _skip(self, pending: bytearray) -> list[Part]:
        """Takes off what belongs to no frame."""
        skipped = bytes(pending[: self._skip_bytes(pending)])
        del pending[: len(skipped)]
        if not skipped:
            return []
        if self._start and skipped.isspace():
            return [Filler(skipped)]
        where = f"that begins with {self._start!r}" if self._start else "in step, which only silence brings back"
        return [Unframed(skipped, f"expected a frame {where}, but got {len(skipped)} bytes: {skipped[:40]!r}")]

    def _skip_bytes(self, pending: bytearray) -> int:
        if not self._start:
            return len(pending) if self._is_torn else 0
        found = pending.find(self._start)
        # A start may have begun with the last bytes.
        return found if found >= 0 else max(0, len(pending) - len(self._start) + 1)


def frame_fixed_length(content: bytes, frame_bytes: int, frame_start: bytes) -> list[Part]:
    """The frames of a file."""
    cutter = FixedLengthCutter(frame_bytes, frame_start)
    pending = bytearray(content)
    return [*cutter.cut(pending), *cutter.flush(bytes(pending), Ending.END)]
