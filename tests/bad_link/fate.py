"""What becomes of a packet on a bad link: when it leaves it, how often, and whether whole. Pure; knows no device.

Like `tc netem`: losses, duplicates and errors are independent of each other, packets with a delay of their own overtake
one another, and a reordered packet is one that is not delayed at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Impairment:
    """How bad one direction of a link is. Shares are of [0, 1].

    Attributes:
        delay_ms: How long a packet is under way.
        jitter_ms: By how much that is more or less, evenly spread.
        loss: Share of packets that vanish.
        duplication: Share of packets that arrive twice.
        reordering: Share of packets that are not delayed, and so overtake the others.
        corruption: Share of packets that arrive with one wrong bit.
        rate_bytes_per_s: What the link carries; 0 for no limit.
        queue_bytes: So much waits before a link with a rate; what comes then is lost.
        is_cut: Whether every packet vanishes, those under way as well.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    corruption: float = 0.0
    rate_bytes_per_s: float = 0.0
    queue_bytes: int = 32 << 10
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Departure:
    """One copy of a packet that arrives.

    Attributes:
        at_s: When, on the clock of now_s.
        wrong_bit: Which of its bits is wrong; None where none is.
    """

    at_s: float
    wrong_bit: int | None = None


class OneWay:
    """One direction of a link.

    Args:
        seed: The same seed gives the same packets the same fate.
    """

    def __init__(self, seed: int) -> None:
        self.impairment = Impairment()
        """May be changed at any time."""
        self._chance = random.Random(seed)
        self._free_at_s = 0.0  # when a link with a rate has carried what it was given

    def take(self, packet_bytes: int, now_s: float) -> list[Departure]:
        """What becomes of a packet: no, one or two departures.

        Args:
            packet_bytes: Its length.
            now_s: Monotonic time in seconds.
        """
        how = self.impairment
        if how.is_cut or self._chance.random() < how.loss:
            return []
        sent_at_s = self._carry(packet_bytes, now_s)
        if sent_at_s is None:
            return []
        copies = 2 if self._chance.random() < how.duplication else 1
        return [Departure(sent_at_s + self._delay_s(), self._wrong_bit(packet_bytes)) for _ in range(copies)]

    def _carry(self, packet_bytes: int, now_s: float) -> float | None:
        """When the last byte is on the link; None where the queue before it is full."""
        rate = self.impairment.rate_bytes_per_s
        if rate == 0:
            return now_s
        begins_at_s = max(now_s, self._free_at_s)
        if (begins_at_s - now_s) * rate + packet_bytes > self.impairment.queue_bytes:
            return None
        self._free_at_s = begins_at_s + packet_bytes / rate
        return self._free_at_s

    def _delay_s(self) -> float:
        how = self.impairment
        if self._chance.random() < how.reordering:
            return 0.0
        return max(0.0, how.delay_ms + self._chance.uniform(-how.jitter_ms, how.jitter_ms)) / 1000

    def _wrong_bit(self, packet_bytes: int) -> int | None:
        if self._chance.random() < self.impairment.corruption:
            return self._chance.randrange(8 * packet_bytes)
        return None


def with_wrong_bit(packet: bytes, wrong_bit: int | None) -> bytes:
    """The packet as it arrives."""
    if wrong_bit is None:
        return packet
    changed = bytearray(packet)
    changed[wrong_bit // 8] ^= 1 << wrong_bit % 8
    return bytes(changed)
