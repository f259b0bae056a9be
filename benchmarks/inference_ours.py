"""Our server under the same loads: the real program, and the model submitted to it as a user would.

Three ways to ask: single requests as a user's program makes them (AsyncClient.predict from 64 coroutines, which the SDK
lets travel together), single requests as plain gRPC calls over raw sockets (as the peers are asked), and bundles of 64
on streams.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc import aio

from benchmarks.inference_load import LoadFigures, WrongAnswerError, run_clients
from benchmarks.inference_model import INPUT, OUTPUT, OUTPUT_COUNT, PROFILE_LENGTH, Floats
from benchmarks.inference_peers import WARM_S, check_answer, check_answers
from benchmarks.inference_protocols import GrpcExchange
from benchmarks.inference_servers import Figures, ProcessTree, to_figures, wait_until
from demo.processes import free_port, is_listening, program
from fieldpost import AsyncClient, Client
from fieldpost.v1 import inference_service_pb2 as pb
from fieldpost.v1.observation_pb2 import PAYLOAD_ENCODING_IDENTITY

ANALYSIS = "profile-heights"
BUNDLE, BUNDLES_UNDER_WAY = 64, 4
START_TIMEOUT_S = 60.0
MANIFEST = f"""
analysis = "{ANALYSIS}"
instrument_models = ["profiler"]

[input]
name = "{INPUT}"
decode = "tensor"
stored_dtype = "float32"
shape = [1, {PROFILE_LENGTH}]

[[outputs]]
name = "{OUTPUT}"
kind = "values"
variables = [{", ".join(f'{{ name = "height_{number}", unit = "m" }}' for number in range(OUTPUT_COUNT))}]
"""


def measure_ours(
    folder: Path, model: bytes, profiles: Floats, expected: Floats, duration_s: float, device: str
) -> dict[str, Figures]:
    """Starts the server, submits the model, measures every load, and ends it.

    Returns:
        By load: "unary" and "lone" (the SDK; 64 callers and 1), "unary_rpc" and "lone_rpc" (plain calls), "bundle".

    Raises:
        BrokenStateError, WrongAnswerError, FieldpostError: It cannot be started, or answers wrongly.
    """
    port = free_port()
    command = [program("fieldpost-server"), "run", "--data-folder", str(folder / "data"), "--workers", "1"]
    command += ["--grpc-address", f"127.0.0.1:{port}"]
    devices = '["cuda:0"]' if device == "cuda" else '["cpu"]'
    tree = ProcessTree(command, folder, {"FIELDPOST_MQTT_URLS": "[]", "FIELDPOST_DEVICES": devices})
    try:
        wait_until(lambda: is_listening(port), tree, START_TIMEOUT_S, "an open port")
        address = f"127.0.0.1:{port}"
        payloads = [profile.tobytes() for profile in profiles]
        with Client(address) as client:
            submitted = client.models.submit(model, manifest=MANIFEST, sample=payloads[0])
            client.models.activate(ANALYSIS, submitted.model.model_version)
            answer = client.predict(ANALYSIS, payloads[0])
            values = np.concatenate([answer[f"height_{number}"] for number in range(OUTPUT_COUNT)])
            check_answer(values.astype(np.float32).tobytes(), expected[:1])
        plan = _Plan(address, payloads, expected, duration_s)
        return {
            "unary": _measure_process(tree, _call_sdk, plan, 64),
            "lone": _measure_process(tree, _call_sdk, plan, 1),
            "unary_rpc": _measure_rpc(tree, port, plan, 64),
            "lone_rpc": _measure_rpc(tree, port, plan, 1),
            "bundle": _measure_process(tree, _call_bundles, plan, BUNDLES_UNDER_WAY),
        }
    finally:
        tree.stop()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a load is made of."""

    address: str
    payloads: list[bytes]
    expected: Floats
    duration_s: float


def _measure_rpc(tree: ProcessTree, port: int, plan: _Plan, callers: int) -> Figures:
    """Plain calls of Predict, each caller on a connection of its own."""

    def exchanges() -> list[GrpcExchange]:
        requests = [pb.PredictRequest(analysis=ANALYSIS, item=_item(payload)) for payload in plan.payloads[:callers]]
        method = "/fieldpost.v1.Inference/Predict"
        return [GrpcExchange(method, each.SerializeToString(), _read_response) for each in requests]

    warm = exchanges()
    run_clients(("127.0.0.1", port), warm, None, WARM_S)
    check_answers(warm, [plan.expected[number : number + 1] for number in range(callers)])
    before = tree.cpu_s()
    load = run_clients(("127.0.0.1", port), exchanges(), None, plan.duration_s)
    return to_figures(load, tree.cpu_s() - before)


