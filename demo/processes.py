"""Starts the programs of the demo, each with a log file, and ends them all."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fieldpost.errors import BrokenStateError

STOP_TIMEOUT_S = 15.0
PORTS = range(20_000, 32_000)


class Processes:
    """Running programs, by name."""

    def __init__(self, log_folder: Path) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._log_folder = log_folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts a program; what it prints goes to its log."""
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,  # Ctrl-C is for the demo, which then ends them in order
            )

    def log(self, name: str) -> Path:
        """The program's log file."""
        return self._log_folder / f"{name}.log"

    def process_id(self, name: str) -> int:
        """Of the program."""
        return self._running[name].pid

    def has_ended(self, name: str) -> bool:
        """Whether the program ended by itself and well.

        Raises:
            BrokenStateError: It ended with an error.
        """
        status = self._running[name].poll()
        if status:
            raise self._failure(name, f"it ended with status {status}")
        return status is not None

    def wait_for_port(self, name: str, port: int, timeout_s: float = 60) -> None:
        """Returns once the program listens on the port.

        Raises:
            BrokenStateError: It does not.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.has_ended(name):
                raise self._failure(name, "it ended too early")
            if is_listening(port):
                return
            time.sleep(0.05)
        raise self._failure(name, f"it does not listen on port {port} after {timeout_s:g} s")

    def stop(self, name: str) -> None:
        """Ends a program, politely first."""
        process = self._running.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def stop_all(self) -> None:
        """Ends all, in the opposite order of their start."""
        for name in reversed(list(self._running)):
            self.stop(name)

    def _failure(self, name: str, what: str) -> BrokenStateError:
        lines = self.log(name).read_text(errors="replace").splitlines()[-5:]
        return BrokenStateError(
            f"{name}: {what}",
            hint="its last words:\n    " + "\n    ".join(lines) + f"\n  all of them: {self.log(name)}",
        )


def free_port(preferred: int = 0) -> int:
    """The preferred port of the loopback where it is free, else one that is.

    Below those that the kernel gives to outgoing connections: what is started again must find its port free.
    """
    for port in (preferred or random.choice(PORTS), *random.sample(PORTS, 50)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BrokenStateError("no TCP port of the loopback is free")


def is_listening(port: int) -> bool:
    """Whether somebody takes connections on the port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_mosquitto() -> str | None:
    """The path of Mosquitto, which some put where ordinary users do not look; None where it is not installed."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def program(name: str) -> str:
    """The path of one of our console scripts."""
    return str(Path(sys.executable).with_name(name))
