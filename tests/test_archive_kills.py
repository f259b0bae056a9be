"""Runs that are killed, runs that meet, runs whose disk is full: real processes, ended at each step of their work.

Run as a program, this file forks those processes: after importing everything once, and before opening anything.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import bagit
import pytest
from archive_support import (
    NOW_NANOS,
    archive_day,
    hash_tree,
    ingest_all,
    ingest_telegrams,
    make_archivist,
    make_site,
    open_site,
    parts,
    predict,
    read_tar,
    recorded,
)
from server_support import make_observation

from fieldpost.errors import FieldpostError
from flows.archiving.second_copy import Copyist, CopyStep
from flows.bags.bag import Step
from server.archive.bag_copies import has_copies, list_uncopied_bags

ROOT = Path(__file__).resolve().parent.parent
COUNT = 40
FILE_BYTES_MAX = 256 * 1024
RUNS_AT_ONCE = 3
WRITING = (Step.OBSERVATIONS_WRITTEN, Step.PREDICTIONS_WRITTEN, Step.TAGS_WRITTEN, Step.SYNCED, Step.VERIFIED)


def archive_site(folder: Path, *, kill_after: Step | None = None) -> str:
    """Archives the one day of a site; says what became of it, unless it is killed."""

    def on_step(step: Step, _: Path) -> None:
        if step is kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    store = open_site(folder / "data")
    try:
        return archive_day(make_archivist(store, folder / "archive", on_step=on_step), NOW_NANOS).status
    except FieldpostError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        store.close()


def fork(outcome_file: Path, work: Callable[[], str]) -> int:
    """Starts the work in a process of its own, which writes what became of it into a file."""
    child = os.fork()
    if child == 0:
        outcome_file.write_text(work())
        os._exit(0)
    return child


def archive_on_a_small_disk(folder: Path) -> str:
    """Archives where no file may grow beyond FILE_BYTES_MAX: the kernel refuses, as it does when a disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
    return archive_site(folder)


def copy_site(folder: Path, *, kill_after: CopyStep | None = None) -> str:
    """Copies the one bag of a site; says what became of it, unless it is killed."""

    def on_step(step: CopyStep) -> None:
        if step is kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    store = open_site(folder / "data")
    try:
        copyist = Copyist(make_site(store, folder / "archive", copy=folder / "copy"), on_step=on_step)
        return "".join(copyist.copy(bag, NOW_NANOS + 1).bag.record.path for bag in copyist.find_missing(10))
    finally:
        store.close()


