"""Bytes from datagrams, each sender a channel of its own. Knows no framing.

What the kernel had to drop, because nobody read in time, it counts, and that is an alarm.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Sequence

from edge_agent.source_settings import UdpSettings
from edge_agent.sources.link import LOSS_ALARM_S, Arrival

MAX_DATAGRAM_BYTES = 65535
RECEIVE_BUFFER_BYTES = 1 << 20
DATAGRAMS_AT_ONCE = 64
SO_RXQ_OVFL = 40  # asm-generic/socket.h; Python has no name for it
_COUNT_BYTES = 4
_COUNT_MASK = (1 << 32) - 1


class UdpLink:
    """A socket that takes datagrams.

    Args:
        settings: Its settings.
    """

    kind = "udp"
    can_hold_back = False
    has_ends = False

    def __init__(self, settings: UdpSettings) -> None:
        self.name = f"UDP port {settings.port} of {settings.address}"
        self._settings = settings
        self._socket: socket.socket | None = None
        self._lost_count = 0  # since this socket was opened, as the kernel counts
        self._loss_told = (0, 0.0)  # (datagrams ever, monotonic time of the last loss)

    @property
    def problem(self) -> str:
        """See Link."""
        lost_count, lost_at_s = self._loss_told
        if not lost_count or time.monotonic() - lost_at_s >= LOSS_ALARM_S:
            return ""
        return f"{lost_count} datagrams were lost, which came faster than they were read"

    def open(self) -> None:
        """See Link."""
        address = self._settings.address
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        self._socket.setblocking(False)
        self._socket.bind((address, self._settings.port))
        self._lost_count = 0

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
            except OSError:
                if not arrivals:
                    raise
                break  # what came before it is not dropped
            for level, kind, value in facts:
                if (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                    self._note_lost(int.from_bytes(value[:_COUNT_BYTES], sys.byteorder))
            arrivals.append(Arrival(f"{sender[0]}:{sender[1]}", content))
        return arrivals

    def close(self) -> None:
        """See Link."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _note_lost(self, count: int) -> None:
        """The count comes with every datagram once it is not 0, and only tells of a loss where it has grown."""
        newly = count - self._lost_count & _COUNT_MASK
        if newly:
            self._lost_count = count
            self._loss_told = (self._loss_told[0] + newly, time.monotonic())
