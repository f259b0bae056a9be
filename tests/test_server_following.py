"""A version that remembers is followed through each course; what stands in the end depends on no order of arrival."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import chain_analysis
import pytest
from chain_analysis import CHAIN, COURSE_NANOS, COURSE_START, Chain
from chain_support import (
    Following,
    course_before_now,
    expect,
    measured_at,
    observe,
    payload_of,
    prune_sequences,
    run,
    stop,
    to_message,
)
from following_support import SITE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_support import open_store
from sqlalchemy import select, update

import server.analyses
from fieldpost.v1 import receipt_pb2
from server.analyses import AnalysisInput, Stretch
from server.batching.batcher import Batcher
from server.batching.policy import Priority
from server.broadcast import Broadcast
from server.models import catalogue
from server.models.card import ModelState
from server.models.files import ModelFiles
from server.prediction import course as course_module
from server.prediction import course_looks as course_looks_module
from server.prediction import following as following_module
from server.prediction import settled as settled_module
from server.prediction import streams as streams_module
from server.prediction.predicting import Predicting
from server.queries.predictions import PredictionFilter, encode_result, retry_failures
from server.storage.tables import epochs, observations, predictions
from server.workers.protocol import WorkerKind
from server.workers.worker_pool import PoolPlan, open_pool


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits of seconds are of milliseconds here."""
    monkeypatch.setattr(following_module, "EXAMINE_EVERY_S", 0.03)
    monkeypatch.setattr(streams_module, "BACKLOG_WAIT_S", 0.002)
    monkeypatch.setattr(streams_module, "LOOK_AGAIN_S", 0.1)
    yield


def test_a_course_that_comes_in_order_is_final_at_once_and_as_a_fold_says(tmp_path: Path, database_url: str) -> None:
    async def scenario(following: Following) -> None:
        task = await following.start()
        held = [observe(each) for each in range(1, 26)]
        for each in held:
            await following.send(each)
            await following.until(lambda: len(following.rows()) == each.header.sequence)  # noqa: B023
        rows = following.rows()
        assert [sequence for sequence, *_ in rows] == list(range(1, 26))
        assert not any(is_provisional for _, _, is_provisional, _ in rows)
        assert following.answers() == expect(held)
        assert [number for *_, number in rows] == list(range(1, 26))  # nothing was written twice
        await stop(task)

    run(tmp_path, scenario, database_url=database_url)


KINDS = st.sampled_from(["fine"] * 8 + ["poison", "unreadable", "untold"])


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[tuple[int, str, str, bool]], list[list[int]], list[str]]:
    """What there is (sequence, instrument, kind, whether the station loses it), how it comes, what else happens."""
    count = draw(st.integers(2, 26))
    there = [
        (sequence, draw(st.sampled_from(["cl51", "cl51", "cl31"])), draw(KINDS), draw(st.integers(0, 11)) == 0)
        for sequence in range(1, count + 1)
    ]
    held = [sequence for sequence, _, _, is_lost in there if not is_lost]
    order = draw(st.permutations(held))
    bundles, rest = [], list(order)
    while rest:
        size = draw(st.integers(1, 8))
        bundles.append(rest[:size])
        rest = rest[size:]
    events = [draw(st.sampled_from(["", "", "breathe", "finish", "restart", "forget"])) for _ in bundles]
    return there, bundles, events


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(arrived=arrivals(), is_fresh=st.booleans())
def test_what_stands_in_the_end_depends_on_what_is_held_and_on_no_order_of_arrival(
    monkeypatch: pytest.MonkeyPatch,
    arrived: tuple[list[tuple[int, str, str, bool]], list[list[int]], list[str]],
    is_fresh: bool,
) -> None:
    there, bundles, events = arrived
    monkeypatch.setattr(course_module, "PATIENCE_NANOS", 80_000_000)
    base = course_before_now() - COURSE_NANOS if is_fresh else COURSE_START
    sent = {
        sequence: observe(
            sequence,
            said="fine" if kind == "untold" else kind,
            instrument=instrument,
            base_nanos=base,
            is_untold=kind == "untold",
            delay_nanos=7 * 10**9,
        )
        for sequence, instrument, kind, is_lost in there
        if not is_lost
    }

    async def scenario(following: Following) -> None:
        models = frozenset({"cl51", "cl31"})
        task = await following.start(instrument_models=models)
        count = 0
        for bundle, event in zip(bundles, events, strict=True):
            await following.send(*(sent[each] for each in bundle))
            count += len(bundle)
            if event == "breathe":
                await asyncio.sleep(0.01)
            elif event == "finish":
                held = [sent[each] for one in bundles for each in one][:count]
                assert await following.until_final(count) == expect(held)
            elif event:
                await stop(task)
                if event == "forget":
                    await following.write(following.forget_states)
                task = await following.start(instrument_models=models)
        assert await following.until_final(len(sent)) == expect(list(sent.values()))
        await stop(task)

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), scenario, instruments=("cl51", "cl31"))


