"""A real Prefect server for the tests of flows; Prefect's own harness runs no scheduler and no triggers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect import get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

from demo.processes import free_port
from flows.limits import ARRAY_WRITE, ARRAY_WRITES_MAX

SERVER_START_S = 120.0


class PrefectServer:
    """A real Prefect server with all its services, which can be killed and started again.

    Attributes:
        url: Of its API; it stays the same.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._log = home, home / "server.log"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        environment = {
            **os.environ,
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(self._home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
            "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
            "PREFECT_SERVER_UI_API_URL": "/api",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_UI_V2_ENABLED": "false",
        }
        listen = ["--host", "127.0.0.1", "--port", str(self._port)]
        command = [sys.executable, "-m", "prefect", "server", "start", *listen]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=self._home, start_new_session=True
            )
        _wait_until_healthy(self.url, self._process, self._log)

    def kill(self) -> None:
        """Ends it as a power cut does, and what it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """Ends it in order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """The address of a real Prefect server."""
    server = PrefectServer(home)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


@contextmanager
def use_prefect(url: str) -> Iterator[str]:
    """Flows that start here belong to the server at this address."""
    updates = {PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(updates):
        yield url


def make_limits(url: str) -> None:
    """Makes the global concurrency limits that flows take."""
    with use_prefect(url), get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(ARRAY_WRITE, ARRAY_WRITES_MAX)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"the Prefect server did not start: {log.read_text()[-2000:]}")
