"""A life of a server in one process: takes bundles, says each receipt, predicts, and ends when all is predicted.

Store, ingest, batcher and predicting are the server's own; the worker computes in the event loop, so that a life costs
no start of a process. The waits between tries are shortened. Knows no fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from server_support import make_observation, open_store
from worker_support import InProcessPool, pool_of

from fieldpost.errors import TryAgainError
from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import find_analyses
from server.batching.batcher import Batcher
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.models import catalogue
from server.models.files import ModelFiles
from server.prediction import answers, dispatcher, predicting, settled, streams
from server.storage.store import Store

INSTRUMENTS = ("cl31", "cl51", "chm15k")
LIVE_INSTRUMENT = "chm15k"
"""What it measures is fresh when it is sent; what the others measured is of last year."""
COUNT = 42
BUNDLE_COUNT = 3
IN_FLIGHT_MAX = 4
POISON, DEADLY = 11, 29
"""The model breaks on the one, and the worker dies of the other."""
LIFE_S = 30.0
PREDICTED = "SELECT observation_id, measure_unix_nanos, is_failure FROM prediction ORDER BY id"
HELD = (
    "SELECT observation.id, sequence, sha256, segment.name, segment_offset, stored_bytes FROM observation "
    "JOIN segment ON segment.id = segment_id ORDER BY observation.id"
)


def content_of(sequence: int) -> bytes:
    """What was measured; no two are of the same length."""
    if sequence in (POISON, DEADLY):
        return b"poison" if sequence == POISON else b"deadly"
    return hashlib.sha256(b"%d" % sequence).digest() * 3 + bytes(sequence)


def instrument_of(sequence: int) -> str:
    """Who measured it."""
    return INSTRUMENTS[sequence % len(INSTRUMENTS)]


def observation(sequence: int, now_unix_nanos: int) -> pb.Observation:
    """The observation as its station sends it, now and every other time."""
    made = make_observation(sequence, content_of(sequence), instrument=instrument_of(sequence))
    if instrument_of(sequence) == LIVE_INSTRUMENT:
        made.header.capture_clock.wall_time.FromNanoseconds(now_unix_nanos)
    return made


def start(folder: Path) -> tuple[Store, ModelFiles]:
    """What a server opens before it takes anything.

    Raises:
        FieldpostError, OSError: It cannot.
    """
    store = open_store(folder, instruments=INSTRUMENTS)
    cards = [card for card in find_analyses() if card.version == 1]  # one that does not remember
    store.write(lambda connection: catalogue.register_built_in(connection, cards)).result()
    return store, ModelFiles(folder / "models")


def live(folder: Path, store: Store, files: ModelFiles, sequences: list[int], say: Callable[[str], None]) -> None:
    """Lives until everything is predicted, and ends in order.

    Args:
        folder: The server's data folder.
        store: As start() opened it.
        files: The same.
        sequences: What its station sends: what has no receipt yet.
        say: Told "receipt" and its sequences.

    Raises:
        TimeoutError: Something was not predicted.
    """
    answers.RETRY_WAIT_S = dispatcher.RETRY_WAIT_S = predicting.RETRY_WAIT_MIN_S = settled.SETTLE_EVERY_S = 0.03
    streams.BACKLOG_WAIT_S = 0.01
    streams.LOOK_AGAIN_S = predicting.LOOK_AGAIN_S = 0.2
    asyncio.run(_serve(folder, store, files, sequences, say))
    store.close()


async def _serve(
    folder: Path, store: Store, files: ModelFiles, sequences: list[int], say: Callable[[str], None]
) -> None:
    stored, predicted, changed = Broadcast(), Broadcast(), Broadcast()
    pools: list[InProcessPool] = []
    batcher = Batcher(pool_of(pools))
    ingest = Ingest(store, payload_bytes_max=1 << 20, on_stored=stored.tell_from_thread)
    work = predicting.Predicting(store, batcher, files, stored=stored, predicted=predicted, models_changed=changed)
    running = asyncio.create_task(work.run())
    try:
        async with asyncio.timeout(LIFE_S):
            await _send(ingest, sequences, say)
            while len(_rows(folder, PREDICTED)) < COUNT:
                await asyncio.sleep(0.01)
            await asyncio.sleep(2 * settled.SETTLE_EVERY_S)  # the settled mark moves up once more
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        batcher.close()
        ingest.close()


async def _send(ingest: Ingest, sequences: list[int], say: Callable[[str], None]) -> None:
    """As a station does: some bundles on the way at once; what has no receipt goes again."""
    now_unix_nanos = time.time_ns()
    room = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def send(part: list[int]) -> None:
        bundle = pb.Bundle(observations=[observation(each, now_unix_nanos) for each in part])
        while True:
            try:
                async with room:
                    receipt = await asyncio.wrap_future(ingest.submit(bundle))
                break
            except TryAgainError:
                await asyncio.sleep(0.01)
        held = [number for each in receipt.held_ranges for number in range(each.first_sequence, each.last_sequence + 1)]
        assert held == part and not receipt.rejections, receipt
        say("receipt " + " ".join(map(str, held)))

    parts = [sequences[start : start + BUNDLE_COUNT] for start in range(0, len(sequences), BUNDLE_COUNT)]
    await asyncio.gather(*map(send, parts))


def hold(folder: Path) -> None:
    """Holds what a server that has ended left in its data folder to what a server promises."""
    rows = _rows(folder, HELD)
    sequences = {observation_id: sequence for observation_id, sequence, *_ in rows}
    assert sorted(sequences.values()) == list(range(1, COUNT + 1)), f"held: {sorted(sequences.values())}"
    for _, sequence, sha256, segment, offset, length in rows:
        record = (folder / "segments" / segment).read_bytes()[offset : offset + length]
        content = decode_checked(pb.Observation.FromString(record))
        assert content == content_of(sequence) and hashlib.sha256(content).digest() == sha256, f"bytes of {sequence}"
    predictions = _rows(folder, PREDICTED)
    times = Counter(observation_id for observation_id, *_ in predictions)
    assert set(times) == set(sequences) and set(times.values()) == {1}, f"predicted: {times}"
    order: dict[str, list[int]] = defaultdict(list)
    for observation_id, answer, is_failure in predictions:
        sequence = sequences[observation_id]
        if sequence in (POISON, DEADLY):
            assert is_failure, f"{sequence} was predicted"
        else:
            assert (bool(is_failure), answer) == (False, len(content_of(sequence))), f"{sequence} has another's answer"
        order[instrument_of(sequence)].append(observation_id)
    for instrument, ids in order.items():
        assert ids == sorted(ids), f"the order of {instrument}: {ids}"


def _rows(folder: Path, query: str) -> list[tuple]:
    """Read beside the server, as anybody could."""
    with closing(sqlite3.connect(f"file:{folder / 'fieldpost.db'}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(query).fetchall()
