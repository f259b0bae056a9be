"""What a worker is to the rest of the server, wherever it runs. Knows no process, no pipe and no Ray.

A worker belongs to a pool (server.workers.worker_pool), has one device, and takes a few batches at a time: one that it
computes, the others wait in its pipe, so that it never waits for the server. It has many lives: when one ends, its
batches come back through `on_lost`, and the next begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from server.workers.jobs import Job, JobDone, ModelKey, ModelPackage


class WorkerKind(StrEnum):
    """Which models a worker runs; the values are those of ModelKind.

    Users' models have processes of their own: confined, and without torch.
    """

    BUILT_IN = "built-in"
    ONNX = "onnx"


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """How a worker is.

    Attributes:
        name: For example "local-1", "onnx-1" or "ray-3".
        device: What it computes with.
        is_ready: Whether it takes work now.
        batch_count: Batches that it has answered.
        restart_count: Times that it was started again.
        busy_s: Its own time for these batches.
        memory_bytes: Resident memory of its process; 0 where that is not known.
        last_death: Why its latest life ended, in words; empty where none has.
    """

    name: str
    device: str
    is_ready: bool
    batch_count: int
    restart_count: int
    busy_s: float
    memory_bytes: int
    last_death: str = ""


class Worker(Protocol):
    """Who computes batches, wherever it runs."""

    @property
    def name(self) -> str:
        """For example "local-1"."""

    @property
    def kind(self) -> WorkerKind:
        """Which models it runs."""

    @property
    def free_slots(self) -> int:
        """How many more jobs it takes now."""

    def send(self, job: Job, package: ModelPackage) -> None:
        """Gives it a job; one that it does not live to answer comes back through on_lost.

        Args:
            job: The batch.
            package: Of the job's model version; crosses to the worker once in each of its lives.
        """

    def unload(self, key: ModelKey) -> None:
        """Lets it forget a model version; costs nothing where it never had it."""

    def facts(self) -> WorkerFacts:
        """How it is."""

    def close(self) -> None:
        """Ends it; it finishes nothing, and says nothing more."""


class WorkerEvents(Protocol):
    """Who hears of workers; called in the event loop."""

    def on_done(self, worker: Worker, done: JobDone) -> None:
        """A job was answered."""

    def on_lost(self, worker: Worker, jobs: list[Job], reason: str) -> None:
        """The worker died, hung, or its node is gone, with these jobs; never called without any.

        The first was being computed. The later ones only waited: they are innocent.
        """

    def on_ready(self) -> None:
        """Some worker has room, or has it again."""
