"""A backfill predicts what waits in its range, once, and nothing else; from the hot store and from the archive."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from archive_support import DAY, NOW_NANOS, ingest_all, ingest_telegrams, open_site, recorded
from backfill_support import answers, fill, make_params, make_version, opened, stored
from chain_analysis import CHAIN, COURSE_NANOS
from chain_support import expect, observe, to_message
from server_support import make_observation
from sqlalchemy import select
from worker_support import LENGTH

from fieldpost.errors import InvalidRequestError, UnknownModelError
from flows.archiving.archivist import Archivist
from flows.backfilling.low_priority import LowPriorityEngine
from flows.backfilling.plan import find_version, make_plan
from flows.backfilling.run import Step
from flows.site import Site
from server.archive.retention import prune
from server.models.card import ModelState
from server.storage.tables import holds, observations
from server.workers.supervised_worker import Report
from server.workers.worker_process import WorkerSpec
from server.workers.worker_wire import Ready

OLD_NANOS = NOW_NANOS + 40 * 86_400 * 10**9
PER_DAY = 5760


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site whose store is empty yet."""
    open_site(tmp_path / "data").close()
    with opened(tmp_path) as found:
        yield found


def test_what_waits_in_the_range_is_predicted_once_and_nothing_else(site: Site) -> None:
    next_day = [PER_DAY + each for each in range(3)]
    ingest_telegrams(site.store, *range(1, 301), *next_day)
    plan, standing = fill(site)
    assert (plan.waiting_count, plan.there_count) == (300, 0)
    assert (standing.tally.predicted_count, standing.tally.failed_count) == (300, 0)
    assert sorted(answers(site.store)) == list(range(1, 301))
    plan, standing = fill(site, last_day=DAY + timedelta(days=1))
    assert (plan.waiting_count, plan.there_count, standing.tally.done_count) == (3, 300, 3)
    plan, standing = fill(site, last_day=DAY + timedelta(days=1))
    assert (plan.batches, standing.tally.done_count) == ([], 0)
    assert [number for *_, number in stored(site.store)] == list(range(1, 304))  # none was written twice


def test_what_the_version_fails_at_is_stored_as_a_failure_and_tried_again_when_asked(site: Site) -> None:
    ingest_all(site.store, [make_observation(each, b"poison" if each == 3 else b"fine") for each in range(1, 7)])
    _, standing = fill(site)
    assert (standing.tally.predicted_count, standing.tally.failed_count) == (5, 1)
    before = stored(site.store)
    assert to_message({each[0]: each[1] for each in before}[3]).failure == "poisoned"
    plan, standing = fill(site)
    assert standing.tally.done_count == 0
    plan, standing = fill(site, retry_failures=True)
    assert (plan.waiting_count, standing.tally.failed_count, standing.tally.predicted_count) == (1, 1, 0)
    after = stored(site.store)
    assert [each for each in after if each[0] != 3] == [each for each in before if each[0] != 3]
    assert {each[2] for each in after if each[0] == 3} != {each[2] for each in before if each[0] == 3}


def test_a_payload_that_cannot_be_read_waits_and_the_others_do_not(site: Site) -> None:
    ingest_telegrams(site.store, *range(1, 11))
    (segment,) = (site.settings.data_folder / "segments").iterdir()
    segment.write_bytes(segment.read_bytes()[:-100])
    _, standing = fill(site)
    assert (standing.tally.predicted_count, standing.tally.unreadable_count) == (9, 1)
    assert sorted(answers(site.store)) == list(range(1, 10))


def test_courses_are_followed_from_their_start_and_say_what_a_fold_says(site: Site) -> None:
    held = [observe(each) for each in range(1, 60) if each not in (7, 23, 24)]  # with gaps, which nobody waits for
    ingest_all(site.store, held)
    _, standing = fill(site, CHAIN)
    assert standing.tally.predicted_count == len(held)
    assert answers(site.store, CHAIN) == expect(held)
    assert [number for *_, number in stored(site.store, CHAIN)] == list(range(1, len(held) + 1))


def test_a_course_older_than_those_that_were_followed_is_followed_at_once_though_it_has_gaps(site: Site) -> None:
    held = [observe(each) for each in range(1, 40) if each != 15]
    ingest_all(site.store, held[20:])
    fill(site, CHAIN)
    ingest_all(site.store, held[:20])
    fill(site, CHAIN)
    assert answers(site.store, CHAIN) == expect(held)


def test_what_came_late_into_a_course_makes_what_comes_after_it_anew(site: Site) -> None:
    held = [observe(each) for each in range(1, 30)]
    late = held.pop(13)
    ingest_all(site.store, held)
    fill(site, CHAIN)
    before = stored(site.store, CHAIN)
    ingest_all(site.store, [late])
    _, standing = fill(site, CHAIN)
    assert answers(site.store, CHAIN) == expect([*held, late])
    assert standing.tally.predicted_count == 6  # itself, and those of its course behind it
    assert len(set(before) & set(stored(site.store, CHAIN))) == len(before) - 5


