"""Bytes from a serial port. Knows nothing of what they mean.

A port that goes (an adapter is unplugged, a kernel driver gives up) is an error, and opened again by the reader.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Sequence

import serial

from edge_agent.setting_texts import parse_characters
from edge_agent.source_settings import SerialSettings
from edge_agent.sources.link import READ_BYTES, Arrival

GATHER_S = 0.02
"""Bytes trickle in one by one: a read waits so long for more, and its stamp is at most so late."""
WRITE_TIMEOUT_S = 1.0


class SerialLink:
    """One serial port.

    Args:
        settings: Its settings.
    """

    kind = "serial"
    can_hold_back = False
    has_ends = True
    problem = ""

    def __init__(self, settings: SerialSettings) -> None:
        self.name = f"{settings.device} ({settings.baud} {settings.characters})"
        self._settings = settings
        self._command = settings.poll_command.encode("latin-1")
        self._ask_at_s = 0.0
        self._port: serial.Serial | None = None

    def open(self) -> None:
        """See Link."""
        data_bits, parity, stop_bits = parse_characters(self._settings.characters)
        self._port = serial.Serial(
            str(self._settings.device),
            baudrate=self._settings.baud,
            bytesize=data_bits,
            parity=parity,
            stopbits=stop_bits,
            timeout=0,
            write_timeout=WRITE_TIMEOUT_S,
            exclusive=True,  # two readers would each get half of the bytes
        )

    def read(self, timeout_s: float) -> Sequence[Arrival]:
        """See Link."""
        assert self._port is not None
        self._ask()
        descriptor = self._port.fileno()
        if not select.select([descriptor], [], [], timeout_s)[0]:
            return ()
        time.sleep(GATHER_S)
        try:
            content = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return ()
        if not content:
            raise OSError(errno.ENODEV, "the device is gone")
        return (Arrival("", content),)

    def close(self) -> None:
        """See Link."""
        if self._port is not None:
            port, self._port = self._port, None
            port.close()

    def _ask(self) -> None:
        """Sends the command that asks for an observation, when it is time."""
        now_s = time.monotonic()
        if self._command and now_s >= self._ask_at_s and self._port is not None:
            self._ask_at_s = now_s + self._settings.poll_interval_s
            self._port.write(self._command)
