"""A pause ends an observation: for instruments that say nothing of their own about where one begins. Knows no format.

Only a pause makes an observation: what was cut short by the end of the stream, or was too long, is none.
"""

from __future__ import annotations

from edge_agent.framing.parts import Filler, Framed, Part, Unframed
from edge_agent.framing.streams import Ending, leftover


class IdleGapCutter:
    """Waits for silence."""

    def __init__(self) -> None:
        self._is_torn = False

    def cut(self, pending: bytearray) -> list[Part]:
        """See Cutter."""
        if not self._is_torn or not pending:
            return []
        raw = bytes(pending)
        pending.clear()
        return [Unframed(raw, f"expected a pause before an observation, but got {len(raw)} bytes more of a torn one")]

    def flush(self, pending: bytes, ending: Ending) -> list[Part]:
        """See Cutter."""
        was_torn, self._is_torn = self._is_torn, ending.is_torn
        if ending is Ending.SILENCE and pending and not was_torn:
            return [Filler(pending) if pending.isspace() else Framed(pending)]
        return leftover(pending, "an observation and then a pause", ending)
