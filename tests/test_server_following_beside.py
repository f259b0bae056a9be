"""Following goes on beside others: a database that goes, a second who follows, who looks after it, who restricts it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain_analysis import CHAIN
from chain_support import Following, course_before_now, expect, observe, run, stop

from fieldpost.errors import TryAgainError
from fieldpost.v1 import observation_pb2 as pb
from server.models import catalogue
from server.models.card import Restriction
from server.operation.doctor import examine
from server.operation.readings import read_predictions
from server.prediction import course_looks as course_looks_module
from server.prediction import following as following_module
from server.prediction import settled as settled_module
from server.prediction import streams as streams_module
from server.prediction import stretches as stretches_module
from server.settings import Settings
from server.workers.protocol import WorkerKind


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits of seconds are of milliseconds here."""
    monkeypatch.setattr(following_module, "EXAMINE_EVERY_S", 0.03)
    monkeypatch.setattr(streams_module, "BACKLOG_WAIT_S", 0.002)
    monkeypatch.setattr(streams_module, "LOOK_AGAIN_S", 0.1)
    yield


def test_a_database_that_is_away_for_a_moment_in_the_midst_of_a_course_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course_looks_module, "STRETCH_MAX", 2)
    monkeypatch.setattr(stretches_module, "RETRY_WAIT_S", 0.01)
    looks = itertools.count(1)

    def look(*facts: object, **words: object) -> course_looks_module.CourseLook:
        if next(looks) == 2:
            raise TryAgainError("the database is away")
        return course_looks_module.look_at_course(*facts, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(stretches_module, "look_at_course", look)

    async def scenario(following: Following) -> None:
        held = [observe(each) for each in range(1, 8)]
        await following.send(*held)
        task = await following.start()
        assert await following.until_final(7) == expect(held)
        await stop(task)

    run(tmp_path, scenario)


def test_two_who_follow_the_same_instruments_come_to_what_one_would(tmp_path: Path, database_url: str) -> None:
    async def scenario(following: Following) -> None:
        models = frozenset({"cl51", "cl31"})
        others = Following(following.store)
        tasks = [await each.start(instrument_models=models) for each in (following, others)]
        sent = [observe(each, instrument="cl31" if each % 3 else "cl51") for each in range(1, 61)]
        held: list[pb.Observation] = []
        for place, first in enumerate([*range(30, 60, 3), *range(0, 30, 3)]):
            following.pool.need(WorkerKind.BUILT_IN)
            others.pool.need(WorkerKind.BUILT_IN)
            following.pool.workers[0].delay_s = 0.004 * (place % 3)  # now the one is slower, now the other
            others.pool.workers[0].delay_s = 0.004 * (2 - place % 3)
            await following.send(*sent[first : first + 3])
            held += sent[first : first + 3]
            others.stored.tell()
            if place % 5 == 4:
                assert await following.until_final(len(held)) == expect(held)
        assert await following.until_final(len(sent)) == expect(sent)
        for each in tasks:
            await stop(each)
        others.batcher.close()
        others.ingest.close()

    run(tmp_path, scenario, instruments=("cl51", "cl31"), database_url=database_url)


def test_what_was_followed_by_somebody_else_meanwhile_is_looked_at_again(tmp_path: Path) -> None:
    async def scenario(following: Following) -> None:
        held = {each: observe(each) for each in range(1, 9)}
        task = await following.start()
        await following.send(held[2], held[3])
        await following.until_final(2)
        following.pool.workers[0].delay_s = 0.3
        await following.send(held[4])
        await asyncio.sleep(0.1)  # it is being computed from what is known without the first
        others = Following(following.store)
        another = await others.start()
        await following.send(held[1])
        others.stored.tell()
        await following.until(lambda: following.answers() == expect([held[each] for each in (1, 2, 3, 4)]))
        await stop(another)
        await following.send(held[5])
        assert await following.until_final(5) == expect([held[each] for each in range(1, 6)])
        await stop(task)
        others.batcher.close()
        others.ingest.close()

    run(tmp_path, scenario)


def test_what_is_to_be_made_again_is_counted_for_who_looks_after_the_server(tmp_path: Path) -> None:
    def warnings() -> list[str]:
        settings = Settings(data_folder=tmp_path, mqtt_urls=(), workers=0)
        return [each.text for each in examine(settings, time.time()) if each.subject == "predictions"]

    async def scenario(following: Following) -> None:
        base = course_before_now()
        held = {each: observe(each, base_nanos=base) for each in range(1, 6)}
        count = read_predictions(following.store)
        task = await following.start()
        await following.send(held[1], held[2], held[4], held[5])
        await following.until(lambda: len(following.rows()) == 4)
        assert count() == {"predictions_provisional": [(("chain@1",), 2)]}
        (said,) = await asyncio.to_thread(warnings)
        assert said.startswith("chain@1: 2 predictions provisional")
        await following.send(held[3])
        await following.until_final(5)
        assert count() == {"predictions_provisional": []}
        assert not await asyncio.to_thread(warnings)
        await stop(task)

    run(tmp_path, scenario)


def test_a_version_that_was_restricted_follows_all_from_the_beginning_when_it_no_longer_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.02)

    async def scenario(following: Following) -> None:
        models = frozenset({"cl51", "cl31"})
        held = [observe(each, instrument="cl51" if each % 2 else "cl31") for each in range(1, 31)]
        east = Restriction(instruments=("lindenberg/cl51",))

        async def restrict(restriction: Restriction) -> None:
            await following.write(lambda each: catalogue.restrict_version(each, CHAIN, restriction, "anna", 1))

        await stop(await following.start(instrument_models=models))
        await restrict(east)
        task = await following.start(instrument_models=models, restriction=east)
        await following.send(*held)
        mine = [each for each in held if each.header.instrument == "cl51"]
        assert await following.until_final(len(mine)) == expect(mine)
        await following.until(lambda: following.settled() == len(held))
        await stop(task)
        await restrict(Restriction())
        task = await following.start(instrument_models=models)
        assert await following.until_final(len(held)) == expect(held)
        await stop(task)

    run(tmp_path, scenario, instruments=("cl51", "cl31"))