def test_what_comes_after_a_gap_is_provisional_until_the_gap_is_closed_and_gets_a_new_number_then(
    tmp_path: Path, database_url: str
) -> None:
    async def scenario(following: Following) -> None:
        base = course_before_now()
        held = {each: observe(each, base_nanos=base) for each in range(1, 9)}
        task = await following.start()
        await following.send(held[1], held[2])
        await following.until_final(2)
        await following.send(held[5], held[6])
        await following.until(lambda: len(following.rows()) == 4)
        assert [row[2] for row in following.rows()] == [False, False, True, True]
        assert following.answers() == expect([held[each] for each in (1, 2, 5, 6)])
        await following.send(held[3])  # late, while something is missing still: it waits
        await asyncio.sleep(0.2)
        assert sorted(following.answers()) == [1, 2, 5, 6]
        before = {sequence: number for sequence, _, _, number in following.rows()}
        await following.send(held[4], held[7], held[8])
        assert await following.until_final(8) == expect(list(held.values()))
        after = {sequence: number for sequence, _, _, number in following.rows()}
        assert (after[1], after[2]) == (before[1], before[2])  # what was final before the gap stands
        assert min(after[each] for each in range(3, 9)) > max(before.values())
        assert following.state()["is_complete"]  # type: ignore[index]
        await stop(task)

    run(tmp_path, scenario, database_url=database_url)


def test_a_gap_of_another_instrument_of_the_station_keeps_what_follows_provisional_for_it_may_be_ours(
    tmp_path: Path,
) -> None:
    async def scenario(following: Following) -> None:
        base = course_before_now()
        task = await following.start()
        await following.send(observe(1, base_nanos=base), observe(3, base_nanos=base))
        await following.until(lambda: [row[2] for row in following.rows()] == [False, True])
        await following.send(observe(2, base_nanos=base, instrument="cl31"))
        await following.until_final(2)
        await stop(task)

    run(tmp_path, scenario, instruments=("cl51", "cl31"))


def test_what_never_comes_is_not_waited_for_for_ever_and_where_it_comes_yet_all_after_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(following: Following) -> None:
        base = course_before_now()
        held = {each: observe(each, base_nanos=base) for each in range(1, 4)}
        task = await following.start()
        await following.send(held[1], held[3])
        await following.until(lambda: [row[2] for row in following.rows()] == [False, True])
        monkeypatch.setattr(course_module, "PATIENCE_NANOS", -(10**12))  # an age has passed
        assert await following.until_final(2) == expect([held[1], held[3]])
        await following.send(held[2])
        assert await following.until_final(3) == expect([held[1], held[2], held[3]])
        await stop(task)

    run(tmp_path, scenario)


def test_what_the_station_no_longer_has_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario(following: Following) -> None:
        base = course_before_now()
        held = [observe(each, base_nanos=base) for each in (1, 3)]
        await following.send(*held)
        lost = receipt_pb2.Receipt(held_ranges=[receipt_pb2.SequenceRange(first_sequence=2, last_sequence=2)])
        content = lost.SerializeToString()
        await following.write(lambda connection: connection.execute(update(epochs).values(lost_ranges=content)))
        task = await following.start()
        assert await following.until_final(2) == expect(held)
        await stop(task)

    run(tmp_path, scenario)