_Load = Callable[[_Plan, int, float], Awaitable[list[float]]]


def _measure_process(tree: ProcessTree, load: _Load, plan: _Plan, callers: int) -> Figures:
    """A load by a program of its own, warm before the clock starts."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_load, args=(theirs, load, plan, callers), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()  # warm
        before = tree.cpu_s()
        ours.send(True)
        figures: LoadFigures = ours.recv()
        cpu_s = tree.cpu_s() - before
    except EOFError:
        raise WrongAnswerError("expected answers, but the program that asks ended: see above") from None
    finally:
        ours.close()
        process.join(10)
    return to_figures(figures, cpu_s, BUNDLE if load is _call_bundles else 1)


def _run_load(pipe: Connection, load: _Load, plan: _Plan, callers: int) -> None:
    async def run() -> None:
        await load(plan, callers, WARM_S)
        pipe.send(True)
        pipe.recv()
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        latencies_ms = await load(plan, callers, plan.duration_s)
        took_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        pipe.send(LoadFigures(len(latencies_ms), took_s, latencies_ms, cpu_s))

    asyncio.run(run())


async def _call_sdk(plan: _Plan, callers: int, duration_s: float) -> list[float]:
    """Single requests, as a user's program makes them."""
    took_ms: list[float] = []
    async with AsyncClient(plan.address) as client:
        until_s = time.perf_counter() + duration_s

        async def call(payload: bytes) -> None:
            while (asked_s := time.perf_counter()) < until_s:
                await client.predict(ANALYSIS, payload)
                took_ms.append((time.perf_counter() - asked_s) * 1000)

        await asyncio.gather(*(call(payload) for payload in plan.payloads[:callers]))
    return took_ms


async def _call_bundles(plan: _Plan, callers: int, duration_s: float) -> list[float]:
    """Bundles on streams, one under way on each."""
    items = [_item(payload, number) for number, payload in enumerate(plan.payloads[:BUNDLE])]
    request = pb.PredictStreamRequest(analysis=ANALYSIS, items=items).SerializeToString()
    took_ms: list[float] = []
    async with aio.insecure_channel(plan.address) as channel:
        # The request is serialized already: what is measured is the server.
        method: Any = channel.stream_stream(
            "/fieldpost.v1.Inference/PredictStream", response_deserializer=pb.PredictStreamResponse.FromString
        )
        until_s = time.perf_counter() + duration_s

        async def call() -> None:
            stream = method()
            while (asked_s := time.perf_counter()) < until_s:
                await stream.write(request)
                left = set(range(BUNDLE))
                while left:
                    response = await stream.read()
                    if response is grpc.aio.EOF:
                        raise WrongAnswerError(f"expected answers, but the stream ended: {await stream.details()}")
                    for result in response.results:
                        _check_result(result, plan.expected)
                        left.remove(result.item_id)
                took_ms.append((time.perf_counter() - asked_s) * 1000)
            await stream.done_writing()
            stream.cancel()

        await asyncio.gather(*(call() for _ in range(callers)))
    return took_ms


def _item(payload: bytes, item_id: int = 0) -> pb.PredictItem:
    return pb.PredictItem(
        item_id=item_id,
        payload=payload,
        payload_encoding=PAYLOAD_ENCODING_IDENTITY,
        payload_bytes=len(payload),
    )


def _check_result(result: pb.PredictResult, expected: Floats) -> None:
    """Whether it has all values; the numbers themselves are compared where a test of one is cheap: the first."""
    if result.failure or len(result.variables) != OUTPUT_COUNT:
        raise WrongAnswerError(f"expected {OUTPUT_COUNT} variables, but got: {result}")
    if abs(result.variables[0].values[0] - expected[result.item_id][0]) > 1e-4:
        raise WrongAnswerError(f"expected {expected[result.item_id]}, but got: {result}")


def _read_response(content: bytes) -> bytes:
    variables = pb.PredictResponse.FromString(content).result.variables
    return np.array([value for each in variables for value in each.values], dtype=np.float32).tobytes()
