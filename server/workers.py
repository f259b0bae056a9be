"""A worker process on this machine: started, fed, and started again when it dies.

A worker has up to two batches: one that it computes, one that waits in its pipe, so that it never waits for the
server. Two threads stand between its pipe and the event loop, so that a worker that hangs does not hang the server.
Knows nothing of what the batches mean.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from server.jobs import Job, JobDone

logger = logging.getLogger(__name__)

JOBS_MAX = 2
RESTART_WAIT_S = 1.0
"""Between a worker's death and its next life: a worker that dies at once must not eat the machine."""


class WorkerEvents(Protocol):
    """Who hears of a worker; called in the event loop."""

    def on_done(self, done: JobDone) -> None:
        """A job was answered."""

    def on_lost(self, jobs: list[Job]) -> None:
        """The worker died with these jobs."""

    def on_ready(self) -> None:
        """The worker takes jobs again."""


class Worker(Protocol):
    """Who computes batches, wherever it runs."""

    @property
    def free_slots(self) -> int:
        """How many more jobs it takes now."""

    def send(self, job: Job) -> None:
        """Gives it a job; one that it does not live to answer comes back through on_lost."""

    def close(self) -> None:
        """Ends it; it finishes nothing."""


class LocalWorker:
    """One worker process, over all its lives."""

    def __init__(self, threads: int, events: WorkerEvents) -> None:
        self._threads = threads
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[int, Job] = {}
        self._is_closed = False
        self._restart_timer: asyncio.TimerHandle | None = None
        self._start()

    @property
    def free_slots(self) -> int:
        """How many more jobs it takes now."""
        return JOBS_MAX - len(self._jobs) if self._is_alive else 0

    @property
    def process_id(self) -> int:
        """Of the process that lives now."""
        return self._process.pid

    def send(self, job: Job) -> None:
        """Gives it a job; one that it does not live to answer comes back through on_lost."""
        self._jobs[job.job_id] = job
        self._outbox.put(job)

    def close(self) -> None:
        """Ends the process; it finishes nothing."""
        self._is_closed = True
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        self._process.kill()
        self._reader.join()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "server.worker", str(theirs.fileno()), str(self._threads)]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        connection = Connection(ours.detach())
        self._outbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=self._read, args=(connection, self._process, self._outbox), name="worker-reader", daemon=True
        )
        self._reader.start()
        threading.Thread(target=_write, args=(connection, self._outbox), name="worker-writer", daemon=True).start()
        self._is_alive = True

    def _read(
        self, connection: Connection, process: subprocess.Popen[bytes], outbox: queue.SimpleQueue[Job | None]
    ) -> None:
        """Runs in a thread: passes answers to the event loop until the process is gone."""
        try:
            while True:
                self._call(self._finish, connection.recv())
        except (EOFError, OSError):
            logger.debug("worker pipe ended")
        finally:  # also where an answer cannot be read: such a process is no good any more
            process.kill()
            outbox.put(None)
            self._call(self._bury, process.wait())

    def _call(self, function: Callable[..., None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            logger.debug("answer after the event loop's end")

    def _finish(self, done: JobDone) -> None:
        self._jobs.pop(done.job_id, None)
        self._events.on_done(done)

    def _bury(self, status: int) -> None:
        if self._is_closed:
            return
        left, self._jobs = list(self._jobs.values()), {}
        logger.error("worker died", extra={"exit_status": status, "job_count": len(left)})
        self._is_alive = False
        self._restart_timer = self._loop.call_later(RESTART_WAIT_S, self._restart)
        self._events.on_lost(left)

    def _restart(self) -> None:
        self._start()
        self._events.on_ready()


def _write(connection: Connection, outbox: queue.SimpleQueue[Job | None]) -> None:
    """Runs in a thread: passes jobs to the process until it is gone."""
    while (job := outbox.get()) is not None:
        try:
            connection.send(job)
        except OSError:
            break  # the reader sees the same, and reports it
    connection.close()
