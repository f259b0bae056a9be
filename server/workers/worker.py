"""What a worker process does: takes models in, and answers batches. Knows no device, no store and no network.

Messages are done in their order. On a GPU, a thread decodes and prepares the next batch while the device computes the
present one; on a CPU that would only move the work to another core and fight for the interpreter.
"""

from __future__ import annotations

import gc
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from fieldpost.errors import BrokenStateError, InvalidObservationError
from server.analyses import Analysis, AnalysisInput, AnalysisResult, FollowingAnalysis, Stretch
from server.workers.jobs import (
    STATE_BYTES_MAX,
    Job,
    JobDone,
    ModelKey,
    ModelPackage,
    PlacedStretch,
    ResultBlock,
    WorkItem,
    pack_results,
)
from server.workers.worker_wire import (
    Answer,
    Frame,
    Load,
    Loaded,
    Message,
    decode_message,
)

ALLOCATION_FAILURES = ("DefaultCPUAllocator: can't allocate memory", "Failed to allocate memory", "std::bad_alloc")

T = TypeVar("T")
Loader = Callable[[ModelPackage], Analysis]


@runtime_checkable
class PreparingAnalysis(Protocol):
    """An analysis whose work on the host can run ahead of its work on the device.

    Its predict(batch) is compute(prepare(batch)). The two are called in different threads, each in one only.
    """

    def prepare(self, batch: list[AnalysisInput]) -> Any:
        """Decodes a batch, and begins to copy it to the device."""

    def compute(self, prepared: Any) -> list[AnalysisResult | Exception]:
        """The answers for each observation, in order."""


@runtime_checkable
class BlockAnalysis(Protocol):
    """An analysis that gives its answers as few large arrays."""

    def predict_blocks(
        self, batch: list[AnalysisInput]
    ) -> tuple[list[ResultBlock], Mapping[int, InvalidObservationError]]:
        """The answers, and by its place why an observation has none."""


@runtime_checkable
class DeviceAnalysis(Protocol):
    """An analysis that can compute on something else than the CPU."""

    def to(self, device: str) -> None:
        """Moves it, once, before its first batch."""


class PreparedStretch(NamedTuple):
    """What could be decoded of a stretch, and its places."""

    places: list[int]
    stretch: Stretch


@dataclass(slots=True)
class PreparedBatch:
    """A batch on its way through the worker.

    Attributes:
        refusals: In words why items, told by their places, have no input.
        places: The places of the inputs.
        inputs: What could be decoded of the items that are in no stretch.
        stretches: The others.
        prepared: What the analysis made of the inputs; None where it has not been asked.
        failure: What it raised instead.
        took_s: The time so far.
    """

    refusals: dict[int, str]
    places: list[int]
    inputs: list[AnalysisInput]
    stretches: list[PreparedStretch] = field(default_factory=list)
    prepared: Any = None
    failure: Exception | None = None
    took_s: float = 0.0


class Step(NamedTuple):
    """A message, and of a job its batch."""

    message: Message
    batch: PreparedBatch | None = None


