"""Each line is one observation, its line end with it. Knows nothing of what stands in a line.

A line has no checksum: where bytes were lost, or a line was too long, the rest of that line is no observation.
"""

from __future__ import annotations

from edge_agent.framing.parts import Filler, Framed, Part, Unframed
from edge_agent.framing.streams import Ending, leftover


class LineCutter:
    """Cuts behind each line end.

    Args:
        line_end: At least one byte.
    """

    def __init__(self, line_end: bytes) -> None:
        self._line_end = line_end
        self._searched = 0  # no line end begins before
        self._is_torn = False

    def cut(self, pending: bytearray) -> list[Part]:
        """See Cutter."""
        parts: list[Part] = []
        start = 0
        while (found := pending.find(self._line_end, max(start, self._searched))) >= 0:
            stop = found + len(self._line_end)
            parts.append(self._part(bytes(pending[start:stop])))
            start = stop
        del pending[:start]
        self._searched = max(0, len(pending) - len(self._line_end) + 1)
        return parts

    def flush(self, pending: bytes, ending: Ending) -> list[Part]:
        """See Cutter."""
        self._searched = 0
        self._is_torn = ending.is_torn
        return leftover(pending, f"a line that ends with {self._line_end!r}", ending)

    def _part(self, line: bytes) -> Part:
        is_torn, self._is_torn = self._is_torn, False
        if line.isspace() or line == self._line_end:
            return Filler(line)
        if is_torn:
            return Unframed(line, f"expected a whole line, but got the last {len(line)} bytes of one")
        return Framed(line)


def frame_lines(content: bytes, line_end: bytes) -> list[Part]:
    """The lines of a file; its end ends the last one."""
    pending = bytearray(content)
    parts = LineCutter(line_end).cut(pending)
    if pending:
        parts.append(Filler(bytes(pending)) if pending.isspace() else Framed(bytes(pending)))
    return parts
