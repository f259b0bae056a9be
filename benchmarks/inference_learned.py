"""The learned heights through batcher and worker, as the server asks for them: stretch by stretch, with a memory each.

Live is one observation of each of many instruments at a time, as they come; backlog is stretches of one instrument as
long as they are asked. Telegrams in, predictions out, with one thread. Knows no store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.inference_saturation import find_card, make_model_card
from benchmarks.inference_servers import Figures
from benchmarks.report import median
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from server.analyses.boundary_layer import LEARNED, course_start
from server.batching.batcher import Batcher
from server.batching.policy import Priority
from server.prediction.course_looks import STRETCH_MAX
from server.prediction.stretches import BACKLOG_MAX
from server.workers.jobs import ModelKey, ModelPackage, WorkItem, WorkStretch
from server.workers.worker_pool import PoolPlan, open_pool

EVERY_S = 15
LIVE_INSTRUMENTS = 128
LIVE_TURNS = 20
"""Five minutes: each instrument comes to the end of one step of its memory."""
NANOS = 10**9


def make_course(count: int) -> list[WorkItem]:
    """What one simulated CL51 measures from the start of a course on."""
    instrument = SimulatedCl51(seed=7)
    start_nanos = course_start(LEARNED, 1_750_000_000 * NANOS, None)
    assert start_nanos is not None
    items = []
    for at_nanos in range(start_nanos, start_nanos + count * EVERY_S * NANOS, EVERY_S * NANOS):
        content = instrument.telegram(at_nanos / NANOS)
        items.append(WorkItem(content, pb.PAYLOAD_ENCODING_IDENTITY, len(content), "cl51", at_nanos))
    return items


async def measure_learned(rounds: int, device: str) -> Figures:
    """Live and backlog in turns; medians over rounds."""
    card = find_card(LEARNED)
    key = ModelKey(card.name, card.version)
    batcher = Batcher(open_pool("local", PoolPlan(workers=1, devices=("cuda:0" if device == "cuda" else "cpu",))))
    course = make_course(STRETCH_MAX)
    ones = [(each,) for each in course[:LIVE_TURNS]]
    try:
        batcher.add_model(ModelPackage(key), make_model_card(key, card))
        await _follow(batcher, key, [tuple(course)], 1, Priority.BACKFILL)  # it has loaded its model now
        live, backlog = [], []
        for _ in range(rounds):
            live.append(await _follow(batcher, key, ones, LIVE_INSTRUMENTS, Priority.LIVE))
            backlog.append(await _follow(batcher, key, [tuple(course)], BACKLOG_MAX, Priority.BACKFILL))
    finally:
        batcher.close()
    return {"learned_profiles_per_s": median(live), "learned_backlog_profiles_per_s": median(backlog)}


async def _follow(
    batcher: Batcher, key: ModelKey, turns: Sequence[tuple[WorkItem, ...]], instruments: int, priority: Priority
) -> float:
    """Profiles per second, of so many instruments that each take these turns, one after the other."""

    async def follow(lane: str) -> None:
        state = b""
        for items in turns:
            answer = await batcher.follow(key, WorkStretch(state, items), lane=lane, priority=priority)
            failures = [each for each in answer.results if isinstance(each, str)]
            assert not failures, failures[0]
            state = answer.state

    started_s = time.perf_counter()
    await asyncio.gather(*(follow(str(number)) for number in range(instruments)))
    return instruments * sum(map(len, turns)) / (time.perf_counter() - started_s)
