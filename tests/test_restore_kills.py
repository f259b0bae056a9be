"""Restores that are killed, that meet, that meet pruning, and whose disk is full: real processes, ended at each step.

Run as a program, this file forks those processes: after importing everything once, and before opening anything.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from archive_support import DAY, NOW_NANOS, ingest_all, ingest_telegrams, make_site, open_site, predict
from restore_support import KEEP_UNTIL_NANOS, LATER_NANOS, archive_and_let_go, prune_now, pruned_of, read_state
from server_support import make_observation

from fieldpost.errors import FieldpostError
from flows.restoring.folder import FolderStep
from flows.restoring.restorer import Restorer, RestoreStep
from server.archive.orphans import holds_unknown

ROOT = Path(__file__).resolve().parent.parent
COUNT = 600
"""Two commits."""
KILLS = [(step, at) for step in RestoreStep for at in ((1, 2) if step in ("written", "committed") else (1,))]
FILE_BYTES_MAX = 1024 * 1024
RUNS_AT_ONCE = 3
Step = RestoreStep | FolderStep


def restore_site(site: Path, *, kill_after: Step | None = None, times: int = 1, to_folder: bool = False) -> str:
    """Restores the one day of a site; says what became of it, unless it is killed."""
    left = times

    def on_step(step: Step) -> None:
        nonlocal left
        left -= step is kill_after
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store = open_site(site / "data")
    try:
        restorer = Restorer(make_site(store, site / "archive"), on_step=on_step)
        (day,) = restorer.find_days(DAY, DAY)
        if to_folder:
            restored = restorer.restore_to_folder(day, site / "out")
        else:
            restored = restorer.restore(day, keep_until_unix_nanos=KEEP_UNTIL_NANOS)
        return f"{restored.observation_count} {restored.present_count}"
    except FieldpostError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        store.close()


def prune_again_and_again(site: Path, until: Path) -> str:
    """What the server does once an hour, all the time, until a file is there."""
    store = open_site(site / "data")
    try:
        reports = []
        while not until.exists():
            reports.append(prune_now(make_site(store, site / "archive"), LATER_NANOS))
            time.sleep(0.01)
        return f"{sum(each.observation_count for each in reports)} {[each.errors for each in reports if each.errors]}"
    finally:
        store.close()


def fork(outcome_file: Path, work: Callable[[], str]) -> int:
    """Starts the work in a process of its own, which writes what became of it into a file."""
    child = os.fork()
    if child == 0:
        outcome_file.write_text(work())
        os._exit(0)
    return child


def wait_for(*children: int) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def restore_on_a_small_disk(site: Path) -> str:
    """Restores where no file may grow beyond FILE_BYTES_MAX: the kernel refuses, as it does when a disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
    return restore_site(site)


def end_runs(base: Path) -> None:
    """Makes a site for each step and kills a run of it there; lets runs meet each other and pruning; fills a disk."""
    for step, times in KILLS:
        site = base / f"{step}-{times}"
        shutil.copytree(base / "site", site)
        child = fork(site / "outcome", lambda: restore_site(site, kill_after=step, times=times))  # noqa: B023
        assert wait_for(child) == [-signal.SIGKILL], step
    for step in FolderStep:
        site = base / step
        shutil.copytree(base / "site", site)
        child = fork(site / "outcome", lambda: restore_site(site, kill_after=step, to_folder=True))  # noqa: B023
        assert wait_for(child) == [-signal.SIGKILL], step
    for name in ("met", "pruned"):
        shutil.copytree(base / "site", base / name)
    children = [fork(base / f"met-{i}", lambda: restore_site(base / "met")) for i in range(RUNS_AT_ONCE)]
    done = base / "pruned-restore"
    children.append(fork(base / "pruned-outcome", lambda: prune_again_and_again(base / "pruned", done)))
    children.append(fork(done, lambda: restore_site(base / "pruned")))
    children.append(fork(base / "full-outcome", lambda: restore_on_a_small_disk(base / "full")))
    assert not any(wait_for(*children))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sites in which runs have ended in every way; the file `state` says what was there before."""
    base = tmp_path_factory.mktemp("kills")
    store = open_site(base / "site" / "data")
    ingest_telegrams(store, *range(1, COUNT + 1))
    predict(store, 1, 300, COUNT, predict_nanos=NOW_NANOS)
    (base / "state").write_text(repr(read_state(store)))
    archive_and_let_go(make_site(store, base / "site" / "archive"))
    store.close()
    store = open_site(base / "full" / "data")
    ingest_all(store, [make_observation(1), make_observation(2, Random(1).randbytes(2 * FILE_BYTES_MAX))])
    archive_and_let_go(make_site(store, base / "full" / "archive"))
    store.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    subprocess.run([sys.executable, __file__, str(base)], check=True, env=environment, timeout=100)
    return base


def look(site: Path) -> tuple[str, list[bytes | None]]:
    """All that the store says, and what it says to be in the archive alone."""
    store = open_site(site / "data")
    try:
        return repr(read_state(store)), pruned_of(store)
    finally:
        store.close()


@pytest.mark.parametrize(("step", "times"), KILLS)
def test_a_restore_killed_at_any_step_is_completed_by_the_next(ended: Path, step: RestoreStep, times: int) -> None:
    site = ended / f"{step}-{times}"
    there = {"written-2": 512, "committed-1": 512, "committed-2": COUNT, "restored-1": COUNT}.get(site.name, 0)
    assert restore_site(site) == f"{COUNT - there} {there}"
    assert look(site) == ((ended / "state").read_text(), [None])


def test_what_a_killed_restore_left_in_a_segment_is_no_reason_to_keep_it(ended: Path) -> None:
    store = open_site(ended / "written-1" / "data")
    try:
        names = list(store.segment_reader.list_names(2**40))
        assert [name for name in names if holds_unknown(store, name)] == []
    finally:
        store.close()


@pytest.mark.parametrize("step", FolderStep)
def test_a_restore_to_a_folder_killed_at_any_step_leaves_a_whole_day_or_none(ended: Path, step: FolderStep) -> None:
    site = ended / step
    days = site / "out" / "lindenberg" / "cl51"
    is_there = step is FolderStep.RENAMED
    assert (days / str(DAY)).exists() == is_there
    assert restore_site(site, to_folder=True) == (f"0 {COUNT}" if is_there else f"{COUNT} 0")
    assert [each.name for each in days.iterdir() if each.name != ".lock"] == [str(DAY)]
    assert len(list((days / str(DAY)).glob("*.dat"))) == COUNT


def test_restores_that_meet_bring_everything_back_once(ended: Path) -> None:
    outcomes = sorted((ended / f"met-{i}").read_text() for i in range(RUNS_AT_ONCE))
    assert outcomes == [f"0 {COUNT}"] * (RUNS_AT_ONCE - 1) + [f"{COUNT} 0"]
    assert look(ended / "met") == ((ended / "state").read_text(), [None])


def test_pruning_at_the_same_time_takes_nothing_of_what_comes_back(ended: Path) -> None:
    assert (ended / "pruned-outcome").read_text() == "0 []"
    assert (ended / "pruned-restore").read_text() == f"{COUNT} 0"
    assert look(ended / "pruned") == ((ended / "state").read_text(), [None])


def test_a_disk_that_refuses_is_named_and_the_next_restore_completes(ended: Path) -> None:
    outcome = (ended / "full-outcome").read_text()
    assert outcome.startswith("TryAgainError: the store could not write")
    assert "File too large" in outcome
    assert restore_site(ended / "full") == "2 0"


if __name__ == "__main__":
    end_runs(Path(sys.argv[1]))
