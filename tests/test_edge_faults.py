"""Faults of the disk at every step of a buffer's life: kill -9, torn writes, a disk that refuses once or for long.

The steps are enumerated by a first run without a fault (faults/faults.c counts them by LD_PRELOAD); then each is a
process of its own that dies, or is refused, at exactly that step. What was promised before must be there afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import skip_or_fail
from faults.every_step import Step, step_names, try_steps
from faults.library import build_library, compiler, environment, fast_folder
from faults.promises import STATION, observation
from faults.scenarios import SCENARIOS

from edge_agent.buffer import Buffer
from edge_agent.storage.day_file import DayFileName
from edge_agent.storage.day_files import utc_day
from fieldpost.errors import BrokenStateError

KINDS = ("kill:1", "torn:1", "ENOSPC:1", "EIO:1", "ENOSPC:0", "EROFS:0")
AGENT_KINDS = (("kill", 1), ("torn", 1), ("kill", 1), ("EIO", 5), ("torn", 1), ("ENOSPC", 5))
DAY_BYTES = len(observation(1).SerializeToString())
"""About as much as the day file of one small observation has."""
AGENT_EVERY = 4
"""Every so many-th step of an agent's life is tried here; all of a longer one in `python -m faults.every_step`."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        skip_or_fail("there is no C compiler (apt install gcc): the library of faults cannot be built")
    return build_library(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def outcomes(library: Path) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The scenarios, each in a process of its own, as many at once as there are processors."""

    def run(scenario: str) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
            command = [sys.executable, "-m", "faults.buffer_steps", folder, scenario, *KINDS]
            return subprocess.run(command, env=environment(library), capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {scenario: pool.submit(run, scenario) for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fault_at_any_step_breaks_no_promise_of_the_buffer(
    scenario: str, outcomes: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    done = outcomes[scenario].result()
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert len(outcome["steps"]) > 20, "the library counts next to nothing"
    assert not outcome["wrong"], "\n\n".join(f"{step}: {why}" for step, why in outcome["wrong"].items())


def test_what_the_disk_does_not_delete_is_still_to_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = Buffer(tmp_path / "buffer", STATION)
    for day in range(4):
        buffer.append([observation(day + 1)], 1.8e9 + day * 86400)
    size_bytes, real = buffer.size_bytes(), os.unlink
    stuck = str(buffer.folder / "days" / str(DayFileName(2, utc_day(1.8e9 + 86400))))

    def refuse(path: str | Path) -> None:
        if str(path) == stuck:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.os.unlink", refuse)
        with pytest.raises(BrokenStateError):
            buffer.make_room(3 * DAY_BYTES, may_drop=True)
    assert list(buffer.ledger.dropped) == [(1, 1)]
    assert list(buffer.settled()) == [(1, 1)], "the others are here, and will be sent after the next start, too"
    assert buffer.size_bytes() < size_bytes
    buffer.make_room(1 << 30, may_drop=True)
    assert list(buffer.ledger.dropped) == [(1, 3)]
    assert buffer.size_bytes() < 2 * DAY_BYTES, "what went is counted off once, and only once"
    buffer.close()


def test_an_index_that_cannot_be_deleted_does_not_count_as_a_day_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = Buffer(tmp_path / "buffer", STATION)
    for day in range(2):
        buffer.append([observation(day + 1)], 1.8e9 + day * 86400)
    real = os.unlink

    def refuse(path: str | Path) -> None:
        if str(path).endswith(".idx"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.os.unlink", refuse)
        assert len(buffer.make_room(1, may_drop=True)) == 1
    assert len(buffer.files()) == 1
    assert buffer.size_bytes() < 2 * DAY_BYTES, "a ceiling would take it for full"
    buffer.close()


@pytest.mark.mosquitto
@pytest.mark.chaos
def test_a_fault_at_any_step_of_a_whole_agent_loses_nothing_and_repeats_nothing(
    library: Path, fast: Path, mosquitto_port: int
) -> None:
    names = step_names(fast, mosquitto_port, library, speed_up=0)
    places = range(2, len(names) + 1, AGENT_EVERY)
    steps = [Step(*AGENT_KINDS[index % len(AGENT_KINDS)], at, names[at - 1]) for index, at in enumerate(places)]
    wrong = try_steps(fast, mosquitto_port, library, steps, speed_up=0)
    assert not wrong, "\n\n".join(f"{step}: {why}" for step, why in wrong.items())


def test_the_library_counts_what_changes_the_folder_and_nothing_else(library: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "watched", tmp_path / "log"
    folder.mkdir()
    program = """if True:
        import os, pathlib, sys
        folder = pathlib.Path(sys.argv[1])
        (folder / "a").write_bytes(b"one")
        (folder / "a").rename(folder / "b")
        with open(folder / "b", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"two", 3)
            os.fsync(file.fileno())
            os.ftruncate(file.fileno(), 4)
        (folder / "b").read_bytes()
        os.link(folder / "b", folder / "c")
        (folder / "d").mkdir()
        (folder / "b").unlink()
        (folder.parent / "elsewhere").write_bytes(b"not counted")
    """
    faults = environment(library, folder=folder, log=log, contents=1)
    subprocess.run([sys.executable, "-c", program, str(folder)], env=faults, check=True)
    assert [line.split("\t") for line in log.read_text().splitlines()] == [
        ["create", "/a", "", "0", "0", ""],
        ["write", "/a", "", "0", "3", b"one".hex()],
        ["rename", "/a", "/b", "0", "0", ""],
        ["open", "/b", "", "0", "0", ""],
        ["write", "/b", "", "3", "3", b"two".hex()],
        ["fsync", "/b", "", "0", "0", ""],
        ["truncate", "/b", "", "4", "0", ""],
        ["link", "/b", "/c", "0", "0", ""],
        ["mkdir", "/d", "", "0", "0", ""],
        ["unlink", "/b", "", "0", "0", ""],
    ]


@pytest.mark.parametrize(("kind", "left"), [("kill", b"one"), ("torn", b"onetw"), ("ENOSPC", b"onefour")])
def test_the_library_kills_tears_and_refuses_at_the_operation_it_was_told(
    library: Path, tmp_path: Path, kind: str, left: bytes
) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    program = """if True:
        import os, sys
        descriptor = os.open(sys.argv[1] + "/a", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"one")
        try:
            os.write(descriptor, b"two!")
        except OSError as error:
            os.write(descriptor, b"four")
            sys.exit(error.errno)
    """
    faults = environment(library, folder=folder, kind=kind, at=3, count=1)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], env=faults)
    assert done.returncode == (28 if kind == "ENOSPC" else -9)
    assert (folder / "a").read_bytes() == left
