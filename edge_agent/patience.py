"""How long a session waits for a receipt, and how much it dares to send meanwhile. Pure; decides on no sequence.

A link that is slow, and a server that is, look at first like ones that lost everything. To send all of it again would
only make a slow link slower, so both are learnt: the wait from how long receipts take, the room from whether they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

PROBE_BYTES = 4096
"""So much goes ahead after a stall, though always one observation: on a metered link nobody pays for more."""
WAIT_FACTOR = 2.0  # times what receipts take
FORGETTING = 0.25  # how fast a long wait is forgotten when receipts come sooner: this share of it at each


@dataclass(slots=True)
class Awaited:
    """An observation whose receipt is awaited.

    Attributes:
        first_published_s: When, over this connection.
        last_published_s: When.
        payload_bytes: Its size.
        times: How often it was published.
    """

    first_published_s: float
    last_published_s: float
    payload_bytes: int
    times: int = 1

    def again(self, now_s: float) -> Awaited:
        """The same, published once more."""
        return replace(self, last_published_s=now_s, times=self.times + 1)

    def is_lost(self, now_s: float, wait_s: float) -> bool:
        """Whether its receipt would be here, if others come; the more often it was in vain, the longer it rests."""
        return now_s - self.last_published_s >= wait_s * _doubled(self.times - 1)


class Patience:
    """What one session has learnt of its link and its server."""

    def __init__(self) -> None:
        self.stall_count = 0
        """How often in a row no receipt came in time; 0 where the last one did."""
        self._receipt_took_s = 0.0
        self._room_bytes: int | None = None  # None for no bound but the window

    def note_connected(self) -> None:
        """A new connection, perhaps by another way: what was learnt of the old one's room does not hold."""
        self.stall_count = 0
        self._room_bytes = None

    def note_stall(self) -> None:
        """No receipt came in time."""
        self.stall_count += 1
        self._room_bytes = PROBE_BYTES

    def note_receipt(self, settled: Sequence[Awaited], now_s: float, wait_s: float) -> None:
        """A receipt came; what it settled makes room for as much again.

        Args:
            settled: At least one.
            now_s: Monotonic time in seconds.
            wait_s: What the wait is at this moment.
        """
        took_s = max(_took_s(one, now_s, wait_s) for one in settled)
        kept_s = self._receipt_took_s * (1 - FORGETTING) + took_s * FORGETTING
        self._receipt_took_s = max(took_s, kept_s)
        self.stall_count = 0
        if self._room_bytes is not None:
            self._room_bytes += sum(one.payload_bytes for one in settled)

    def window_bytes(self, window_bytes: int) -> int:
        """The bound of what is in flight, given the one that is set."""
        return window_bytes if self._room_bytes is None else min(window_bytes, self._room_bytes)

    def wait_s(self, resend_after_s: float, resend_max_s: float) -> float:
        """How long without a receipt is too long."""
        wait_s = max(resend_after_s, WAIT_FACTOR * self._receipt_took_s)
        return min(wait_s * _doubled(self.stall_count), resend_max_s)


def _doubled(times: int) -> float:
    """1, 2, 4 ... and no further than anybody waits: a server may be gone for so long that no float holds the rest."""
    return 2.0 ** min(times, 32)


def _took_s(one: Awaited, now_s: float, wait_s: float) -> float:
    """How long its receipt took. Nobody knows which of several a receipt answers: then the wait was not too long."""
    since_first_s = now_s - one.first_published_s
    return since_first_s if one.times == 1 else min(since_first_s, wait_s / WAIT_FACTOR)


def first_of(sequences: Iterable[int], awaited: Mapping[int, Awaited]) -> list[int]:
    """The first ones, as many as go ahead after a stall; at least one where there is any."""
    chosen: list[int] = []
    room_bytes = PROBE_BYTES
    for sequence in sequences:
        room_bytes -= awaited[sequence].payload_bytes
        if chosen and room_bytes < 0:
            break
        chosen.append(sequence)
    return chosen