def test_a_station_whose_clock_is_ahead_has_no_gap_waited_for_until_that_time_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course_module, "PATIENCE_NANOS", 200_000_000)

    async def scenario(following: Following) -> None:
        held = {each: observe(each, base_nanos=course_before_now() + 100 * COURSE_NANOS) for each in range(1, 8)}
        task = await following.start()
        await following.send(held[1], held[3])
        await following.until(lambda: [row[2] for row in following.rows()] == [False, True])
        assert await following.until_final(2) == expect([held[1], held[3]])
        await following.send(held[5])  # a newer gap is waited for as the first one was, and no longer
        await following.until(lambda: [row[2] for row in following.rows()] == [False, False, True])
        assert await following.until_final(3) == expect([held[1], held[3], held[5]])
        await following.send(held[2], held[4], held[6], held[7])
        assert await following.until_final(7) == expect(list(held.values()))
        await stop(task)

    run(tmp_path, scenario)


def test_a_clock_that_was_set_back_between_two_gaps_has_the_course_followed_once_and_not_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course_looks_module, "STRETCH_MAX", 1)

    async def scenario(following: Following) -> None:
        hour = 3600 * 10**9
        base = course_before_now() - 3 * hour
        held = {each: observe(each, base_nanos=base, delay_nanos=3 * hour if each == 3 else 1) for each in range(1, 6)}
        task = await following.start()
        await following.send(held[1], held[3], held[5])
        await following.until(lambda: [row[2] for row in following.rows()] == [False, True, True])
        await asyncio.sleep(0.2)
        assert following.batcher.counts.observations == 3
        await following.send(held[2], held[4])
        assert await following.until_final(5) == expect(list(held.values()))
        await stop(task)

    run(tmp_path, scenario)


def test_what_is_fresh_does_not_wait_while_the_course_is_followed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course_looks_module, "STRETCH_MAX", 1)

    async def scenario(following: Following) -> None:
        held = {each: observe(each, base_nanos=course_before_now()) for each in range(1, 10)}
        task = await following.start()
        await following.send(*(held[each] for each in range(2, 9)))
        await following.until(lambda: len(following.rows()) == 7)
        following.pool.workers[0].delay_s = 0.1
        await following.send(held[1])  # seven steps of 0.1 s
        await asyncio.sleep(0.15)
        await following.send(held[9])
        await following.until(lambda: 9 in following.answers())
        provisional = {sequence for sequence, _, is_provisional, _ in following.rows() if is_provisional}
        assert 9 in provisional and 8 in provisional  # it was told before those were made again
        following.pool.workers[0].delay_s = 0.0
        assert await following.until_final(9) == expect(list(held.values()))
        await stop(task)

    run(tmp_path, scenario)


def test_an_end_in_the_midst_of_following_anew_is_taken_up_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course_looks_module, "STRETCH_MAX", 1)

    async def scenario(following: Following) -> None:
        held = [observe(each) for each in range(1, 9)]
        task = await following.start()
        await following.send(*held[1:])
        await following.until_final(7)
        wrong = following.answers()
        following.pool.workers[0].delay_s = 0.1
        await following.send(held[0])
        await following.until(lambda: following.answers().get(3) == expect(held)[3])
        await stop(task)
        left = {sequence: is_provisional for sequence, _, is_provisional, _ in following.rows()}
        assert left[8] and following.answers()[8] == wrong[8]  # what is not made again yet says so
        following.pool.workers[0].delay_s = 0.0
        task = await following.start()
        assert await following.until_final(8) == expect(held)
        await stop(task)

    run(tmp_path, scenario)


def test_a_start_repeats_nothing_and_goes_on_from_the_state_that_is_stored(tmp_path: Path) -> None:
    async def scenario(following: Following) -> None:
        held = [observe(each) for each in range(1, 8)]
        task = await following.start()
        await following.send(*held[:4])
        await following.until_final(4)
        await stop(task)
        asked = following.batcher.counts.observations
        await following.send(*held[4:])
        task = await following.start()
        assert await following.until_final(7) == expect(held)
        assert following.batcher.counts.observations - asked == 3
        await stop(task)

    run(tmp_path, scenario)


def test_one_observation_that_breaks_the_model_has_its_failure_and_a_retry_makes_all_after_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.02)

    async def scenario(following: Following) -> None:
        held = [observe(each, said="poison" if each == 4 else "fine") for each in range(1, 9)]
        await following.send(*held)
        task = await following.start()
        answers = await following.until_final(8)
        assert answers == expect(held)
        assert to_message(answers[4]).failure == "poisoned"
        await following.until(lambda: following.settled() == 8)
        monkeypatch.setattr(chain_analysis, "POISON", b"something else")  # it is mended
        mended = expect(held)
        assert mended[4] != answers[4] and mended[5] != answers[5]
        wanted = PredictionFilter(analysis="chain")
        assert await following.write(lambda connection: retry_failures(connection, wanted)) == 1
        await following.until(lambda: following.answers() == mended)
        assert await following.until_final(8) == mended
        await stop(task)

    run(tmp_path, scenario)