class WorkerLoop:
    """Does what the messages say, in their order.

    A thread reads the frames, so that the server never waits for room in the socket and the next batch is copied while
    this one is computed.

    Args:
        receive: The next frame; None when there will be no more.
        send: Gives an answer.
        load: Loads a model.
        is_ahead: Whether that thread also decodes and prepares the next batch.
    """

    def __init__(
        self, receive: Callable[[], Frame | None], send: Callable[[Answer], None], load: Loader, *, is_ahead: bool
    ) -> None:
        self._receive, self._send, self._load, self._is_ahead = receive, send, load, is_ahead
        self._packages: dict[ModelKey, ModelPackage] = {}
        self._loaded: dict[ModelKey, Analysis] = {}
        self._failures: dict[ModelKey, Exception] = {}

    def run(self) -> None:
        """Until there are no more messages."""
        next_step = self._begin()
        while self._do(next_step()):  # no name here holds a batch while the next one is decoded
            pass

    def _begin(self) -> Callable[[], Step | None]:
        """Starts the threads; gives what returns the next message, prepared."""
        frames: queue.Queue[Frame | None] = queue.Queue(maxsize=1)
        _start_passing("worker-read", self._receive, frames)
        if not self._is_ahead:
            return lambda: self._prepare(frames.get())
        steps: queue.Queue[Step | None] = queue.Queue(maxsize=1)
        _start_passing("worker-prepare", lambda: self._prepare(frames.get()), steps)
        return steps.get

    def _prepare(self, frame: Frame | None) -> Step | None:
        if frame is None:
            return None
        message = decode_message(frame)
        if not isinstance(message, Job):
            return Step(message)
        return Step(message, prepare_batch(self._loaded.get(message.key), message.items, message.stretches))

    def _do(self, step: Step | None) -> bool:
        """Whether there may be more."""
        if step is None:
            return False
        message = step.message
        if isinstance(message, Job):
            done = self._answer(message, step.batch)
            if done.is_out_of_memory:
                self._start_afresh(message.key)  # not in there: an error's frames hold what memory there is
            self._send(done)
        elif isinstance(message, Load):
            self._send(self._take_in(message.package))
        else:
            for each in (self._packages, self._loaded, self._failures):
                each.pop(message.key, None)
            _free_memory()
        return True

    def _take_in(self, package: ModelPackage) -> Loaded:
        self._packages[package.key] = package
        try:
            self._loaded[package.key] = self._load(package)
            self._failures.pop(package.key, None)
            return Loaded(package.key)
        except Exception as error:
            self._failures[package.key] = error.with_traceback(None)  # its frames may hold much memory
            return Loaded(package.key, in_words(error))

    def _answer(self, job: Job, batch: PreparedBatch | None) -> JobDone:
        """Runs a batch. Whatever a model raises is an answer: the loop goes on."""
        started = time.perf_counter()
        took_s = batch.took_s if batch else 0.0
        try:
            assert batch is not None
            analysis = self._loaded.get(job.key)
            if analysis is None:
                raise self._failures.get(job.key, LookupError(f"{job.key} was never loaded"))
            done = finish_in_blocks(job.job_id, analysis, batch)
            return replace(done, duration_s=took_s + time.perf_counter() - started)
        except Exception as error:
            return JobDone(
                job.job_id,
                failure=in_words(error),
                is_out_of_memory=is_out_of_memory(error),
                duration_s=took_s + time.perf_counter() - started,
            )

    def _start_afresh(self, key: ModelKey) -> None:
        """Loads a model again that found no memory: an allocator may keep all that it got for what it failed to get."""
        self._loaded.pop(key, None)
        _free_memory()
        package = self._packages.get(key)
        if package is not None:
            self._take_in(package)


def _start_passing(name: str, take: Callable[[], T | None], to: queue.Queue[T | None]) -> None:
    """Passes on what comes, in a thread, until None."""

    def pass_on() -> bool:
        each = take()
        to.put(each)
        return each is not None

    def run() -> None:
        while pass_on():
            pass

    threading.Thread(target=run, name=name, daemon=True).start()


def prepare_batch(
    analysis: Analysis | None, items: list[WorkItem], stretches: Sequence[PlacedStretch] = ()
) -> PreparedBatch:
    """Decodes the payloads, and lets the analysis prepare them where it is there and does so."""
    started = time.perf_counter()
    batch = PreparedBatch({}, [], [])
    try:
        for place, item in enumerate(items):
            try:
                batch.inputs.append(item.decode())
                batch.places.append(place)
            except InvalidObservationError as error:
                batch.refusals[place] = in_words(error)
        if stretches:
            _set_apart(batch, stretches)
        if isinstance(analysis, PreparingAnalysis) and batch.inputs:
            batch.prepared = analysis.prepare(batch.inputs)
    except Exception as error:
        batch.failure = error.with_traceback(None)  # its frames hold what there was no memory for
        batch.inputs.clear()
        batch.stretches.clear()
    batch.took_s = time.perf_counter() - started
    return batch


