"""One life of a worker process on this machine: started, written to, read from, killed. Knows no jobs and no models.

Three threads stand between the process and whoever owns it: one writes, one reads, one listens to what the process
prints. So a process that hangs hangs nobody else.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fieldpost.errors import BrokenStateError
from server.workers.worker_wire import ANSWER_BYTES_MAX, Buffer, Frame, read_frame, write_frame

logger = logging.getLogger(__name__)

CODE_FOLDER = Path(__file__).resolve().parents[2]
STDERR_LINES_KEPT = 20
STDERR_LINE_CHARACTERS_MAX = 500
STDERR_LINES_LOGGED_MAX = 100
"""Of one life. A model that chatters must not fill the server's log."""
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
"""What a process that runs strangers' models gets to see of our environment, in which there may be passwords."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """How a worker process is to be.

    Attributes:
        kind: The value of a WorkerKind.
        device: "cpu" or for example "cuda:0".
        threads: That it computes with.
        memory_bytes: Of data at most; 0 for no limit.
    """

    kind: str
    device: str = "cpu"
    threads: int = 1
    memory_bytes: int = 0


class WorkerProcess:
    """One life. It ends when the process does, whoever killed it.

    Must be made in a thread that lives as long as its owner, for example that of the event loop: the kernel kills the
    process when the thread that started it ends.

    Args:
        spec: What to start.
        on_frame: Called in a thread with each answer; what it raises ends the life.
        on_end: Called in a thread, once, after the last frame, with the reason in words.
        module: What to run.
        arguments: For it, behind those that every worker process gets.
        environment: Of the process; by default ours, or very little of it for a process that runs strangers' models.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[str], None],
        *,
        module: str = "server.workers.worker_main",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._on_frame, self._on_end = on_frame, on_end
        ours, theirs = socket.socketpair()
        self._connection = ours
        with theirs:
            options = [spec.kind, spec.device, str(spec.threads), str(spec.memory_bytes), *arguments]
            if environment is None:
                environment = {name: os.environ[name] for name in _names(spec) if name in os.environ}
            paths = [str(CODE_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid()), *options],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,  # not ours: a log that anybody may write to is no log
                    stderr=subprocess.STDOUT,
                    env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        self._last_lines: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._outbox: queue.SimpleQueue[Sequence[Buffer] | None] = queue.SimpleQueue()
        assert self._process.stdout is not None
        self._listener = self._start_thread("worker-output", self._listen, self._process.stdout)
        self._writer = self._start_thread("worker-writer", self._write)
        self._reader = self._start_thread("worker-reader", self._read)

    @property
    def process_id(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, parts: Sequence[Buffer]) -> None:
        """Lets a frame go out; returns at once."""
        self._outbox.put(parts)

    def kill(self) -> None:
        """Ends the process at once; on_end follows."""
        if self._process.poll() is None:
            self._process.kill()

    def join(self) -> None:
        """Waits until a killed process and its threads are gone."""
        self._reader.join()

    def memory_bytes(self) -> int:
        """Resident memory; 0 where the process is gone."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _start_thread(self, name: str, function: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, name=name, daemon=True)
        thread.start()
        return thread

    def _write(self) -> None:
        while (parts := self._outbox.get()) is not None:
            try:
                write_frame(self._connection, parts)
            except OSError:
                return  # the reader sees the same, and reports it

    def _read(self) -> None:
        said = ""
        try:
            while (frame := read_frame(self._connection, ANSWER_BYTES_MAX)) is not None:
                self._on_frame(frame)
        except OSError as error:
            logger.debug("worker pipe broke", extra={"error": str(error)})
        except BrokenStateError as error:
            said = str(error)
        finally:  # a process whose answers cannot be read is no good any more
            # it may be about to end by itself, and the status says why; one that only closed its pipe is not waited for
            status = self._wait_s(0.0 if said else 1.0)
            self._outbox.put(None)
            self._writer.join()
            self._listener.join(timeout=1.0)  # a grandchild may hold it open
            self._connection.close()
            self._on_end(said or _in_words(status, list(self._last_lines)))

    def _wait_s(self, patience_s: float) -> int:
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _listen(self, output: IO[bytes]) -> None:
        with output:
            logged = 0
            while line := output.readline(STDERR_LINE_CHARACTERS_MAX):
                text = line.decode("utf-8", "replace").rstrip()
                self._last_lines.append(text)
                logged += 1
                if logged <= STDERR_LINES_LOGGED_MAX:
                    logger.info("worker wrote", extra={"process_id": self._process.pid, "line": text})


def _names(spec: WorkerSpec) -> Iterable[str]:
    return os.environ if spec.kind == "built-in" else ENVIRONMENT


def _in_words(status: int, last_lines: list[str]) -> str:
    """Why a process ended, from its exit status and its last words."""
    how = f"ended with status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
    if -status == signal.SIGKILL:
        how += ", perhaps by the kernel for want of memory"
    return f"{how}: {' | '.join(last_lines[-3:])}" if last_lines else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name here
        return f"signal {number}"
