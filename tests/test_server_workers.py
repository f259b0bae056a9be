"""Worker processes: real ones, killed, stopped, starved of memory. What they say to the server is in the wire tests."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_support import PROFILE_MANIFEST, floats, make_model, make_profile, make_profile_model, weights

from fieldpost.errors import BrokenStateError, InvalidObservationError, RejectedError
from fieldpost.payload import encode_payload
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable
from server.batching.batcher import Batcher
from server.models.card import ModelCard, ModelKind, ModelState
from server.workers import supervised_worker
from server.workers.jobs import Job, JobDone, ModelKey, ModelPackage, PlacedStretch, WorkItem, pack_results
from server.workers.protocol import Worker, WorkerKind
from server.workers.supervised_worker import Ended, Report, SupervisedWorker
from server.workers.worker import is_out_of_memory, predict_items
from server.workers.worker_pool import Pool, PoolPlan, open_pool
from server.workers.worker_process import WorkerProcess, WorkerSpec
from server.workers.worker_wire import (
    Frame,
    Load,
    Loaded,
    Message,
    Ready,
    Unload,
    answers_all,
    decode_answer,
    decode_message,
    encode_answer,
    encode_message,
)

BOUNDARY_LAYER = ModelKey("boundary-layer-height", 1)
MIB = 1024 * 1024
START_NANOS = 1_750_000_000 * 10**9


class Heard:
    """What a pool reports, with a way to wait for it."""

    def __init__(self) -> None:
        self.done: list[JobDone] = []
        self.lost: list[tuple[list[int], str]] = []
        self.ready_count = 0
        self._changed = asyncio.Condition()

    def on_done(self, worker: Worker, done: JobDone) -> None:
        self.done.append(done)
        self._tell()

    def on_lost(self, worker: Worker, jobs: list[Job], reason: str) -> None:
        self.lost.append(([job.job_id for job in jobs], reason))
        self._tell()

    def on_ready(self) -> None:
        self.ready_count += 1
        self._tell()

    def _tell(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(condition)


def in_a_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def a_pool(
    plan: PoolPlan | None = None, kind: WorkerKind = WorkerKind.BUILT_IN
) -> AsyncIterator[tuple[Pool, Heard]]:
    """A pool of local workers that are ready."""
    heard = Heard()
    pool = open_pool("local", plan or PoolPlan())(heard)
    assert isinstance(pool, Pool)
    try:
        pool.need(kind)
        await heard.until(lambda: all(worker.is_ready for worker in pool.workers))
        yield pool, heard
    finally:
        pool.close()


def process_id(worker: SupervisedWorker) -> int:
    life = worker._life
    assert isinstance(life, WorkerProcess)
    return life.process_id


def make_item(content: bytes | None = None) -> WorkItem:
    content = content if content is not None else SimulatedCl51(seed=3).telegram(1.75e9)
    payload, encoding = encode_payload(content)
    return WorkItem(payload, encoding, len(content), "cl51", START_NANOS)


def make_job(job_id: int, items: list[WorkItem] | None = None, timeout_s: float = 60.0) -> Job:
    return Job(job_id, BOUNDARY_LAYER, items if items is not None else [make_item()], timeout_s)


PACKAGE = ModelPackage(BOUNDARY_LAYER)


def cross(message: Message) -> Message:
    """A message as the other side has it."""
    return decode_message(frame_of(encode_message(message)))


def frame_of(parts: list[bytes | bytearray | memoryview]) -> Frame:
    return Frame(parts[1], memoryview(b"".join(parts[2:])))


# ---- the wire ----


def test_messages_cross_as_they_are() -> None:
    job = make_job(7, [make_item(), make_item(b""), make_item()._replace(calibration=1.5)])
    package = ModelPackage(ModelKey("clouds", 3), "analysis = 'clouds'", b"onnx" * 100)
    for message in (job, make_job(8, []), Load(package), Unload(package.key)):
        assert cross(message) == message


def test_answers_cross_as_they_are() -> None:
    result = AnalysisResult(
        np.arange(3), (AnalysisVariable("class", "1", np.float32([0, np.nan, 2]), ("sky", "cloud", "rain")),)
    )
    done = pack_results(5, [result, "no telegram", result], 0.25)
    there = decode_answer(frame_of(encode_answer(done)))
    assert isinstance(there, JobDone)
    assert answers_all(there, 3)
    assert (there.job_id, there.duration_s, there.refusals) == (5, 0.25, {1: "no telegram"})
    for before, after in zip(done.results(), there.results(), strict=True):
        if isinstance(before, str):
            assert after == before
        else:
            assert isinstance(after, AnalysisResult)
            np.testing.assert_array_equal(after.sample_unix_nanos, before.sample_unix_nanos)
            np.testing.assert_array_equal(after.variables[0].values, before.variables[0].values)
            assert after.variables[0].flag_meanings == ("sky", "cloud", "rain")
    for answer in (Ready("cpu", ("seccomp",)), Loaded(BOUNDARY_LAYER, "no"), JobDone(1, [], {}, "broke", True, 1.5)):
        assert decode_answer(frame_of(encode_answer(answer))) == answer


@pytest.mark.parametrize(
    "header",
    [
        b"\x80\x05cos\nsystem\n",  # a pickle
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"done": 1, "blocks": [[[0], [-1], []]], "refusals": {}, "failure": "", "duration_s": 1, "states": []}',
        b'{"done": 1, "blocks": [[[0], [1000000], [["a", "m", []]]]], "refusals": {}, "failure": "", '
        b'"duration_s": 1, "states": []}',
        b'{"done": 1, "blocks": [[[0, 1], [1], []]], "refusals": {}, "failure": "", "duration_s": 1, "states": []}',
        b'{"done": {}, "blocks": [], "refusals": {}, "failure": "", "duration_s": 1, "states": []}',
        b'{"done": 1, "blocks": [[[0.0], [1], []]], "refusals": {}, "failure": "", '
        b'"is_out_of_memory": false, "duration_s": 1, "states": []}',
        b'{"done": 1, "blocks": [[[0], [true], []]], "refusals": {}, "failure": "", '
        b'"is_out_of_memory": false, "duration_s": 1, "states": []}',
        b'{"done": 1, "blocks": [[[0], [0], [["\\ud800", "m", []]]]], "refusals": {}, "failure": "", '
        b'"is_out_of_memory": false, "duration_s": 1, "states": []}',
        b'{"done": 1, "blocks": [], "refusals": {"0": "\\ud800"}, "failure": "", "is_out_of_memory": false, '
        b'"duration_s": 1, "states": []}',
        b'{"done": 1, "blocks": 5, "refusals": [], "failure": "", "duration_s": "x", "states": []}',
        b'{"ready": 5}',
        b'{"loaded": "x"}',
    ],
)
def test_an_answer_that_is_none_is_refused_and_runs_nothing(header: bytes) -> None:
    with pytest.raises(BrokenStateError, match="expected an answer of a worker"):
        decode_answer(Frame(header, memoryview(b"12345678")))


@pytest.mark.parametrize(
    "told",
    [
        {"ready": {"device": "\ud800", "confinements": []}},
        {"ready": {"device": "cpu", "confinements": ["\udfff"]}},
        {"loaded": ["a", 1, "\ud800"]},
    ],
)
def test_what_a_strange_worker_says_of_itself_is_text_that_can_be_sent_on(told: object) -> None:
    header = json.dumps(told).encode()
    with pytest.raises(BrokenStateError):
        decode_answer(Frame(header, memoryview(b"")))


def test_an_answer_must_be_about_each_observation_once() -> None:
    result = AnalysisResult(np.arange(2), ())
    assert answers_all(pack_results(1, [result, "no"]), 2)
    assert not answers_all(pack_results(1, [result]), 2)
    assert not answers_all(pack_results(1, [result, result]), 1)
    assert not answers_all(JobDone(1, pack_results(1, [result]).blocks, {0: "twice"}), 2)
    assert not answers_all(JobDone(1, pack_results(1, [result]).blocks, {5: "of whom?"}), 2)


# ---- what a worker does with a batch ----


class Picky:
    """Two steps; refuses empty payloads, breaks on b"poison"."""

    name, version, instrument_models, max_batch = "picky", 1, frozenset({"cl51"}), 8

    def prepare(self, batch: list[AnalysisInput]) -> list[bytes]:
        return [each.payload for each in batch]

    def compute(self, prepared: list[bytes]) -> list[AnalysisResult | Exception]:
        if b"poison" in prepared:
            raise ValueError("poison")
        return [
            AnalysisResult(np.array([len(each)]), ()) if each else InvalidObservationError("empty") for each in prepared
        ]

    def predict(self, batch: list[AnalysisInput]) -> list[AnalysisResult | Exception]:
        return self.compute(self.prepare(batch))


def test_each_observation_has_its_own_answer_in_its_place() -> None:
    damaged = make_item()._replace(payload=b"not zstandard", payload_encoding=pb.PAYLOAD_ENCODING_ZSTD)
    answers = predict_items(Picky(), [make_item(b"abc"), damaged, make_item(b""), make_item(b"abcd")])  # type: ignore[arg-type]
    assert isinstance(answers[0], AnalysisResult) and isinstance(answers[3], AnalysisResult)
    assert "Zstandard" in str(answers[1])
    assert answers[2] == "InvalidObservationError: empty"


def test_a_worker_tells_lack_of_memory_from_other_failures() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_numpy.value)
    assert not is_out_of_memory(RuntimeError("expected 3 channels"))
    assert not is_out_of_memory(ValueError("Failed to allocate memory"))


# ---- processes ----


@in_a_loop
async def test_a_worker_loads_once_answers_in_order_and_says_how_it_is() -> None:
    async with a_pool() as (pool, heard):
        (worker,) = pool.workers
        assert (worker.name, worker.free_slots, worker.facts().batch_count) == ("local-1", 2, 0)
        worker.send(make_job(1), PACKAGE)
        worker.send(make_job(2, [make_item(), make_item(b"no telegram")]), PACKAGE)
        assert worker.free_slots == 0
        await heard.until(lambda: len(heard.done) == 2)
        assert [done.job_id for done in heard.done] == [1, 2]
        first, second = heard.done[1].results()
        assert isinstance(first, AnalysisResult) and "InvalidObservationError" in str(second)
        facts = worker.facts()
        assert (facts.name, facts.device, facts.is_ready, facts.batch_count) == ("local-1", "cpu", True, 2)
        assert facts.busy_s == pytest.approx(sum(done.duration_s for done in heard.done))
        assert facts.memory_bytes > 50 * MIB
        worker.unload(BOUNDARY_LAYER)
        worker.send(make_job(3), PACKAGE)
        await heard.until(lambda: len(heard.done) == 3)
        assert not heard.done[2].failure


@in_a_loop
async def test_a_job_without_observations_only_loads_the_model() -> None:
    async with a_pool() as (pool, heard):
        pool.workers[0].send(make_job(1, []), PACKAGE)
        await heard.until(lambda: bool(heard.done))
        assert heard.done[0].results() == [] and not heard.done[0].failure


@in_a_loop
async def test_a_model_that_cannot_be_loaded_fails_its_jobs_and_nothing_else() -> None:
    async with a_pool() as (pool, heard):
        (worker,) = pool.workers
        unknown = ModelPackage(ModelKey("boundary-layer-height", 99))
        worker.send(Job(1, unknown.key, [make_item()], 60.0), unknown)
        worker.send(make_job(2), PACKAGE)
        await heard.until(lambda: len(heard.done) == 2)
        assert "boundary-layer-height@99" in heard.done[0].failure
        assert not heard.done[1].failure and not heard.lost


@in_a_loop
async def test_a_worker_that_is_killed_loses_its_jobs_and_comes_back_with_its_models() -> None:
    async with a_pool() as (pool, heard):
        (worker,) = pool.workers
        worker.send(make_job(1), PACKAGE)
        await heard.until(lambda: bool(heard.done))
        os.kill(process_id(worker), signal.SIGSTOP)  # so that it is surely at work when it dies
        worker.send(make_job(2), PACKAGE)
        worker.send(make_job(3), PACKAGE)
        os.kill(process_id(worker), signal.SIGKILL)
        await heard.until(lambda: bool(heard.lost))
        (jobs, reason) = heard.lost[0]
        assert jobs == [2, 3] and "SIGKILL" in reason
        assert worker.free_slots == 0
        ready_count = heard.ready_count
        await heard.until(lambda: heard.ready_count > ready_count)
        assert worker._loaded == {BOUNDARY_LAYER}  # before it takes work, not at the first job's expense
        worker.send(make_job(4), PACKAGE)
        await heard.until(lambda: len(heard.done) == 2)
        assert worker.facts().restart_count == 1 and "SIGKILL" in worker.facts().last_death


@in_a_loop
async def test_a_worker_that_hangs_is_replaced_and_only_its_own_time_counts() -> None:
    async with a_pool() as (pool, heard):
        (worker,) = pool.workers
        worker.send(make_job(1), PACKAGE)
        await heard.until(lambda: bool(heard.done))
        before = process_id(worker)
        os.kill(before, signal.SIGSTOP)
        worker.send(make_job(2, timeout_s=0.6), PACKAGE)
        worker.send(make_job(3, timeout_s=0.1), PACKAGE)  # waits longer than that; its time has not begun
        await asyncio.sleep(0.3)
        assert not heard.lost
        os.kill(before, signal.SIGCONT)
        await heard.until(lambda: len(heard.done) == 3)
        os.kill(before, signal.SIGSTOP)
        worker.send(make_job(4, timeout_s=0.2), PACKAGE)
        worker.send(make_job(5), PACKAGE)
        await heard.until(lambda: bool(heard.lost))
        (jobs, reason) = heard.lost[0]
        assert jobs == [4, 5] and "it hung: a batch for boundary-layer-height@1 took longer than 0.2 s" in reason
        await heard.until(lambda: worker.is_ready)
        assert process_id(worker) != before and not Path(f"/proc/{before}").exists()


@in_a_loop
async def test_a_batch_that_needs_too_much_memory_is_an_answer_and_the_worker_lives_on() -> None:
    zeros = make_item(bytes(200 * MIB))  # a few kilobytes on the way
    async with a_pool(PoolPlan(memory_bytes=700 * MIB)) as (pool, heard):
        (worker,) = pool.workers
        before = process_id(worker)
        worker.send(make_job(1, [zeros] * 4), PACKAGE)
        worker.send(make_job(2, [zeros]), PACKAGE)
        await heard.until(lambda: len(heard.done) == 2)
        assert heard.done[0].is_out_of_memory and "MemoryError" in heard.done[0].failure
        assert not heard.done[1].is_out_of_memory and not heard.done[1].failure
        assert process_id(worker) == before


@in_a_loop
async def test_a_worker_that_dies_at_start_backs_off_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_worker, "RESTART_WAIT_MIN_S", 0.05)
    heard = Heard()
    pool = open_pool("local", PoolPlan(devices=("cuda:7",)))(heard)
    assert isinstance(pool, Pool)
    try:
        pool.need(WorkerKind.BUILT_IN)
        (worker,) = pool.workers
        async with asyncio.timeout(60):
            while worker.facts().restart_count < 2:
                await asyncio.sleep(0.05)
        assert worker._failed_starts >= 2
        assert worker.free_slots == 0 and not heard.lost
        assert "ended with status 1" in worker.facts().last_death
        assert "Error" in worker.facts().last_death  # its last words
    finally:
        pool.close()


@in_a_loop
async def test_a_worker_that_the_machine_has_no_room_for_is_started_when_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervised_worker, "RESTART_WAIT_MIN_S", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with a_pool() as (pool, heard):
        (worker,) = pool.workers
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no file can be opened: no socket, no process
            os.kill(process_id(worker), signal.SIGKILL)
            async with asyncio.timeout(60):
                while "could not be started" not in worker.facts().last_death:
                    await asyncio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await heard.until(lambda: worker.is_ready)
        worker.send(make_job(1), PACKAGE)
        await heard.until(lambda: len(heard.done) == 1)


ODD_WORKER = """
import socket, sys
from server.workers.worker_wire import *
connection = socket.socket(fileno=int(sys.argv[1]))
say = lambda answer: write_frame(connection, encode_answer(answer))
say(Ready("cpu"))
while frame := read_frame(connection):
    message = decode_message(frame)
    if isinstance(message, Load):
        say(Loaded(message.package.key))
    elif isinstance(message, Job):
        refusals = {place: "no" for place in range(len(message.items))}
        say(JobDone(message.job_id, [], refusals, duration_s=float(message.items[0].payload)))
        if message.items[0].payload == b"0":
            say(Loaded(message.key))