def _set_apart(batch: PreparedBatch, stretches: Sequence[PlacedStretch]) -> None:
    """Takes what belongs to stretches out of the inputs. What could not be decoded is missing; the others follow on."""
    single = dict(zip(batch.places, batch.inputs, strict=True))
    for first_place, item_count, state in stretches:
        places = [place for place in range(first_place, first_place + item_count) if place in single]
        observations = [single.pop(place) for place in places]
        batch.stretches.append(PreparedStretch(places, Stretch(state, observations)))
    batch.places, batch.inputs = list(single), list(single.values())


def finish_in_blocks(job_id: int, analysis: Analysis, batch: PreparedBatch) -> JobDone:
    """The answers of a prepared batch as they cross."""
    if batch.failure is not None or batch.stretches or not isinstance(analysis, BlockAnalysis):
        results, states = finish_batch(analysis, batch)
        return pack_results(job_id, results, states=states)
    blocks, refused = analysis.predict_blocks(batch.inputs) if batch.inputs else ([], {})
    places = batch.places  # of the inputs, which are fewer than the items where some could not be decoded
    if batch.refusals:
        blocks = [replace(block, places=[places[place] for place in block.places]) for block in blocks]
    refusals = {places[place]: in_words(error) for place, error in refused.items()}
    return JobDone(job_id, blocks, batch.refusals | refusals)


def finish_batch(analysis: Analysis, batch: PreparedBatch) -> tuple[list[AnalysisResult | str], list[bytes]]:
    """The answers of a prepared batch, and the states after its stretches; what has no answer is said in its place."""
    if batch.failure is not None:
        raise batch.failure
    if batch.prepared is not None and isinstance(analysis, PreparingAnalysis):
        answers = analysis.compute(batch.prepared)
    else:
        answers = analysis.predict(batch.inputs) if batch.inputs else []
    results: dict[int, AnalysisResult | str] = dict(batch.refusals)
    results |= _placed(batch.places, answers)
    states = _follow(analysis, batch.stretches, results) if batch.stretches else []
    return [results[place] for place in range(len(results))], states


def _follow(
    analysis: Analysis, stretches: list[PreparedStretch], results: dict[int, AnalysisResult | str]
) -> list[bytes]:
    """Puts the answers of stretches into the results; returns what is known after each.

    A stretch of which nothing could be decoded is not asked about: what is known stays as it was.
    """
    if not isinstance(analysis, FollowingAnalysis):
        raise BrokenStateError(
            f"expected a model version that remembers, but {analysis.name}@{analysis.version} was asked to follow"
        )
    asked = [each for each in stretches if each.places]
    followed = analysis.follow([each.stretch for each in asked]) if asked else []
    for (places, _), (answers, state) in zip(asked, followed, strict=True):
        results |= _placed(places, answers)
        if len(state) > STATE_BYTES_MAX:
            raise BrokenStateError(f"expected a state of at most {STATE_BYTES_MAX} bytes, but got {len(state)}")
    told = iter(followed)
    return [next(told).state if places else stretch.state for places, stretch in stretches]


def _placed(places: list[int], answers: list[AnalysisResult | Exception]) -> dict[int, AnalysisResult | str]:
    return {
        place: in_words(answer) if isinstance(answer, Exception) else answer
        for place, answer in zip(places, answers, strict=True)
    }


def predict_items(analysis: Analysis, items: list[WorkItem]) -> list[AnalysisResult | str]:
    """Both steps: payloads in, answers out; what cannot be answered is said in its place."""
    return finish_batch(analysis, prepare_batch(analysis, items))[0]


def in_words(error: Exception) -> str:
    """An error as the prediction keeps it."""
    return f"{type(error).__name__}: {error}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory; asks only what is imported already."""
    if isinstance(error, MemoryError):  # numpy's too
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):  # of a GPU
        return True
    # torch on the CPU and onnxruntime have no type of their own for it: the text is all that tells it from others
    is_theirs = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")
    return is_theirs and any(text in str(error) for text in ALLOCATION_FAILURES)


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
