"""Tells systemd how the service is: ready, alive, ending. Where no systemd listens, it does nothing.

The protocol is one datagram for each message (sd_notify(3)). Knows nothing of what is alive.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Mapping


class Notifier:
    """The word to systemd.

    Args:
        address: Of systemd's socket: a path, or "@" and a name without one; empty to say nothing.
        watchdog_s: Seconds without a sign of life after which systemd ends the service; 0 for no watchdog.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval_s = watchdog_s / 2
        self.wake_at_s = 0.0 if address and watchdog_s else math.inf
        """When the next sign of life is due, on the clock that tick is given; infinite for never."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """As systemd set the environment of its service; a watchdog that is meant for another process is not ours."""
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        try:
            watchdog_s = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 if is_ours else 0.0
        except ValueError:
            watchdog_s = 0.0
        return cls(environment.get("NOTIFY_SOCKET", ""), max(0.0, watchdog_s))

    def ready(self) -> None:
        """The service has begun its work."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + text.replace("\n", " "))

    def stopping(self) -> None:
        """The service is about to end."""
        self._send("STOPPING=1")

    def tick(self, now_s: float) -> None:
        """Gives the sign of life where it is due: to be called by the loop whose life it is, and by nobody else.

        Args:
            now_s: Monotonic time.
        """
        if now_s >= self.wake_at_s:
            self.wake_at_s = now_s + self._interval_s
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # systemd that does not take a message now is no reason to stop recording.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket:
            notify_socket.setblocking(False)
            notify_socket.sendto(message.encode(), self._address)