"""


@asynccontextmanager
async def an_odd_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SupervisedWorker, Heard]]:
    """A real process that speaks as ours do, and is no worker of ours."""
    (folder / "odd_worker.py").write_text(ODD_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def start_life(report: Callable[[Report], None]) -> WorkerProcess:
        return WorkerProcess(
            WorkerSpec("onnx"),
            lambda frame: report(decode_answer(frame)),
            lambda reason: report(Ended(reason)),
            module="odd_worker",
        )

    heard = Heard()
    worker = SupervisedWorker("odd-1", WorkerKind.ONNX, "cpu", start_life, heard, {})
    try:
        await heard.until(lambda: worker.is_ready)
        yield worker, heard
    finally:
        worker.close()


@in_a_loop
async def test_whatever_a_worker_says_of_its_time_it_is_between_nothing_and_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_odd_worker(tmp_path, monkeypatch) as (worker, heard):
        for count, said in enumerate([b"nan", b"inf", b"-5", b"0.25"], 1):
            worker.send(make_job(count, [make_item(said)._replace(payload=said)], timeout_s=9.0), PACKAGE)
            await heard.until(lambda count=count: len(heard.done) == count)  # type: ignore[misc]
        assert [done.duration_s for done in heard.done] == [0.0, 9.0, 0.0, 0.25]
        assert worker.facts().busy_s == 9.25


@in_a_loop
async def test_a_worker_that_loads_what_it_was_not_told_to_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_odd_worker(tmp_path, monkeypatch) as (worker, heard):
        worker.send(make_job(1, [make_item(b"0")._replace(payload=b"0")]), PACKAGE)
        async with asyncio.timeout(60):
            while "not told to" not in worker.facts().last_death:
                await asyncio.sleep(0.01)
        await heard.until(lambda: worker.is_ready)


@in_a_loop
async def test_a_worker_that_does_not_say_what_is_known_after_a_stretch_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_odd_worker(tmp_path, monkeypatch) as (worker, heard):
        job = make_job(1, [make_item(b"1")._replace(payload=b"1")])
        worker.send(replace(job, stretches=[PlacedStretch(0, 1, b"")]), PACKAGE)
        await heard.until(lambda: bool(heard.lost))
        assert heard.lost == [([1], "it answered what it was not asked")] and not heard.done


@in_a_loop
async def test_nothing_is_left_of_a_closed_pool() -> None:
    async with a_pool(PoolPlan(workers=2)) as (pool, heard):
        ids = [process_id(worker) for worker in pool.workers]
        assert len(set(ids)) == 2
        pool.workers[0].send(make_job(1), PACKAGE)
    assert not any(Path(f"/proc/{each}").exists() for each in ids)
    assert not heard.lost


@in_a_loop
async def test_a_worker_that_is_taken_away_finishes_its_jobs_first() -> None:
    async with a_pool(PoolPlan(workers=2)) as (pool, heard):
        worker = pool.workers[-1]
        worker.send(make_job(1), PACKAGE)
        pool._scale_to(WorkerKind.BUILT_IN, pool._groups[WorkerKind.BUILT_IN], 1)
        assert worker not in pool.workers and worker.free_slots == 0
        await heard.until(lambda: len(heard.done) == 1)
        assert not heard.done[0].failure and not pool._retiring
        assert not Path(f"/proc/{process_id(worker)}").exists()


@in_a_loop
async def test_users_models_have_a_worker_of_limited_memory_where_the_others_have_gpus_alone_and_no_limit() -> None:
    plan = PoolPlan(workers=0, devices=("cuda:0",), users_memory_bytes=900 * MIB)
    async with a_pool(plan, WorkerKind.ONNX) as (pool, _):
        (worker,) = pool.workers
        limits = Path(f"/proc/{process_id(worker)}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
        assert str(900 * MIB) in line
    async with a_pool(PoolPlan(memory_bytes=800 * MIB, users_memory_bytes=900 * MIB), WorkerKind.ONNX) as (pool, _):
        assert str(800 * MIB) in Path(f"/proc/{process_id(pool.workers[0])}/limits").read_text()


@in_a_loop
async def test_a_long_queue_starts_more_workers_up_to_the_bound() -> None:
    async with a_pool(PoolPlan(workers=1, workers_max=2, oldest_max_s=0.5)) as (pool, heard):
        pool.note_queue(WorkerKind.BUILT_IN, 0.1, 5)
        assert len(pool.workers) == 1
        pool.note_queue(WorkerKind.BUILT_IN, 0.6, 5)
        assert [worker.name for worker in pool.workers] == ["local-1", "local-2"]
        pool.note_queue(WorkerKind.BUILT_IN, 9.0, 5)
        assert len(pool.workers) == 2
        await heard.until(lambda: all(worker.is_ready for worker in pool.workers))


def test_a_worker_process_dies_with_its_server_even_while_it_hangs(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from server.workers.worker_process import WorkerProcess, WorkerSpec\n"
        "import threading\n"
        "begun = threading.Event()\n"
        "process = WorkerProcess(WorkerSpec('built-in'), lambda frame: begun.set(), print)\n"
        "begun.wait(60)\n"
        "os.kill(process.process_id, signal.SIGSTOP)\n"
        "print(process.process_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker_id = int(done.stdout)
    for _ in range(200):
        status = Path(f"/proc/{worker_id}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlived its server")


# ---- users' models ----


def make_strange(nodes: list[onnx.NodeProto], *initializers: onnx.TensorProto) -> ModelPackage:
    """A user's model from a profile x to y that has not been looked at by anybody."""
    model = make_model(nodes, [floats("x", "b", 8)], [floats("y", "b", 1)], list(initializers))
    return ModelPackage(ModelKey("layer-height", 1), PROFILE_MANIFEST, model.SerializeToString())


