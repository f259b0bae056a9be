"""The child processes, seen from the agent: started, asked with a deadline, killed. Decides nothing.

Pipes are not waited for without a deadline: a child that is stopped, or that reads no more, must not stop a source.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_agent.quick_look.messages import MessageBuffer, pack
from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError

READ_BYTES = 1 << 16
TRIAL_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 0.1
"""A killed process is gone in a few milliseconds; no source waits longer for one that is not."""
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")
"""Of the agent's environment; nothing secret, and no socket of systemd."""


class LateError(TryAgainError):
    """The child did not answer in time."""


class DeadError(TryAgainError):
    """The child has ended."""


class Child:
    """A worker with its model.

    Args:
        package: The model's package.
    """

    def __init__(self, package: Path) -> None:
        self.started_s = time.monotonic()
        self.label = ""
        """The model's name and hash; empty until it is ready."""
        self.sha256 = ""
        self._buffer = MessageBuffer()
        self._process = subprocess.Popen(
            [*_python("worker"), str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=child_environment(os.environ),
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the agent
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._answers, False)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def is_ready(self, deadline_s: float) -> bool:
        """Whether it has loaded its model; waits for that until the deadline.

        Raises:
            TryAgainError: It has ended, or may not limit itself.
            InvalidRequestError: What it needs is not installed.
            BrokenStateError: Its model cannot be loaded.
        """
        if self.label:
            return True
        try:
            head = self._receive(deadline_s)
        except LateError:
            return False
        match head.get("error"):
            case "install":
                raise InvalidRequestError(f"{head['detail']}: pip install 'fieldpost[quick-look]'")
            case "package":
                raise BrokenStateError(str(head["detail"]))
            case "limits":
                raise TryAgainError(str(head["detail"]))
        self.label, self.sha256 = str(head["model"]), str(head["sha256"])
        return True

    def ask(self, telegrams: Sequence[bytes], budget_s: float) -> Iterator[dict[str, Any]]:
        """The answer to each telegram, as it comes.

        Args:
            telegrams: What to estimate.
            budget_s: For each of them.

        Raises:
            LateError: One took longer.
            DeadError: The child has ended.
            BrokenStateError: It answers with something else.
        """
        self._send(pack({}, telegrams), time.monotonic() + budget_s * len(telegrams))
        for _ in telegrams:
            yield self._receive(time.monotonic() + budget_s)

    def kill(self) -> None:
        """Ends it, whatever it does."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.kill()
        # one that waits for a disk in the kernel is collected by the next Popen
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT_S)

    def _send(self, message: bytes, deadline_s: float) -> None:
        rest = memoryview(message)
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline_s)
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._dead() from error

    def _receive(self, deadline_s: float) -> dict[str, Any]:
        while (message := self._buffer.next()) is None:
            self._wait(self._answers, select.POLLIN, deadline_s)
            content = os.read(self._answers, READ_BYTES)
            if not content:
                raise self._dead()
            self._buffer.feed(content)
        return message[0]

    def _wait(self, descriptor: int, event: int, deadline_s: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left_s = deadline_s - time.monotonic()
        if not poll.poll(max(0.0, left_s) * 1000):
            raise LateError("the model took longer than it may")

    def _dead(self) -> DeadError:
        try:
            status = self._process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return DeadError("the process of the model closed its pipes")
        return DeadError(f"the process of the model ended {end_of(status)}")


def run_trial(
    package: bytes, signature: bytes, public_pem: bytes, telegrams: Sequence[bytes], *, budget_ms: float
) -> str:
    """Tries a model in a process of its own.

    Returns:
        The name in its manifest.

    Raises:
        InvalidRequestError: It may not be taken; the message says why.
    """
    request = pack({"budget_ms": budget_ms}, [package, signature, public_pem, *telegrams])
    try:
        done = subprocess.run(
            _python("trial"),
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(os.environ),
            cwd="/",
            start_new_session=True,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidRequestError(f"expected the trial to end within {TRIAL_TIMEOUT_S:g} s, but it did not") from error
    buffer = MessageBuffer()
    buffer.feed(done.stdout)
    message = buffer.next()
    if message is None:
        raise InvalidRequestError(f"expected an answer of the trial, but it ended {end_of(done.returncode)}")
    head = message[0]
    if "refused" in head:
        raise InvalidRequestError(str(head["refused"]), hint=str(head.get("hint", "")))
    return str(head["name"])


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child sees: where this software lies, one thread, and little else."""
    passed = {name: environment[name] for name in PASSED_ON if name in environment}
    import_root = str(Path(__file__).resolve().parents[2])
    return {
        **passed,
        "PYTHONPATH": import_root,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def end_of(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _python(module: str) -> list[str]:
    # -P: a file beside the agent's working folder must not be imported in the place of ours
    return [sys.executable, "-P", "-m", f"edge_agent.quick_look.{module}"]