def test_a_file_that_turns_out_to_be_of_the_course_before_is_followed_there(tmp_path: Path) -> None:
    async def scenario(following: Following) -> None:
        hour = COURSE_NANOS // 4  # from the first instant to the capture; the third file begins before the course ends
        files = [
            observe(each, measured_at=COURSE_START + each * hour, is_untold=True, delay_nanos=hour + 1)
            for each in range(1, 7)
        ]
        task = await following.start()
        for each in files:
            await following.send(each)
            await following.until_final(each.header.sequence)
        assert following.answers() == expect(files)
        with following.store.read() as connection:
            query = select(observations.c.measure_unix_nanos).order_by(observations.c.sequence)
            assert list(connection.scalars(query)) == [COURSE_START + each * hour for each in range(1, 7)]
        await stop(task)

    run(tmp_path, scenario)


def test_what_comes_after_a_file_that_is_of_the_course_before_is_followed_although_nothing_new_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course_looks_module, "STRETCH_MAX", 1)
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.02)

    async def scenario(following: Following) -> None:
        hour = COURSE_NANOS // 4
        files = [
            observe(each, measured_at=COURSE_START + each * hour, is_untold=True, delay_nanos=hour + 1)
            for each in range(1, 7)
        ]
        await following.send(*files)
        task = await following.start()
        assert await following.until_final(6) == expect(files)
        await following.until(lambda: following.settled() == 6)
        await stop(task)

    run(tmp_path, scenario)


@pytest.mark.parametrize("stretch_max", [1, 64])
def test_what_a_station_captured_again_in_a_new_life_of_its_buffer_is_followed_beside_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch_max: int
) -> None:
    monkeypatch.setattr(course_looks_module, "STRETCH_MAX", stretch_max)

    async def scenario(following: Following) -> None:
        lives = []
        for delay_nanos in (1, 2, 3):
            lives.append([observe(each, delay_nanos=delay_nanos) for each in range(1, 5)])
            for each in lives[-1]:
                each.header.epoch = f"{9 - delay_nanos}" * 32
        payloads = [AnalysisInput(payload_of(each), "cl51", measured_at(each)) for each in lives[0] for _ in lives]
        results = Chain().follow([Stretch(b"", payloads)])[0].results
        await following.send(*lives[1])
        task = await following.start()
        await following.until_final(4)
        await following.send(*lives[2])
        await following.send(*lives[0])
        await following.until_final(12)
        query = select(predictions.c.content).join(observations, observations.c.id == predictions.c.observation_id)
        in_order = query.order_by(observations.c.sequence, observations.c.capture_unix_nanos)
        with following.store.read() as connection:
            assert list(connection.scalars(in_order)) == [encode_result(each) for each in results]
        await stop(task)

    run(tmp_path, scenario)


def test_a_payload_that_is_lost_on_disk_waits_and_the_others_are_followed(tmp_path: Path) -> None:
    async def scenario(following: Following) -> None:
        held = [observe(each) for each in range(1, 6)]
        await following.send(*held)
        lose = update(observations).where(observations.c.sequence == 3).values(segment_offset=1 << 40)
        await following.write(lambda connection: connection.execute(lose))
        task = await following.start()
        assert await following.until_final(4) == expect([each for each in held if each.header.sequence != 3])
        await stop(task)

    run(tmp_path, scenario)


def test_where_observations_of_a_course_were_let_go_what_stands_stays(tmp_path: Path) -> None:
    async def scenario(following: Following) -> None:
        held = [observe(each) for each in range(1, 9) if each != 6]
        task = await following.start()
        await following.send(*held)
        before = await following.until_final(7)
        await stop(task)
        await following.write(lambda connection: prune_sequences(connection, [1, 2]))
        task = await following.start()
        await following.send(observe(6))
        after = await following.until_final(6)
        assert {each: after[each] for each in (3, 4, 5, 7, 8)} == {each: before[each] for each in (3, 4, 5, 7, 8)}
        assert not to_message(after[6]).failure
        await stop(task)

    run(tmp_path, scenario)