def make_hungry() -> ModelPackage:
    """Fills as many GB as the profile's first number says."""
    return make_strange(
        [
            onnx.helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            onnx.helper.make_node("Mul", ["most", "giga"], ["count"]),
            onnx.helper.make_node("Cast", ["count"], ["whole"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("Reshape", ["whole", "one"], ["shape"]),
            onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            onnx.helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            onnx.helper.make_node("MatMul", ["x", "w"], ["mean"]),
            onnx.helper.make_node("Add", ["mean", "zero"], ["y"]),
        ],
        weights("giga", np.array(2.0**28, np.float32)),
        weights("one", np.array([1], np.int64)),
        weights("w", np.full((8, 1), 1 / 8, np.float32)),
    )


def make_looping() -> ModelPackage:
    """Loops as often as the profile's largest number says."""
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["c"], ["c2"]), onnx.helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
            floats("v", "b", 1),
        ],
        [onnx.helper.make_tensor_value_info("c2", onnx.TensorProto.BOOL, []), floats("v2", "b", 1)],
    )
    return make_strange(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["mean"]),
            onnx.helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            onnx.helper.make_node("Cast", ["most"], ["often"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("Loop", ["often", "go", "mean"], ["y"], body=body),
        ],
        weights("w", np.full((8, 1), 1 / 8, np.float32)),
        weights("go", np.array(True)),
    )


