"""Workers on a cluster of Ray. Knows where the cluster is, and imports no Ray.

Each life is a carrier (ray_carrier.py): a process on this machine that is a driver of Ray, and owns one actor. That
starts the very process that a local worker is, on whatever node has room. So the same code decodes, computes and
confines strangers' models wherever it runs; and when the head of the cluster is gone, on which Ray ends its drivers
after a minute, it is the carrier that ends, and not the server. Ray restarts nothing: the supervisor does.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from typing import IO

from fieldpost.errors import BrokenStateError
from server.workers.supervised_worker import Ended, Life, Report
from server.workers.worker_process import CODE_FOLDER, WorkerProcess, WorkerSpec
from server.workers.worker_wire import decode_answer

logger = logging.getLogger(__name__)

OWN = "ray:"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it reports to its makers by default
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about what becomes of workers without a GPU
    "RAY_AUTH_MODE": "token",  # who reaches a cluster that has no token runs any code on it
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""The only thing that makes Ray listen on loopback alone: 127.0.0.1 as the node's address it replaces by another."""


class RayEngine:
    """A cluster of Ray.

    Args:
        url: "ray://host:port" of the cluster's head; a node of it must run on this machine. "ray:" for a cluster of its
            own on this machine, which listens on loopback alone and ends with the server.
    """

    name = "ray"

    def __init__(self, url: str) -> None:
        self._environment = {**QUIET, **{key: os.environ[key] for key in QUIET if key in os.environ}}
        self._own: OwnCluster | None = None
        if url == OWN:
            self._environment |= {**LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            self._own = OwnCluster(self._environment)
        self._address = url.removeprefix("ray://")

    def start_life(self, spec: WorkerSpec, report: Callable[[Report], None]) -> Life:
        """Starts a carrier; the actor follows when the cluster has room."""
        return CarrierProcess(spec, report, self._own.address if self._own else self._address, self._environment)

    def close(self) -> None:
        """Ends the cluster where it is our own."""
        if self._own is not None:
            self._own.close()


class CarrierProcess(WorkerProcess):
    """One life of a worker on the cluster, as this machine sees it."""

    def __init__(
        self, spec: WorkerSpec, report: Callable[[Report], None], address: str, environment: dict[str, str]
    ) -> None:
        super().__init__(
            spec,
            lambda frame: report(decode_answer(frame)),
            lambda reason: report(Ended(reason)),
            module="server.workers.ray_carrier",
            arguments=[address],
            environment={**os.environ, **environment},
        )

    def memory_bytes(self) -> int:
        """Not known: the process is on another machine."""
        return 0


class OwnCluster:
    """A Ray of one node on this machine, in a process that ends with this one. Starting it takes 3 to 8 s.

    Raises:
        BrokenStateError: It did not start.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.workers.ray_node", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": str(CODE_FOLDER)},
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._said: IO[str] = self._process.stdout
        self.address = self._said.readline().strip()
        if not self.address:
            self.close()
            raise BrokenStateError(
                f"expected a Ray of our own on this machine, but it ended with status {self._process.returncode}",
                hint='its last words are above; is the extra "ray" installed?',
            )
        logger.info("started a Ray of our own", extra={"address": self.address})

    def close(self) -> None:
        """Ends it, with all that it started."""
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()
