"""The workers of a server: how many of which kind on which device, here or on a cluster of Ray.

Workers of a kind are started when the first model of that kind is there. Each GPU has one worker; on the CPU there are
as many as the settings say, and more, up to a bound, while observations wait too long (server.scaling decides).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fieldpost.errors import InvalidRequestError
from server.workers.jobs import ModelKey, ModelPackage
from server.workers.protocol import Worker, WorkerEvents, WorkerKind
from server.workers.ray_workers import RayEngine
from server.workers.scaling import Load, Scaling, ScalingBounds
from server.workers.supervised_worker import Ended, Life, Report, SupervisedWorker
from server.workers.worker_process import WorkerProcess, WorkerSpec
from server.workers.worker_wire import decode_answer

logger = logging.getLogger(__name__)


class WorkerPool(Protocol):
    """The workers that there are."""

    @property
    def workers(self) -> Sequence[Worker]:
        """Those that may be given work; changes as the pool grows and shrinks."""

    def need(self, kind: WorkerKind) -> None:
        """A model of this kind was added: its workers are started where there are none yet."""

    def note_queue(self, kind: WorkerKind, oldest_s: float, waiting_count: int) -> None:
        """Told about once a second how long the oldest observation for this kind has waited, and how many wait."""

    def close(self) -> None:
        """Ends all workers; they finish nothing."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """How many workers there are to be, and of what kind.

    Attributes:
        workers: On the CPU, of each kind, at least.
        workers_max: At most; no fewer than `workers`.
        devices: "cpu", and GPUs as "cuda:0"; each GPU has one worker. Users' models compute on the CPU in any case.
        threads: That a worker on the CPU computes with.
        memory_bytes: Data of one worker at most; 0 for no limit.
        users_memory_bytes: The same of one that runs users' models, where memory_bytes is 0.
        oldest_max_s: More workers where an observation waits longer.
    """

    workers: int = 1
    workers_max: int = 0
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1
    memory_bytes: int = 0
    users_memory_bytes: int = 0
    oldest_max_s: float = 2.0


class Engine(Protocol):
    """Where lives are lived."""

    name: str

    def start_life(self, spec: WorkerSpec, report: Callable[[Report], None]) -> Life:
        """Starts one; returns at once."""

    def close(self) -> None:
        """Nothing more will be started."""


def open_pool(engine: str, plan: PoolPlan) -> Callable[[WorkerEvents], WorkerPool]:
    """What starts the pool, in the event loop, for who hears of its workers.

    Call it in the main thread, and before anything is served: to start a Ray takes some seconds.

    Args:
        engine: "local": processes on this machine; "ray://host:port": actors on that cluster of Ray, of which this
            machine is a node; "ray:": on a Ray of its own on this machine.
        plan: How many workers.

    Raises:
        InvalidRequestError: There is no such engine.
        BrokenStateError: Ray did not start here.
    """
    if engine == "local":
        return lambda events: Pool(LocalEngine(), plan, events)
    if engine.startswith("ray:"):
        cluster = RayEngine(engine)
        return lambda events: Pool(cluster, plan, events)
    raise InvalidRequestError(
        f"expected an engine local, ray: or ray://host:port, but got {engine!r}", hint="see engine in docs/settings.md"
    )


class LocalEngine:
    """Processes on this machine."""

    name = "local"

    def start_life(self, spec: WorkerSpec, report: Callable[[Report], None]) -> Life:
        """Starts a process."""
        return WorkerProcess(spec, lambda frame: report(decode_answer(frame)), lambda reason: report(Ended(reason)))

    def close(self) -> None:
        """There is nothing to close."""


class Pool:
    """The workers of one engine. Lives in the event loop."""

    def __init__(self, engine: Engine, plan: PoolPlan, events: WorkerEvents) -> None:
        self._engine, self._plan, self._events = engine, plan, events
        self._loop = asyncio.get_running_loop()
        self._groups: dict[WorkerKind, _Group] = {}
        self._retiring: set[SupervisedWorker] = set()

    @property
    def workers(self) -> Sequence[SupervisedWorker]:
        """Those that may be given work."""
        return [worker for group in self._groups.values() for worker in (*group.on_gpus, *group.on_cpu)]

    def need(self, kind: WorkerKind) -> None:
        """Starts the workers of this kind where there are none yet."""
        if kind in self._groups:
            return
        plan = self._plan
        is_strange = kind is WorkerKind.ONNX  # a confined process can open no GPU
        on_cpu = max(1, plan.workers) if is_strange else plan.workers if "cpu" in plan.devices else 0
        bounds = ScalingBounds(on_cpu, max(on_cpu, plan.workers_max) if on_cpu else 0, plan.oldest_max_s)
        group = self._groups[kind] = _Group(Scaling(bounds))
        gpus = [] if is_strange else [device for device in plan.devices if device != "cpu"]
        group.on_gpus = [self._start(kind, group, device) for device in gpus]
        self._scale_to(kind, group, on_cpu)

    def note_queue(self, kind: WorkerKind, oldest_s: float, waiting_count: int) -> None:
        """Adds or takes away workers on the CPU."""
        group = self._groups.get(kind)
        if group is None:
            return
        starting = sum(not worker.is_ready for worker in group.on_cpu)
        busy_s = group.gone_busy_s + sum(worker.busy_s() for worker in group.on_cpu)
        load = Load(self._loop.time(), oldest_s, waiting_count, len(group.on_cpu), starting, busy_s)
        self._scale_to(kind, group, group.scaling.decide(load))

    def close(self) -> None:
        """Ends all workers."""
        for worker in (*self.workers, *self._retiring):
            worker.close()
        self._engine.close()

    def _scale_to(self, kind: WorkerKind, group: _Group, count: int) -> None:
        if group.on_cpu and count != len(group.on_cpu):
            logger.info("workers change", extra={"kind": kind, "before": len(group.on_cpu), "count": count})
        while len(group.on_cpu) < count:
            group.on_cpu.append(self._start(kind, group, "cpu"))
        while len(group.on_cpu) > count:
            worker = group.on_cpu.pop()
            group.gone_busy_s += worker.busy_s()
            self._retiring.add(worker)
            worker.retire(partial(self._retiring.discard, worker))

    def _start(self, kind: WorkerKind, group: _Group, device: str) -> SupervisedWorker:
        users_bytes = self._plan.users_memory_bytes if kind is WorkerKind.ONNX else 0
        spec = WorkerSpec(kind, device, self._plan.threads, self._plan.memory_bytes or users_bytes)
        prefix = self._engine.name if kind is WorkerKind.BUILT_IN else kind
        return SupervisedWorker(
            f"{prefix}-{next(group.numbers)}",
            kind,
            device,
            lambda report: self._engine.start_life(spec, report),
            self._events,
            group.packages,
        )


class _Group:
    """The workers of one kind.

    Attributes:
        packages: What they have loaded: what a new one loads before it takes work.
        gone_busy_s: What those computed that are gone.
    """

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling
        self.on_gpus: list[SupervisedWorker] = []
        self.on_cpu: list[SupervisedWorker] = []
        self.packages: dict[ModelKey, ModelPackage] = {}
        self.numbers = itertools.count(1)
        self.gone_busy_s = 0.0
