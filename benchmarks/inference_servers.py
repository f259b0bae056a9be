"""A server under test: a process with all its children, started, asked under load, accounted for and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.inference_load import LoadFigures
from benchmarks.report import percentile
from fieldpost.errors import BrokenStateError

STOP_TIMEOUT_S = 15.0
Figures = dict[str, Any]


class ProcessTree:
    """A program and everything that it starts.

    Args:
        command: The program.
        folder: Where it runs, and where its log goes.
        environment: Beside our own.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = folder / "log.txt"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises BrokenStateError with the program's last words where it has ended."""
        status = self._process.poll()
        if status is not None:
            raise BrokenStateError(f"it ended with status {status}: {self.last_words()}")

    def last_words(self) -> str:
        """The last lines of its log."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-4:])

    def cpu_s(self) -> float:
        """User and system time of the program and of its children that live, so far."""
        total = 0.0
        for process in self._all():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def stop(self) -> None:
        """Ends the program politely, and whatever of it is left after that."""
        everything = self._all()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        left = [process for process in everything if process.is_running()]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)

    def _all(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def to_figures(load: LoadFigures, cpu_s: float, items_per_request: int = 1) -> Figures:
    """What a load came to, by item; latencies are those of whole requests."""
    items = load.requests * items_per_request
    return {
        "requests_per_s": items / load.took_s,
        "cpu_ms": cpu_s * 1000 / items,
        "p50_ms": percentile(load.latencies_ms, 50),
        "p99_ms": percentile(load.latencies_ms, 99),
        "client_cpu_ms": load.client_cpu_s * 1000 / items,
    }


def wait_until(is_true: Any, tree: ProcessTree, timeout_s: float, what: str) -> None:
    """Returns once it is true.

    Raises:
        BrokenStateError: It does not become true in time, or the program ends.
    """
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        tree.check()
        if time.monotonic() > deadline_s:
            raise BrokenStateError(f"expected {what} within {timeout_s:g} s: {tree.last_words()}")
        time.sleep(0.2)