ENDLESS = 2.0**60


def make_strange_job(job_id: int, package: ModelPackage, *values: float, timeout_s: float = 30.0) -> Job:
    return Job(job_id, package.key, [make_item(make_profile(value)) for value in values], timeout_s)


@in_a_loop
async def test_a_users_model_computes_in_a_confined_process_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDPOST_DATABASE_URL", "postgresql://user:secret@db/fieldpost")
    package = ModelPackage(ModelKey("layer-height", 1), PROFILE_MANIFEST, make_profile_model())
    async with a_pool(kind=WorkerKind.ONNX) as (pool, heard):
        (worker,) = pool.workers
        assert worker.name == "onnx-1"
        worker.send(make_strange_job(1, package, 3.0, 5.0), package)
        await heard.until(lambda: bool(heard.done))
        first, second = heard.done[0].results()
        assert isinstance(first, AnalysisResult) and isinstance(second, AnalysisResult)
        assert (first.variables[0].values, second.variables[0].values) == (3.0, 5.0)
        process = Path(f"/proc/{process_id(worker)}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
        assert worker.facts().memory_bytes > 10 * MIB
        if os.geteuid() == 0:  # who else may look into a process that may not be looked into?
            assert "torch" not in (process / "maps").read_text()
            assert b"secret" not in (process / "environ").read_bytes()


@in_a_loop
async def test_a_users_model_without_memory_answers_and_one_without_end_is_killed() -> None:
    hungry, looping = make_hungry(), make_looping()
    async with a_pool(PoolPlan(memory_bytes=600 * MIB), kind=WorkerKind.ONNX) as (pool, heard):
        (worker,) = pool.workers
        worker.send(make_strange_job(1, hungry, 0.01, 2.0), hungry)
        worker.send(make_strange_job(2, hungry, 0.01), hungry)
        await heard.until(lambda: len(heard.done) == 2)
        assert heard.done[0].is_out_of_memory and not heard.lost
        assert not heard.done[1].failure
        worker.unload(hungry.key)
        worker.send(make_strange_job(3, looping, ENDLESS, timeout_s=0.5), looping)
        await heard.until(lambda: bool(heard.lost))
        assert heard.lost[0][0] == [3] and "it hung" in heard.lost[0][1]


@in_a_loop
async def test_an_observation_that_hangs_its_model_is_set_aside_and_its_neighbour_is_predicted() -> None:
    looping = make_looping()
    card = ModelCard(1, looping.key, ModelState.ACTIVE, ModelKind.ONNX, frozenset({"cl51"}), timeout_s=1.0)
    batcher = Batcher(open_pool("local", PoolPlan()))
    try:
        batcher.add_model(looping, card)
        answers = [batcher.submit(looping.key, make_item(make_profile(value)), lane="a") for value in (3.0, ENDLESS)]
        good, bad = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 60)
    finally:
        batcher.close()
    assert isinstance(good, AnalysisResult) and good.variables[0].values == 3.0
    assert isinstance(bad, RejectedError) and "it hung" in str(bad)
