"""Bytes from datagrams, each sender a channel of its own. Knows no framing.

What the kernel had to drop, because nobody read in time, it counts, and that is an alarm.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Sequence

from edge_agent.source_settings import UdpSettings
from edge_agent.sources.link import Arrival

MAX_DATAGRAM_BYTES = 65535
RECEIVE_BUFFER_BYTES = 1 << 20
DATAGRAMS_AT_ONCE = 64
SO_RXQ_OVFL = 40  # asm-generic/socket.h; Python has no name for it
_COUNT_BYTES = 4


class UdpLink:
    """A socket that takes datagrams.

    Args:
        settings: Its settings.
    """

    kind = "udp"
    can_hold_back = False

    def __init__(self, settings: UdpSettings) -> None:
        self.name = f"UDP port {settings.port} of {settings.address}"
        self.problem = ""
        self._settings = settings
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """See Link."""
        address = self._settings.address
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        self._socket.setblocking(False)
        self._socket.bind((address, self._settings.port))

    def read(self, timeout_s: float) -> Sequence[Arrival]:
        """See Link."""
        assert self._socket is not None
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return ()
        arrivals: list[Arrival] = []
        while len(arrivals) < DATAGRAMS_AT_ONCE:
            try:
                content, facts, _, sender = self._socket.recvmsg(MAX_DATAGRAM_BYTES, socket.CMSG_SPACE(_COUNT_BYTES))
            except BlockingIOError:
                break
            for level, kind, value in facts:
                if (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                    count = int.from_bytes(value[:_COUNT_BYTES], sys.byteorder)
                    self.problem = f"{count} datagrams were lost, which came faster than they were read"
            arrivals.append(Arrival(f"{sender[0]}:{sender[1]}", content))
        return arrivals

    def close(self) -> None:
        """See Link."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
