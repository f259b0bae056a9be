"""Tries a stranger's model in a process of its own, and ends that process whatever it does. Never loads it here.

Nothing of the model is read in the server's own process: it passes the bytes on and hears a few lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fieldpost.errors import BrokenStateError, InvalidRequestError
from server.models.card import Trial
from server.models.trial_wire import LENGTHS, MEMORY_HINT, TrialOptions
from server.workers.jobs import ModelPackage

logger = logging.getLogger(__name__)

CODE_FOLDER = Path(__file__).resolve().parents[2]
PIECE_BYTES = 1024 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
STDERR_BYTES_KEPT = 4096
STEP_CHARACTERS_MAX = 40
START_MAX_S = 60.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What a model may take while it is tried.

    Attributes:
        model_bytes_max: Length of the file.
        memory_bytes: Data of the process.
        wall_s: Time from when the process is ready until its finding.
        threads: To compute with; as the workers do, since the cost is measured.
        measure_s: About how long the cost is measured.
    """

    model_bytes_max: int = 512 * MIB
    memory_bytes: int = 4096 * MIB
    wall_s: float = 60.0
    threads: int = 1
    measure_s: float = 3.0


async def try_model(package: ModelPackage, sample: bytes, limits: TrialLimits) -> Trial:
    """Looks at the model, loads it, runs its sample and measures its cost, in a confined process.

    Raises:
        InvalidRequestError: The model is refused; the message names the rule, the hint what to do.
        BrokenStateError: The process could not be started or confined: nothing is said about the model.
    """
    options = TrialOptions(
        analysis=package.key.analysis,
        version=package.key.version,
        model_bytes_max=limits.model_bytes_max,
        memory_bytes=limits.memory_bytes,
        cpu_s=math.ceil(limits.wall_s * max(1, limits.threads)) + 10,
        threads=limits.threads,
        measure_s=limits.measure_s,
    )
    with tempfile.TemporaryDirectory(prefix="fieldpost-trial-") as empty_folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "server.models.trial_child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=ANSWER_BYTES_MAX,
            cwd=empty_folder,
            env={"PYTHONPATH": str(CODE_FOLDER), "LANG": "C.UTF-8", "OMP_NUM_THREADS": str(limits.threads)},
            start_new_session=True,
        )
        watch = _Watch(process, limits)
        try:
            parts = [json.dumps(asdict(options)).encode(), package.manifest.encode(), package.content, sample]
            return await watch.run(parts)
        finally:
            await watch.end()


class _Finding(TypedDict):
    """A trial's numbers within bounds, whoever wrote them: the model may have got the better of its process."""

    batch_fixed_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    observation_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_batch_count: Annotated[int, Field(ge=1, le=64)]
    memory_peak_bytes: Annotated[int, Field(ge=0, lt=2**62)]
    difference_max_ratio: float
    confinements: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=20)]


_FINDING = TypeAdapter(_Finding)
_FACTS = TypeAdapter(dict[str, Any])
"""Unlike json, it takes no half characters, which no message to a caller could hold, and no depth without end."""


class _Watch:
    """One trial's process: fed, listened to, ended."""

    def __init__(self, process: asyncio.subprocess.Process, limits: TrialLimits) -> None:
        self._process, self._limits = process, limits
        self._step: str | None = None
        self._last_words = b""
        self._is_garbled = False
        # asyncio's own kill() asks for the status on the way, and may take it from the thread that waits for it.
        self._handle: int | None = None
        with suppress(ProcessLookupError):  # it has ended already
            self._handle = os.pidfd_open(process.pid)

    async def run(self, parts: list[bytes]) -> Trial:
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(self._feed(parts))
            tasks.create_task(self._listen())
            is_over = False
            try:
                async with asyncio.timeout(START_MAX_S) as clock:
                    finding = await self._hear(clock)
            except TimeoutError:
                finding, is_over = None, True
            feeding.cancel()
            self._kill()
        if finding is not None:
            return _judge(finding)
        await self._process.wait()
        raise self._explain(is_over=is_over)

    async def end(self) -> None:
        self._kill()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        await self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(BrokenPipeError, ConnectionResetError):
            await self._process.stdin.wait_closed()

    async def _hear(self, clock: asyncio.Timeout) -> dict[str, Any] | None:
        """Until the finding or the end of the process. The model's own time begins when the process is confined."""
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                facts = _FACTS.validate_json(line)
                if "step" not in facts:
                    return facts
                if self._step is None:
                    clock.reschedule(asyncio.get_running_loop().time() + self._limits.wall_s)
                self._step = str(facts["step"])[:STEP_CHARACTERS_MAX]
        except ValueError:  # nothing that we say, or a line longer than any of ours
            self._step, self._is_garbled = self._step or "started", True
        return None

    async def _feed(self, parts: list[bytes]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(LENGTHS.pack(*map(len, parts)))
            for part in parts:
                for start in range(0, len(part), PIECE_BYTES):
                    stdin.write(part[start : start + PIECE_BYTES])
                    await stdin.drain()

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while words := await self._process.stderr.read(STDERR_BYTES_KEPT):
            self._last_words = (self._last_words + words)[-STDERR_BYTES_KEPT:]

    def _kill(self) -> None:
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def _explain(self, *, is_over: bool) -> InvalidRequestError | BrokenStateError:
        """Why there is no finding."""
        words = self._last_words.decode(errors="replace")
        code = self._process.returncode
        if self._step is None:
            return BrokenStateError(
                f"the process that tries models did not start (status {code}): {words[-1000:]}",
                hint="this says nothing about the model; see the server's log",
            )
        where = f"while it was {self._step}"
        if is_over or code == -signal.SIGXCPU:
            return InvalidRequestError(
                f"time: expected a model that can be tried in {self._limits.wall_s:g} s, but it took longer {where}",
                hint="does it loop for ever? use a smaller model, or ask the operator for a longer trial_max_s",
            )
        if code == -signal.SIGSYS or self._is_garbled:
            return InvalidRequestError(
                f"forbidden: expected a model that computes, but it tried something else {where}"
            )
        if code == -signal.SIGKILL or "bad_alloc" in words or "MemoryError" in words:
            return InvalidRequestError(
                f"memory: expected a model that needs at most {self._limits.memory_bytes} bytes, but got one that "
                f"asked for more {where}",
                hint=MEMORY_HINT,
            )
        reason = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"status {code}"
        return InvalidRequestError(
            f"crash: expected a model that can be tried, but its process ended with {reason} {where}",
            hint="does it run in onnxruntime on your side?",
        )


def _judge(finding: dict[str, Any]) -> Trial:
    if "refused" in finding:
        raise InvalidRequestError(str(finding["refused"])[:4000], hint=str(finding.get("hint", ""))[:1000])
    try:
        return Trial(**_FINDING.validate_python(finding["trial"]))
    except (KeyError, ValidationError) as error:
        raise BrokenStateError(f"expected the finding of a trial, but got: {error}") from error
