"""A real gRPC server over a real store, with workers that compute in the event loop what a test gives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from server_support import open_store
from sqlalchemy import insert, select

from fieldpost.errors import UnknownModelError
from fieldpost.v1 import (
    capacity_service_pb2_grpc,
    inference_service_pb2_grpc,
    ingest_service_pb2,
    ingest_service_pb2_grpc,
    models_service_pb2_grpc,
    observations_service_pb2_grpc,
    predictions_service_pb2_grpc,
    stations_service_pb2_grpc,
)
from server.analyses import AnalysisResult, AnalysisVariable
from server.api.credentials import Listen
from server.api.server import GrpcServer, Parts
from server.batching.batcher import Batcher
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.ingest.uploads import Uploads
from server.models.card import ModelCard, ModelKind, ModelState
from server.models.desk import ModelDesk
from server.models.files import ModelFiles
from server.mqtt.command_desk import CommandDesk
from server.operation.capacity import CapacityDesk
from server.prediction.inference import Inference
from server.queries.predictions import NewPrediction, encode_failure, encode_result, write_predictions
from server.storage.tables import model_versions, observations
from server.workers.jobs import Job, ModelKey, ModelPackage, WorkItem, pack_results
from server.workers.protocol import WorkerEvents, WorkerFacts, WorkerKind

KEY = ModelKey("height", 1)
Compute = Callable[[list[WorkItem]], Awaitable[list[AnalysisResult | str]]]


def make_result(value: float) -> AnalysisResult:
    return AnalysisResult(np.array([5]), (AnalysisVariable("height", "m", np.array([value], np.float32)),))


async def payload_lengths(items: list[WorkItem]) -> list[AnalysisResult | str]:
    """A small model: the length of the payload; it fails on b"bad"."""
    return ["cannot be decoded" if each.payload == b"bad" else make_result(len(each.payload)) for each in items]


class LoopWorker:
    """Computes in the event loop, one batch at a time."""

    name = "loop-1"
    kind = WorkerKind.BUILT_IN

    def __init__(self, events: WorkerEvents, compute: Compute) -> None:
        self._events = events
        self._compute = compute
        self._task: asyncio.Task[None] | None = None
        self.batches: list[list[WorkItem]] = []

    @property
    def free_slots(self) -> int:
        return int(self._task is None)

    def send(self, job: Job, package: ModelPackage) -> None:
        self._task = asyncio.create_task(self._run(job))

    async def _run(self, job: Job) -> None:
        if job.items:
            self.batches.append(job.items)
        results = await self._compute(job.items)
        self._task = None
        self._events.on_done(self, pack_results(job.job_id, results))  # type: ignore[arg-type]

    def unload(self, key: ModelKey) -> None:
        pass

    def facts(self) -> WorkerFacts:
        return WorkerFacts(self.name, "cpu", True, len(self.batches), 0, 0.0, 0)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()


class LoopPool:
    """One such worker."""

    def __init__(self, events: WorkerEvents, compute: Compute) -> None:
        self.worker = LoopWorker(events, compute)
        self.workers: Sequence[Any] = [self.worker]

    def need(self, kind: WorkerKind) -> None:
        pass

    def note_queue(self, kind: WorkerKind, oldest_s: float, waiting_count: int) -> None:
        pass

    def close(self) -> None:
        self.worker.close()


class Running:
    """A served store, and a channel to it."""

    def __init__(self, parts: Parts, batcher: Batcher, worker: LoopWorker, port: int) -> None:
        self.parts, self.batcher, self.worker, self.port = parts, batcher, worker, port
        self.store = parts.store
        self.address = f"localhost:{port}"

    def connect(self, credentials: grpc.ChannelCredentials | None = None) -> Stubs:
        """A channel of its own; without credentials in the clear."""
        if credentials is None:
            return Stubs(grpc.aio.insecure_channel(self.address))
        return Stubs(grpc.aio.secure_channel(self.address, credentials))

    async def predict(
        self, *sequences: int, version: int = 1, failing: Sequence[int] = (), is_served: bool = True
    ) -> None:
        """Stores a prediction of each of these observations."""

        def write(connection: Any) -> None:
            row_id = find_version(connection, version, is_served=is_served)
            rows = connection.execute(select(observations)).all()
            ids = {row.sequence: row for row in rows}
            new = [
                NewPrediction(
                    ids[each].id,
                    row_id,
                    ids[each].instrument_id,
                    ids[each].measure_unix_nanos,
                    7,
                    encode_failure("broken") if each in failing else encode_result(make_result(1.5)),
                    each in failing,
                )
                for each in sequences
            ]
            write_predictions(connection, new)

        await asyncio.wrap_future(self.store.write(write))
        self.parts.predicted.tell()


def find_version(connection: Any, version: int, *, is_served: bool = True) -> int:
    """The row of a version of the analysis "height", made where it is not there."""
    here = (model_versions.c.analysis == "height", model_versions.c.version == version)
    found = connection.scalar(select(model_versions.c.id).where(*here))
    if found is None:
        state = ModelState.ACTIVE if is_served else ModelState.SHADOW
        values = {"analysis": "height", "version": version, "state": state, "kind": ModelKind.BUILT_IN}
        first = 0 if is_served else None
        connection.execute(insert(model_versions).values(**values, first_active_unix_nanos=first))
        found = connection.scalar(select(model_versions.c.id).where(*here))
    return int(found)


class Stubs:
    """All services over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.ingest = ingest_service_pb2_grpc.IngestStub(channel)
        self.observations = observations_service_pb2_grpc.ObservationsStub(channel)
        self.predictions = predictions_service_pb2_grpc.PredictionsStub(channel)
        self.inference = inference_service_pb2_grpc.InferenceStub(channel)
        self.stations = stations_service_pb2_grpc.StationsStub(channel)
        self.models = models_service_pb2_grpc.ModelsStub(channel)
        self.capacity = capacity_service_pb2_grpc.CapacityStub(channel)

    async def __aenter__(self) -> Stubs:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def send(self, *bundles: Any) -> list[Any]:
        async def requests() -> AsyncIterator[ingest_service_pb2.SendRequest]:
            for bundle in bundles:
                yield ingest_service_pb2.SendRequest(bundle=bundle)

        return [answer.receipt async for answer in self.ingest.Send(requests())]


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    compute: Compute = payload_lengths,
    listen: Listen | None = None,
    instruments: tuple[str, ...] = ("cl51",),
    database_url: str = "",
) -> AsyncIterator[Running]:
    """A server on a free port, until the end of the block."""
    async with AsyncExitStack() as stack:
        store = open_store(folder, instruments=instruments, database_url=database_url)
        stack.callback(store.close)
        stored, predicted = Broadcast(), Broadcast()
        ingest = Ingest(store, payload_bytes_max=1 << 23, on_stored=stored.tell_from_thread)
        stack.callback(ingest.close)
        pools: list[LoopPool] = []

        def start_pool(events: WorkerEvents) -> LoopPool:
            pools.append(LoopPool(events, compute))
            return pools[0]

        batcher = Batcher(start_pool)
        stack.callback(batcher.close)
        card = ModelCard(1, KEY, ModelState.ACTIVE, ModelKind.BUILT_IN, frozenset({"cl51"}))
        batcher.add_model(ModelPackage(KEY), card)

        async def find(analysis: str, version: int) -> ModelCard:
            if analysis != KEY.analysis or version not in (0, KEY.version):
                raise UnknownModelError(f"expected a model version of this server, but got {analysis[:63]}@{version}")
            return card

        parts = Parts(
            store=store,
            ingest=ingest,
            uploads=Uploads(folder / "uploads", store, ingest, payload_bytes_max=1 << 23),
            commands=CommandDesk(),
            capacity=CapacityDesk(ingest, batcher, folder),
            models=ModelDesk(store, ModelFiles(folder / "models"), changed=Broadcast()),
            inference=Inference(find, batcher, payload_bytes_max=1 << 20),
            stored=stored,
            predicted=predicted,
        )
        listen = listen or Listen("localhost:0")
        server = GrpcServer(parts, listen, message_bytes_max=1 << 22, model_bytes_max=1 << 20)
        port = await server.start()
        stack.push_async_callback(server.stop, 0)
        yield Running(parts, batcher, pools[0].worker, port)


def run(folder: Path, scenario: Callable[[Running, Stubs], Awaitable[None]], **options: Any) -> None:
    """Runs a scenario against a server of its own, over a channel in the clear."""

    async def main() -> None:
        async with serving(folder, **options) as running, running.connect() as stubs:
            await asyncio.wait_for(scenario(running, stubs), 30)

    asyncio.run(main())
