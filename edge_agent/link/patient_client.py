"""The MQTT library's client, but patient: on a slow link a large message under way is a sign of life of its own.

The library sends its probe behind whatever waits to be sent, and gives up where no answer comes in time. So a message
that takes longer than that, 3 MB at 70 kB a second, would never arrive: the connection would end each time halfway.
Knows no topics and no payloads.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

_BYTES_ACKED_OFFSET = 120  # of struct tcp_info in linux/tcp.h, since Linux 4.1
_TCP_INFO_BYTES = 256


class PatientClient(mqtt.Client):
    """Does not look at its keepalive while the other side's system takes bytes.

    A frozen broker's system takes bytes too, until its memory for the connection is full; then nothing moves any more,
    and the keepalive counts. What takes no time, such as a probe, is no sign of life: by the next look it is gone.
    """

    _bytes_acked = 0
    _moved_at_s = 0.0

    @property
    def is_moving(self) -> bool:
        """Whether something is under way, and some of it arrived lately."""
        connection = self.socket()
        if not isinstance(connection, socket.socket):
            return False
        try:
            information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            waiting_bytes = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
            bytes_acked = struct.unpack_from("=Q", information, _BYTES_ACKED_OFFSET)[0]
        except (OSError, ValueError, struct.error):
            return False  # closed just now, or a system that does not say
        now_s = time.monotonic()
        if bytes_acked != self._bytes_acked:
            self._bytes_acked, self._moved_at_s = bytes_acked, now_s
        return (waiting_bytes > 0 or self.want_write()) and now_s < self._moved_at_s + self.keepalive

    def loop_misc(self) -> MQTTErrorCode:
        """The library's look at its keepalive."""
        return mqtt.MQTT_ERR_SUCCESS if self.is_moving else super().loop_misc()