def test_nothing_provisional_is_settled_and_what_becomes_so_sets_the_mark_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.02)

    async def scenario(following: Following) -> None:
        base = course_before_now()
        held = {each: observe(each, base_nanos=base) for each in range(1, 8)}
        task = await following.start()
        await following.send(held[1], held[2])
        await following.until(lambda: following.settled() == 2)
        await following.send(held[4], held[5])
        await following.until(lambda: len(following.rows()) == 4)
        await asyncio.sleep(0.1)
        assert following.settled() == 2
        await following.send(held[3])
        await following.until_final(5)
        await following.until(lambda: following.settled() == 5)
        await stop(task)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("state", "is_fresh", "expected"),
    [
        (ModelState.ACTIVE, True, Priority.LIVE),
        (ModelState.ACTIVE, False, Priority.BACKFILL),
        (ModelState.SHADOW, True, Priority.SHADOW),
    ],
)
def test_what_goes_first_depends_on_the_state_and_on_how_fresh_it_is(
    tmp_path: Path, state: ModelState, is_fresh: bool, expected: Priority
) -> None:
    async def scenario(following: Following) -> None:
        following.pool.need(WorkerKind.BUILT_IN)
        following.pool.workers[0].is_away = True
        task = await following.start(state=state)
        await asyncio.sleep(0.05)  # the mark is set: what comes now is after it
        await following.send(observe(1, base_nanos=course_before_now() if is_fresh else COURSE_START))
        while not any(counts := following.batcher.queues()[0][1:4]):
            await asyncio.sleep(0.01)
        assert counts == tuple(int(each == expected) for each in Priority)
        await stop(task)
        await asyncio.sleep(0)
        assert following.batcher.queues()[0][1:4] == (0, 0, 0)  # what nobody would store leaves the queue

    run(tmp_path, scenario)


def test_many_past_courses_are_each_followed_from_their_start(tmp_path: Path) -> None:
    async def scenario(following: Following) -> None:
        held = [observe(each, instrument="cl51" if each % 3 else "cl31") for each in range(1, 301)]
        await following.send(*held)
        task = await following.start(instrument_models=frozenset({"cl51", "cl31"}))
        assert await following.until_final(300) == expect(held)
        assert {len({item.payload for item in job.items}) for job in following.pool.workers[0].jobs} != {1}
        await stop(task)

    run(tmp_path, scenario, instruments=("cl51", "cl31"))


def test_the_server_follows_a_version_that_remembers_with_workers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / CHAIN.analysis
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from chain_analysis import *\n")
    (package.parent / "sitecustomize.py").write_text(SITE.format(folder=str(package.parent)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), str(Path(__file__).parent)]))
    monkeypatch.setattr(server.analyses, "__path__", [*server.analyses.__path__, str(package.parent)])
    catalogue._built_in.cache_clear()
    held = [observe(each, said="poison" if each == 14 else "fine") for each in range(1, 26)]
    held += [observe(each, instrument="cl31") for each in range(26, 40)]

    async def main() -> None:
        store = open_store(tmp_path, instruments=("cl51", "cl31"))
        following = Following(store)
        batcher = Batcher(open_pool("local", PoolPlan(workers=1)))
        cards = [card for card in server.analyses.find_analyses() if card.name == CHAIN.analysis]
        await following.write(lambda connection: catalogue.register_built_in(connection, cards))
        told = {"stored": following.stored, "predicted": following.predicted, "models_changed": Broadcast()}
        task = asyncio.create_task(Predicting(store, batcher, ModelFiles(tmp_path / "models"), **told).run())
        try:
            await following.send(*held[1:])
            await following.until_final(len(held) - 1)
            await following.send(held[0])
            answers = await following.until_final(len(held))
            wanted = expect(held)
            assert to_message(answers.pop(14)).failure.endswith(to_message(wanted.pop(14)).failure)
            assert answers == wanted
            await stop(task)
        finally:
            batcher.close()
            following.batcher.close()
            following.ingest.close()
            store.close()

    try:
        asyncio.run(main())
    finally:
        catalogue._built_in.cache_clear()
        sys.modules.pop(f"server.analyses.{CHAIN.analysis}", None)
