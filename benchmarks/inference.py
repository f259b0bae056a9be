"""Profiles per second through batcher and worker, next to a bare loop of the same model and batch size.

    python -m benchmarks.inference [--json] [--profiles N] [--rounds N]

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

from benchmarks.report import median, parse_options, percentile, print_report
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import find_analyses, load_analysis
from server.batcher import Batcher
from server.jobs import WorkItem
from server.worker import predict_items
from server.workers import LocalWorker, WorkerEvents

IN_FLIGHT = 1024
LONE_REQUESTS = 500


def make_items(count: int) -> list[WorkItem]:
    """A day's profiles of a simulated CL51, spread over day and night, repeated to the count."""
    instrument = SimulatedCl51(seed=7)
    telegrams = [instrument.telegram(1.75e9 + 86_400 * i / 256) for i in range(256)]
    return [
        WorkItem(each, pb.PAYLOAD_ENCODING_IDENTITY, len(each), "cl51", 1_750_000_000 * 10**9)
        for each in (telegrams[i % len(telegrams)] for i in range(count))
    ]


def bare_loop(pipe: Connection, items: Sequence[WorkItem], batch: int) -> None:
    """A process of its own: the same model over the same batches, and nothing else, each time it is told to."""
    import torch

    torch.set_num_threads(1)
    card = find_analyses()[0]
    analysis = load_analysis(card.name, card.version)
    batches = [list(items[i : i + batch]) for i in range(0, len(items), batch)]
    predict_items(analysis, batches[0])
    while pipe.recv():
        started = time.perf_counter()
        for each in batches:
            predict_items(analysis, each)
        pipe.send(len(items) / (time.perf_counter() - started))


async def through_batcher(batcher: Batcher, items: Sequence[WorkItem]) -> float:
    """Profiles per second with IN_FLIGHT requests waiting at any time, spread over 16 instruments."""
    card = find_analyses()[0]
    room = asyncio.Semaphore(IN_FLIGHT)
    answers = []
    started = time.perf_counter()
    for i, item in enumerate(items):
        await room.acquire()
        answer = batcher.submit(card.name, card.version, item, lane=str(i % 16))
        answer.add_done_callback(lambda _: room.release())
        answers.append(answer)
    await asyncio.gather(*answers)
    return len(items) / (time.perf_counter() - started)


async def lone_requests(batcher: Batcher, items: Sequence[WorkItem]) -> list[float]:
    """Milliseconds of requests that come one after the other."""
    card = find_analyses()[0]
    took = []
    for item in items[:LONE_REQUESTS]:
        started = time.perf_counter()
        await batcher.submit(card.name, card.version, item, lane="a")
        took.append((time.perf_counter() - started) * 1000)
    return took


async def measure(profiles: int, rounds: int) -> dict[str, object]:
    """Runs everything."""
    items = make_items(profiles)
    card = find_analyses()[0]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    bare = context.Process(target=bare_loop, args=(theirs, items, card.max_batch), daemon=True)
    bare.start()

    def start_worker(events: WorkerEvents) -> LocalWorker:
        return LocalWorker(1, events)

    batcher = Batcher([card], [start_worker])
    try:
        await through_batcher(batcher, items[:256])  # both have loaded their model now
        batched, looped = [], []
        for _ in range(rounds):
            ours.send(True)
            looped.append(await asyncio.to_thread(ours.recv))
            batched.append(await through_batcher(batcher, items))
        ours.send(False)
        lone = await lone_requests(batcher, items)
    finally:
        batcher.close()
    return {
        "analysis": f"{card.name}@{card.version}",
        "batch": card.max_batch,
        "profiles_per_s": median(batched),
        "bare_loop_per_s": median(looped),
        "ratio_to_bare_loop": median([a / b for a, b in zip(batched, looped, strict=True)]),
        "lone_p50_ms": percentile(lone, 50),
        "lone_p99_ms": percentile(lone, 99),
    }


def main() -> None:
    """Runs the command line."""
    options = parse_options(__doc__, profiles=8192, rounds=5)
    print_report(asyncio.run(measure(options.profiles, options.rounds)), as_json=options.json)


if __name__ == "__main__":
    main()
