"""Telegrams of Vaisala ceilometers out of a live stream: finds where one ends; vaisala.py says whether it is good.

A piece ends behind EOT, behind a telegram's last line where the line's converter dropped EOT, before the next header
line together with the time line in front of it, and at silence. What follows EOT (CR LF) belongs to the next piece, so
that a telegram is handed over with its last byte and not with the byte behind it.
"""

from __future__ import annotations

import re

from edge_agent.framing.parts import Filler, Part
from edge_agent.framing.streams import Ending
from edge_agent.framing.vaisala import frame_vaisala, header_of, is_last_line, time_line

_BOUNDARY = re.compile(rb"[\x01\x04\n]")
SOH, EOT = b"\x01", b"\x04"


class VaisalaCutter:
    """Cuts a stream into pieces with one telegram each."""

    def __init__(self) -> None:
        # All are offsets into the bytes in hand.
        self._searched = 0
        self._line_start = 0
        self._lead_start: int | None = None  # of the time line and empty lines right before the line in hand
        self._header: re.Match[bytes] | None = None

    def cut(self, pending: bytearray) -> list[Part]:
        """See Cutter."""
        parts: list[Part] = []
        while (boundary := _BOUNDARY.search(pending, self._searched)) is not None:
            is_before = boundary[0] == SOH
            line_end = boundary.start() if is_before else boundary.end()
            self._searched = boundary.end()
            if line_end > self._line_start:
                parts += self._take_line(pending, line_end)
        self._searched = len(pending)
        return parts

    def flush(self, pending: bytes, ending: Ending) -> list[Part]:
        """See Cutter. What is cut off fails its checksum, so nothing has to be known of the ending."""
        self._begin_anew()
        return _frame(pending)

    def _begin_anew(self) -> None:
        self._searched = self._line_start = 0
        self._lead_start = self._header = None

    def _take_line(self, pending: bytearray, line_end: int) -> list[Part]:
        """Takes a line that is complete, and a piece where the line ends one."""
        line = bytes(pending[self._line_start : line_end])
        if (header := header_of(line)) is not None:
            parts = self._cut_piece(pending, self._line_start if self._lead_start is None else self._lead_start)
            self._header, self._lead_start = header, None
            self._line_start += len(line)
            return parts
        if line.endswith(EOT) or (self._header is not None and is_last_line(line, self._header)):
            parts = self._cut_piece(pending, line_end)
            self._header = self._lead_start = None
            return parts
        is_lead = not line.strip() or time_line(line) is not None
        self._lead_start = (self._line_start if self._lead_start is None else self._lead_start) if is_lead else None
        self._line_start = line_end
        return []

    def _cut_piece(self, pending: bytearray, stop: int) -> list[Part]:
        piece = bytes(pending[:stop])
        del pending[:stop]
        self._searched -= stop
        self._line_start = max(0, self._line_start - stop)
        return _frame(piece)


def _frame(piece: bytes) -> list[Part]:
    if not piece:
        return []
    return [Filler(piece)] if piece.isspace() else frame_vaisala(piece)