def test_an_observation_whose_payload_alone_tells_its_time_ends_in_its_own_course(site: Site) -> None:
    held = [observe(each, is_untold=each == 12, delay_nanos=COURSE_NANOS if each == 12 else 1) for each in range(1, 35)]
    ingest_all(site.store, held)
    fill(site, CHAIN)
    fill(site, CHAIN)
    assert sorted(answers(site.store, CHAIN)) == list(range(1, 35))
    with site.store.read() as connection:
        moved = connection.scalar(select(observations.c.measure_unix_nanos).where(observations.c.sequence == 12))
    assert moved == observe(12).header.measure_time.ToNanoseconds()


def archive_and_prune(site: Site) -> None:
    """Two days that only the archive has."""
    ingest_telegrams(site.store, *range(1, 21), *range(PER_DAY, PER_DAY + 10))
    archivist = Archivist(site)
    for day in archivist.find_days(DAY, DAY + timedelta(days=1)):
        archivist.archive(day, NOW_NANOS)
    let_go(site)
    assert count_observations(site) == 0


def let_go(site: Site) -> None:
    prune(site.store, site.shelf, hot_days=1, now_unix_nanos=OLD_NANOS, is_sweeping=False)


def count_observations(site: Site) -> int:
    with site.store.read() as connection:
        return len(connection.execute(select(observations.c.id)).all())


def test_days_that_only_the_archive_has_come_back_are_predicted_archived_anew_and_go(site: Site) -> None:
    archive_and_prune(site)
    steps: list[Step] = []
    plan, standing = fill(site, last_day=DAY + timedelta(days=1), days_at_once=1, on_step=steps.append)
    assert plan.waiting_count == standing.tally.predicted_count == 30
    assert steps == [Step.BROUGHT, Step.PREDICTED, Step.SENT_HOME] * 2
    assert [version for _, version in recorded(site.store)] == [1, 2, 1, 2]
    assert [each.record.prediction_count for each in standing.archived] == [20, 10]
    with site.store.read() as connection:
        assert connection.execute(select(holds)).all() == []
    let_go(site)
    assert count_observations(site) == 0
    plan, _ = fill(site, last_day=DAY + timedelta(days=1))
    assert (plan.batches, plan.there_count) == ([], 30)  # the bags say so


def test_the_archive_is_left_alone_where_only_the_hot_store_is_meant(site: Site) -> None:
    archive_and_prune(site)
    ingest_telegrams(site.store, *range(2 * PER_DAY, 2 * PER_DAY + 5))
    plan, standing = fill(site, where="hot store", last_day=DAY + timedelta(days=2))
    assert standing.tally.predicted_count == 5
    assert any("archive alone" in note for note in plan.notes)
    plan, standing = fill(site, where="archive", last_day=DAY + timedelta(days=2))
    assert standing.tally.predicted_count == 30


def test_what_the_server_predicts_itself_is_left_to_it(site: Site) -> None:
    ingest_telegrams(site.store, *range(1, 6))
    plan, standing = fill(site, state=ModelState.ACTIVE)
    assert standing.tally.done_count == 0
    assert plan.notes == [
        "length@1 is active: the server itself predicts what is in the hot store (5 observations wait)"
    ]


def test_what_cannot_be_done_is_refused_in_words(site: Site) -> None:
    version = make_version(site.store, LENGTH)
    with pytest.raises(InvalidRequestError, match=r"expected observations between 2025-06-15 and .*there are none"):
        make_plan(site, make_params(), version)
    with pytest.raises(UnknownModelError, match=r"but got 7: its versions are 1 \(ready\)"):
        find_version(site, "length", 7)
    with pytest.raises(UnknownModelError, match="there is no such analysis"):
        find_version(site, "breadth", 1)
    with pytest.raises(InvalidRequestError, match="this installation can run, but it cannot run length@1"):
        find_version(site, "length", 1)
    make_version(site.store, LENGTH, ModelState.RETIRED)
    with pytest.raises(InvalidRequestError, match="length@1 is retired"):
        find_version(site, "length", 1)


@pytest.mark.timeout(120)
def test_a_worker_yields_to_all_others_with_all_its_threads_once_it_is_ready() -> None:
    said: queue.SimpleQueue[Report] = queue.SimpleQueue()
    life = LowPriorityEngine().start_life(WorkerSpec("onnx", memory_bytes=2**31), said.put)
    try:
        assert isinstance(said.get(timeout=100), Ready)
        folder = Path(f"/proc/{life.process_id}")
        threads = [int(each.name) for each in (folder / "task").iterdir()]
        assert {os.sched_getscheduler(each) for each in threads} == {os.SCHED_IDLE}
        assert {os.getpriority(os.PRIO_PROCESS, each) for each in threads} == {19}
        assert {psutil.Process(each).ionice().ioclass for each in threads} == {psutil.IOPRIO_CLASS_IDLE}
        assert not (folder / "autogroup").exists() or (folder / "autogroup").read_text().endswith("nice 19\n")
    finally:
        life.kill()
        life.join()