def end_copies(base: Path) -> None:
    """Makes a site with a bag for each step of its copying, and kills a run there."""
    shutil.copytree(base / "site", base / "archived")
    child = fork(base / "archived" / "outcome", lambda: archive_site(base / "archived"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for step in CopyStep:
        site = base / step
        shutil.copytree(base / "archived", site)
        child = fork(site / "outcome", lambda site=site, step=step: copy_site(site, kill_after=step))  # type: ignore[misc]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, step


def end_runs(base: Path) -> None:
    """Makes a site for each step and kills a run of it there; lets some runs meet; fills a disk."""
    end_copies(base)
    for step in Step:
        site = base / step
        shutil.copytree(base / "site", site)
        child = fork(site / "outcome", lambda site=site, step=step: archive_site(site, kill_after=step))  # type: ignore[misc]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, step
    shutil.copytree(base / "site", base / "met")
    children = [fork(base / f"met-{i}", lambda: archive_site(base / "met")) for i in range(RUNS_AT_ONCE)]
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    child = fork(base / "full-outcome", lambda: archive_on_a_small_disk(base / "full"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sites in which runs have ended in every way."""
    base = tmp_path_factory.mktemp("kills")
    store = open_site(base / "site" / "data")
    ingest_telegrams(store, *range(1, COUNT + 1))
    predict(store, *range(1, 11))
    store.close()
    store = open_site(base / "full" / "data")
    ingest_all(store, [make_observation(1, Random(1).randbytes(2 * FILE_BYTES_MAX))])
    store.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    subprocess.run([sys.executable, __file__, str(base)], check=True, env=environment, timeout=100)
    return base


def bags_by_name(archive: Path) -> list[str]:
    """The folders that have a name of a bag."""
    return sorted(path.name for path in archive.glob("*/*/*/*") if not path.name.startswith("."))


@pytest.mark.parametrize("step", Step)
def test_a_run_killed_at_any_step_leaves_no_half_bag_and_the_next_one_completes(ended: Path, step: Step) -> None:
    site = ended / step
    archive = site / "archive"
    left = bags_by_name(archive)
    assert len(left) == (step in (Step.PUBLISHED, Step.RECORDED))
    assert len(parts(archive)) == (step in WRITING)
    for bag in archive.glob("*/*/*/2*"):
        bagit.Bag(str(bag)).validate()

    outcome = archive_site(site)

    assert outcome == {Step.PUBLISHED: "recorded", Step.RECORDED: "present"}.get(step, "archived")
    assert bags_by_name(archive) == ["2025-06-15.v1"]
    assert not parts(archive)
    bag = archive / "lindenberg/cl51/2025/2025-06-15.v1"
    bagit.Bag(str(bag)).validate()
    assert len(read_tar(bag)) == COUNT
    store = open_site(site / "data")
    assert recorded(store) == [("lindenberg/cl51/2025/2025-06-15.v1", 1)]
    store.close()


def test_runs_that_are_killed_after_they_began_to_write_leave_a_part_to_be_swept(ended: Path, tmp_path: Path) -> None:
    site = tmp_path / "again"
    shutil.copytree(ended / "site", site)
    part = site / "archive/lindenberg/cl51/2024/.part-2024-01-01.v1-0badcafe"
    (part / "data").mkdir(parents=True)
    (part / "data" / "observations.tar.zst").write_bytes(b"half")
    assert archive_site(site) == "archived"
    assert not part.exists()


def test_runs_that_meet_make_one_bag(ended: Path) -> None:
    outcomes = sorted((ended / f"met-{i}").read_text() for i in range(RUNS_AT_ONCE))
    assert outcomes == ["archived"] + ["present"] * (RUNS_AT_ONCE - 1)
    archive = ended / "met" / "archive"
    assert bags_by_name(archive) == ["2025-06-15.v1"]
    bagit.Bag(str(archive / "lindenberg/cl51/2025/2025-06-15.v1")).validate()


def test_a_disk_that_refuses_leaves_nothing_and_says_so(ended: Path) -> None:
    outcome = (ended / "full-outcome").read_text()
    assert outcome.startswith("TryAgainError: the archive ")
    assert "File too large" in outcome
    archive = ended / "full" / "archive"
    assert bags_by_name(archive) == []
    assert not parts(archive)


@pytest.mark.parametrize("step", CopyStep)
def test_a_copy_killed_at_any_step_is_never_half_there_and_the_next_run_completes_it(
    ended: Path, step: CopyStep
) -> None:
    site = ended / step
    is_published, is_recorded = step in (CopyStep.PUBLISHED, CopyStep.RECORDED), step is CopyStep.RECORDED
    assert bags_by_name(site / "copy") == ["2025-06-15.v1"] * is_published
    assert len(parts(site / "copy")) == (step in (CopyStep.FILES_WRITTEN, CopyStep.VERIFIED))

    assert copy_site(site) == ("" if is_recorded else "lindenberg/cl51/2025/2025-06-15.v1")

    assert hash_tree(site / "copy") == hash_tree(site / "archive")
    assert not parts(site / "copy")
    store = open_site(site / "data")
    with store.read() as connection:
        assert (list_uncopied_bags(connection, 10), has_copies(connection)) == ([], True)
    store.close()


if __name__ == "__main__":
    end_runs(Path(sys.argv[1]))
