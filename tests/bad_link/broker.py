"""A real Mosquitto that one can freeze, kill and start again, and that may listen at the near end of a bad link."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conftest import MOSQUITTO, skip_or_fail, wait_for_port


class Broker:
    """One broker, without persistence.

    Args:
        folder: Where its configuration lies.
        port: Where it listens.
        addresses: Beside 127.0.0.1.
        lines: Of its configuration, beyond the usual ones.
    """

    def __init__(self, folder: Path, port: int, addresses: Sequence[str] = (), lines: Sequence[str] = ()) -> None:
        if MOSQUITTO is None:
            skip_or_fail("mosquitto is not installed (make mosquitto)")
        self.port = port
        listeners = [f"listener {port} {address}" for address in ("127.0.0.1", *addresses)]
        # As root it would otherwise become another user, who cannot read a test's files.
        user = ["user root"] if os.geteuid() == 0 else []
        access = [] if any(line.startswith("allow_anonymous") for line in lines) else ["allow_anonymous true"]
        always = [*listeners, *user, *access, "persistence false", "max_queued_messages 100000"]
        self._config = folder / f"mosquitto-{port}.conf"
        self._config.write_text("\n".join([*always, *lines, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it listens."""
        command = [str(MOSQUITTO), "-c", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP freezes it: the kernel goes on to take connections, and bytes, in its name. SIGHUP: new ACL."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no farewell. Nothing where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    """The broker, started, and killed in the end."""
    with contextlib.ExitStack() as stack:
        stack.callback(broker.kill)
        broker.start()
        yield broker
