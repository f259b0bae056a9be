"""A stream's bytes in, observations out, however the stream is cut into chunks. Knows no port, no socket and no clock.

What a cutter decides rests on the bytes up to that decision and on silence, never on where a chunk ends; and never are
more than max_frame_bytes in hand. So the framed observations are the same for every chunking. Nothing is dropped: the
parts that come out, put together, are the bytes that went in.
"""

from __future__ import annotations

import enum
from typing import Protocol

from edge_agent.framing.parameters import FramingParameters
from edge_agent.framing.parts import Filler, Framed, Part, Unframed


class Ending(enum.Enum):
    """Why a cutter gets no more bytes for what it has in hand; the value is for people."""

    SILENCE = "silence"
    END = "the end of the stream"
    OVERFLOW = "still no end of it"
    LOSS = "a loss of bytes"

    @property
    def is_torn(self) -> bool:
        """Whether what follows may be the rest of what was in hand."""
        return self in (Ending.OVERFLOW, Ending.LOSS)


class Cutter(Protocol):
    """One way to cut a stream."""

    def cut(self, pending: bytearray) -> list[Part]:
        """Takes off the front what is complete. Each decision rests on the bytes up to it and on none behind."""
        ...

    def flush(self, pending: bytes, ending: Ending) -> list[Part]:
        """What becomes of bytes that are not complete; afterwards it begins anew."""
        ...


class Framer(Protocol):
    """What a source of streams needs."""

    def feed(self, content: bytes, now_s: float) -> list[Part]:
        """Takes bytes that came at now_s, monotonic, never earlier than before."""
        ...

    def idle(self, now_s: float) -> list[Part]:
        """Nothing came until now_s: where that is idle_gap_s of silence, it ends what is in hand."""
        ...

    def end(self) -> list[Part]:
        """The stream is over."""
        ...

    def lose(self) -> list[Part]:
        """Bytes were lost here: what is in hand has no end, and what follows may have no beginning."""
        ...

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing would be lost or changed if this framer were replaced by a new one."""
        ...


class StreamFramer:
    """Cuts a stream with a cutter.

    Args:
        cutter: How; used by no one else.
        parameters: idle_gap_s and max_frame_bytes are looked at here.
    """

    def __init__(self, cutter: Cutter, parameters: FramingParameters) -> None:
        self._cutter = cutter
        self._idle_gap_s = parameters.idle_gap_s
        self._max_bytes = parameters.max_frame_bytes
        self._pending = bytearray()
        self._last_s: float | None = None

    @property
    def is_at_rest(self) -> bool:
        """See Framer."""
        return self._last_s is None

    def feed(self, content: bytes, now_s: float) -> list[Part]:
        """See Framer."""
        parts = self.idle(now_s)
        self._last_s = now_s
        start = 0
        while start < len(content):
            # One byte more than allowed, so that too long is found at the same byte for every chunking.
            stop = start + self._max_bytes + 1 - len(self._pending)
            self._pending += content[start:stop]
            start = stop
            parts += self._cutter.cut(self._pending)
            if len(self._pending) > self._max_bytes:
                parts += self._flush(Ending.OVERFLOW)
        return parts

    def idle(self, now_s: float) -> list[Part]:
        """See Framer."""
        if self._last_s is None or now_s - self._last_s < self._idle_gap_s:
            return []
        self._last_s = None
        return self._flush(Ending.SILENCE)

    def end(self) -> list[Part]:
        """See Framer."""
        self._last_s = None
        return self._flush(Ending.END)

    def lose(self) -> list[Part]:
        """See Framer."""
        return self._flush(Ending.LOSS)

    def _flush(self, ending: Ending) -> list[Part]:
        pending = bytes(self._pending)
        self._pending.clear()
        return self._cutter.flush(pending, ending)


class DatagramFramer:
    """Each feed is one observation: a datagram has its ends already.

    Args:
        parameters: max_frame_bytes is looked at here.
    """

    is_at_rest = True

    def __init__(self, parameters: FramingParameters) -> None:
        self._max_bytes = parameters.max_frame_bytes

    def feed(self, content: bytes, now_s: float) -> list[Part]:
        """See Framer."""
        if len(content) > self._max_bytes:
            return [
                Unframed(content, f"expected a datagram of at most {self._max_bytes} bytes, but got {len(content)}")
            ]
        return [Framed(content)] if content else []

    def idle(self, now_s: float) -> list[Part]:
        """See Framer."""
        return []

    def end(self) -> list[Part]:
        """See Framer."""
        return []

    def lose(self) -> list[Part]:
        """See Framer."""
        return []


def leftover(raw: bytes, expected: str, ending: Ending) -> list[Part]:
    """Bytes that came to nothing: filler where they are white space, else unframed with a reason."""
    if not raw:
        return []
    if raw.isspace():
        return [Filler(raw)]
    return [Unframed(raw, f"expected {expected}, but got {len(raw)} bytes and then {ending.value}")]
