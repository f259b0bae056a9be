"""Backfills that are killed, at each step and at any moment, and are run again: nothing twice, nothing left out.

Run as a program, this file forks those processes: after importing everything once, and before opening anything.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from archive_support import DAY, NOW_NANOS, ingest_all, ingest_telegrams, open_site
from backfill_support import answers, fill, opened, stored
from chain_analysis import CHAIN
from chain_support import expect, observe
from worker_support import LENGTH

from flows.archiving.archivist import Archivist
from flows.backfilling.run import Step
from server.archive.retention import prune
from server.workers.jobs import ModelKey

ROOT = Path(__file__).resolve().parent.parent
OLD_NANOS = NOW_NANOS + 40 * 86_400 * 10**9
PER_DAY = 5760
COUNT = 1500
CHAIN_COUNT = 130
TRIES_MAX = 60


def fill_site(folder: Path, key: ModelKey, *, day_count: int = 1, kill_after: Step | None = None) -> None:
    """One run, which is ended at a step where one is named."""

    def on_step(step: Step) -> None:
        if step is kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    with opened(folder) as site:
        fill(site, key, last_day=DAY + timedelta(days=day_count - 1), days_at_once=1, on_step=on_step)


def fork(work: Callable[[], None]) -> int:
    """Starts the work in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def kill_at_random(folder: Path, key: ModelKey) -> None:
    """Runs again and again, each run killed a little after it began; says how many were, before one came to its end."""
    chance, kills = random.Random(1), 0
    for _ in range(TRIES_MAX):
        child = fork(lambda: fill_site(folder, key))
        patience = threading.Timer(chance.uniform(0.02, 0.05) * 1.3**kills, os.kill, (child, signal.SIGKILL))
        patience.start()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        patience.cancel()
        patience.join()
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills += 1
    (folder / "kills").write_text(str(kills))


def end_runs(base: Path) -> None:
    """Kills runs in every way."""
    for step in (Step.BROUGHT, Step.PREDICTED, Step.SENT_HOME):
        shutil.copytree(base / "archived", base / step)
        child = fork(lambda step=step: fill_site(base / step, LENGTH, day_count=2, kill_after=step))  # type: ignore[misc]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, step
    kill_at_random(base / "hot", LENGTH)
    kill_at_random(base / "courses", CHAIN)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sites in which runs have ended in every way."""
    base = tmp_path_factory.mktemp("backfill-kills")
    store = open_site(base / "hot" / "data")
    ingest_telegrams(store, *range(1, COUNT + 1))
    store.close()
    store = open_site(base / "courses" / "data")
    ingest_all(store, [observe(each) for each in range(1, CHAIN_COUNT + 1)])
    store.close()
    open_site(base / "archived" / "data").close()
    with opened(base / "archived") as site:
        ingest_telegrams(site.store, *range(1, 21), *range(PER_DAY, PER_DAY + 10))
        archivist = Archivist(site)
        for day in archivist.find_days(DAY, DAY + timedelta(days=1)):
            archivist.archive(day, NOW_NANOS)
        prune(site.store, site.shelf, hot_days=1, now_unix_nanos=OLD_NANOS, is_sweeping=False)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    subprocess.run([sys.executable, __file__, str(base)], check=True, env=environment, timeout=100)
    return base


@pytest.mark.timeout(120)
@pytest.mark.parametrize("step", [Step.BROUGHT, Step.PREDICTED, Step.SENT_HOME])
def test_a_run_killed_at_any_step_is_completed_by_the_next_one(ended: Path, step: Step) -> None:
    with opened(ended / step) as site:
        if step is Step.PREDICTED:
            assert len(answers(site.store)) == 20
        days = {"last_day": DAY + timedelta(days=1), "days_at_once": 1}
        plan, standing = fill(site, **days)
        assert standing.tally.done_count == {Step.BROUGHT: 30, Step.PREDICTED: 10, Step.SENT_HOME: 10}[step]
        assert sorted(answers(site.store)) == [*range(1, 21), *range(PER_DAY, PER_DAY + 10)]
        assert [number for *_, number in stored(site.store)] == list(range(1, 31))  # none was written twice
        assert sum(each.record.prediction_count for each in standing.archived) in (10, 30)
        prune(site.store, site.shelf, hot_days=1, now_unix_nanos=time.time_ns() + OLD_NANOS, is_sweeping=False)
        assert not stored(site.store)  # all of it is in bags
        plan, _ = fill(site, **days)
        assert (plan.batches, plan.there_count) == ([], 30)


def test_runs_killed_at_any_moment_write_nothing_twice_and_leave_nothing_out(ended: Path) -> None:
    assert int((ended / "hot" / "kills").read_text()) > 0
    with opened(ended / "hot") as site:
        assert sorted(answers(site.store)) == list(range(1, COUNT + 1))
        assert [number for *_, number in stored(site.store)] == list(range(1, COUNT + 1))
        plan, _ = fill(site, LENGTH)
        assert plan.batches == []


def test_courses_killed_at_any_moment_say_what_a_fold_says_and_each_thing_once(ended: Path) -> None:
    assert int((ended / "courses" / "kills").read_text()) > 0
    with opened(ended / "courses") as site:
        assert answers(site.store, CHAIN) == expect([observe(each) for each in range(1, CHAIN_COUNT + 1)])
        assert [number for *_, number in stored(site.store, CHAIN)] == list(range(1, CHAIN_COUNT + 1))


if __name__ == "__main__":
    end_runs(Path(sys.argv[1]))
