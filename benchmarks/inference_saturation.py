"""A built-in model, the wavelets, through batcher and worker, next to a bare loop of the same model and batch size.

Both do the same work: telegram in, prediction out, with one thread, batches of the same size, in a process of its own.
The bare loop has nothing else around it: no queue, no pipe, no event loop. The rounds alternate, so that a machine
that slows down slows both; the ratio is the median over pairs. A lone request is one with nobody else there.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from benchmarks.inference_servers import Figures
from benchmarks.report import median, percentile
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import AnalysisCard, find_analyses, load_analysis
from server.analyses.boundary_layer import NAME, WAVELET
from server.batching.batcher import Batcher
from server.models.card import ModelCard, ModelKind, ModelState, Trial
from server.workers.jobs import ModelKey, ModelPackage, WorkItem
from server.workers.worker import predict_items
from server.workers.worker_pool import PoolPlan, open_pool

IN_FLIGHT = 1024
LONE_REQUESTS = 500
LANES = 16


def make_items(count: int) -> list[WorkItem]:
    """A day's profiles of a simulated CL51, spread over day and night, repeated to the count."""
    instrument = SimulatedCl51(seed=7)
    telegrams = [instrument.telegram(1.75e9 + 86_400 * i / 256) for i in range(256)]
    return [
        WorkItem(each, pb.PAYLOAD_ENCODING_IDENTITY, len(each), "cl51", 1_750_000_000 * 10**9)
        for each in (telegrams[i % len(telegrams)] for i in range(count))
    ]


async def measure_saturation(profiles: int, rounds: int, device: str) -> Figures:
    """Batcher and bare loop in turns."""
    items = make_items(profiles)
    card = find_card(WAVELET)
    key = ModelKey(card.name, card.version)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    bare = context.Process(target=_bare_loop, args=(theirs, card, items, device), daemon=True)
    bare.start()
    theirs.close()
    batcher = Batcher(open_pool("local", PoolPlan(workers=1, devices=("cuda:0" if device == "cuda" else "cpu",))))
    try:
        batcher.add_model(ModelPackage(key), make_model_card(key, card))
        await _through_batcher(batcher, key, items[:256])  # both have loaded their model now
        batched, looped = [], []
        for _ in range(rounds):
            ours.send(True)
            looped.append(await asyncio.to_thread(ours.recv))
            batched.append(await _through_batcher(batcher, key, items))
        lone = await _lone_requests(batcher, key, items)
    finally:
        ours.close()
        batcher.close()
        bare.join(10)
    return {
        "analysis": str(key),
        "batch": card.max_batch,
        "profiles_per_s": median(batched),
        "bare_loop_per_s": median(looped),
        "ratio_to_bare_loop": median([a / b for a, b in zip(batched, looped, strict=True)]),
        "lone_p50_ms": percentile(lone, 50),
        "lone_p99_ms": percentile(lone, 99),
    }


def find_card(version: int) -> AnalysisCard:
    """A version of the boundary-layer heights."""
    return next(each for each in find_analyses() if (each.name, each.version) == (NAME, version))


def make_model_card(key: ModelKey, card: AnalysisCard) -> ModelCard:
    """The same as the batcher wants it, at work."""
    trial = Trial(max_batch_count=card.max_batch)
    return ModelCard(0, key, ModelState.ACTIVE, ModelKind.BUILT_IN, card.instrument_models, trial=trial)


def _bare_loop(pipe: Connection, card: AnalysisCard, items: Sequence[WorkItem], device: str) -> None:
    """A process of its own: the same model over the same batches, and nothing else, each time it is told to."""
    import torch

    torch.set_num_threads(1)
    analysis = load_analysis(card.name, card.version)
    move = getattr(analysis, "to", None)
    if device == "cuda" and move is not None:
        move("cuda:0")
    batches = [list(items[i : i + card.max_batch]) for i in range(0, len(items), card.max_batch)]
    predict_items(analysis, batches[0])
    try:
        while pipe.recv():
            started = time.perf_counter()
            for each in batches:
                predict_items(analysis, each)
            pipe.send(len(items) / (time.perf_counter() - started))
    except EOFError:
        return


async def _through_batcher(batcher: Batcher, key: ModelKey, items: Sequence[WorkItem]) -> float:
    """Profiles per second with IN_FLIGHT requests waiting at any time."""
    room = asyncio.Semaphore(IN_FLIGHT)
    answers = []
    started = time.perf_counter()
    for i, item in enumerate(items):
        await room.acquire()
        answer = batcher.submit(key, item, lane=str(i % LANES))
        answer.add_done_callback(lambda _: room.release())
        answers.append(answer)
    await asyncio.gather(*answers)
    return len(items) / (time.perf_counter() - started)


async def _lone_requests(batcher: Batcher, key: ModelKey, items: Sequence[WorkItem]) -> list[float]:
    """Milliseconds of requests that come one after the other."""
    took = []
    for item in items[:LONE_REQUESTS]:
        started = time.perf_counter()
        await batcher.submit(key, item, lane="a")
        took.append((time.perf_counter() - started) * 1000)
    return took
