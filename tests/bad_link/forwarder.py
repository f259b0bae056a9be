"""A process that is a bad link: carries IP packets between two TUN devices. What becomes of each is said in fate.

    PYTHONPATH=tests python -m bad_link.forwarder <device of one end> <device of the other> <seed>

Reads lines of JSON, each an Impairment of both directions, and answers each with a line of counts since the start. The
devices are gone when it ends, and it ends when nobody is left to give it lines. Knows no address and no namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import json
import os
import select
import struct
import sys
import time
from dataclasses import asdict, dataclass

from bad_link.fate import Impairment, OneWay, with_wrong_bit

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000  # bare IP packets, nothing before them
PACKET_MAX_BYTES = 1 << 16


@dataclass(slots=True)
class Counts:
    """Packets since the start: those taken in, and what became of them."""

    taken: int = 0
    vanished: int = 0
    doubled: int = 0
    corrupted: int = 0
    overtaking: int = 0


def open_tun(name: str) -> int:
    """Makes a TUN device, which lives as long as its descriptor."""
    descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


class Forwarder:
    """Two devices, and what is under way between them.

    Args:
        here: Descriptor of one end.
        there: Descriptor of the other.
        seed: Of what happens to packets.
    """

    def __init__(self, here: int, there: int, seed: int) -> None:
        self.counts = Counts()
        self._ways = {here: OneWay(seed), there: OneWay(seed + 1)}
        self._other_end = {here: there, there: here}
        self._under_way: list[tuple[float, int, int, bytes]] = []  # (at_s, order of coming, to, packet)
        self._last_at_s = {here: 0.0, there: 0.0}
        self._order = itertools.count()

    def spoil(self, impairment: Impairment) -> None:
        """From now on the link is as bad as this."""
        for way in self._ways.values():
            way.impairment = impairment
        if impairment.is_cut:
            self.counts.vanished += len(self._under_way)
            self._under_way.clear()

    def take_all(self, source: int) -> None:
        """Takes all packets that wait at one end."""
        # A device without addresses is down, and then says so.
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                self._take(source, os.read(source, PACKET_MAX_BYTES))

    def _take(self, source: int, packet: bytes) -> None:
        departures = self._ways[source].take(len(packet), time.monotonic())
        self.counts.taken += 1
        self.counts.vanished += not departures
        self.counts.doubled += len(departures) > 1
        for departure in departures:
            self.counts.corrupted += departure.wrong_bit is not None
            self.counts.overtaking += departure.at_s < self._last_at_s[source]
            self._last_at_s[source] = max(departure.at_s, self._last_at_s[source])
            arriving = with_wrong_bit(packet, departure.wrong_bit)
            heapq.heappush(self._under_way, (departure.at_s, next(self._order), self._other_end[source], arriving))

    def deliver_due(self) -> None:
        """Hands over what has arrived by now."""
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self._under_way)
            # A corrupted first byte is no IP packet to the kernel, and a device may just have gone.
            with contextlib.suppress(OSError):
                os.write(target, packet)

    def wait_ms(self) -> float | None:
        """How long until something arrives; None where nothing is under way."""
        if not self._under_way:
            return None
        return max(0.0, self._under_way[0][0] - time.monotonic()) * 1000


def main() -> int:
    """Runs until standard input ends."""
    here, there = open_tun(sys.argv[1]), open_tun(sys.argv[2])
    forwarder = Forwarder(here, there, int(sys.argv[3]))
    commands = sys.stdin.buffer.raw.fileno()  # type: ignore[attr-defined]
    poll = select.poll()
    for descriptor in (here, there, commands):
        poll.register(descriptor, select.POLLIN)
    print("ready", flush=True)
    lines = b""
    while True:
        for descriptor, _ in poll.poll(forwarder.wait_ms()):
            if descriptor != commands:
                forwarder.take_all(descriptor)
                continue
            came = os.read(commands, PACKET_MAX_BYTES)
            if not came:
                return 0
            *complete, lines = (lines + came).split(b"\n")
            for line in complete:
                forwarder.spoil(Impairment(**json.loads(line)))
                print(json.dumps(asdict(forwarder.counts)), flush=True)
        forwarder.deliver_due()


if __name__ == "__main__":
    sys.exit(main())
