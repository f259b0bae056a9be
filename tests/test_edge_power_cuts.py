"""Power cuts: what was not synced may be gone, in any order. Every step of a buffer's life is cut, several times over.

A real process runs a scenario, and every change that it makes to the disk is written down (faults/faults.c). From that,
states are made that a power cut at each step may leave (faults/power_cut.py); each is opened, and held to its promises.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail
from faults.library import build_library, compiler, environment, fast_folder
from faults.power_cut import Disk, contents_of
from faults.promises import hold
from faults.record import BUFFER
from faults.scenarios import SCENARIOS

CUTS = int(os.environ.get("FIELDPOST_POWER_CUTS", "3"))
"""States that are tried at each step."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        skip_or_fail("there is no C compiler (apt install gcc): the library of faults cannot be built")
    return build_library(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def fast() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_at_any_step_breaks_no_promise_of_the_buffer(scenario: str, library: Path, fast: Path) -> None:
    folder, log, target = fast / "disk", fast / "log", fast / "left"
    folder.mkdir()
    command = [sys.executable, "-m", "faults.record", str(folder), scenario, str(log)]
    prepared = subprocess.run(
        [*command, "prepare"], env=environment(library), capture_output=True, text=True, check=True
    )
    said = prepared.stdout.splitlines()
    disk = Disk(contents_of(folder))
    subprocess.run(command, env=environment(library), check=True)
    chance = random.Random(scenario)
    lines = log.read_text().splitlines()
    assert len(lines) > 20
    for number, line in enumerate([*lines, "note\t"], start=1):
        word, _, text = line.partition("\t")
        if word == "note":
            said += [text] if text else []
        else:
            disk.take(line)
        for _ in range(CUTS):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            disk.cut(chance, target)
            try:
                hold(target / BUFFER, said, may_repeat=True)
            except Exception as error:
                here = sorted(path.relative_to(target).as_posix() for path in target.rglob("*"))
                raise AssertionError(f"{error} after line {number}, {line[:100]!r}, with {here}") from error


# --- the model itself ---


def lines(*rows: tuple[object, ...]) -> list[str]:
    return ["\t".join(map(str, (*row, *[""] * (6 - len(row))))) for row in rows]


def states(target: Path, disk: Disk, count: int = 60) -> set[tuple[tuple[str, bytes | None], ...]]:
    """All that power cuts now may leave."""
    found = set()
    for seed in range(count):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        disk.cut(random.Random(seed), target)
        found.add(tuple(contents_of(target).items()))
    return found


def test_what_is_not_synced_may_be_lost_and_what_is_synced_may_not(fast: Path) -> None:
    disk = Disk({})
    for line in lines(("create", "/a"), ("write", "/a", "", 0, 3, b"one".hex())):
        disk.take(line)
    assert states(fast / "x", disk) == {(), (("/a", b""),), (("/a", b"one"),)}
    disk.take("fsync\t/a\t\t0\t0\t")
    assert states(fast / "x", disk) == {(), (("/a", b"one"),)}, "its name is not synced yet"
    disk.take("fsync\t\t\t0\t0\t")
    assert states(fast / "x", disk) == {(("/a", b"one"),)}


def test_a_rename_is_done_or_not_and_an_unsynced_file_may_be_empty_under_its_new_name(fast: Path) -> None:
    disk = Disk({"/a": b"old"})
    for line in lines(("create", "/a.new"), ("write", "/a.new", "", 0, 3, b"new".hex()), ("rename", "/a.new", "/a")):
        disk.take(line)
    left = {dict(state).get("/a") for state in states(fast / "x", disk)}
    assert left == {b"old", b"new", b""}


def test_a_write_is_torn_at_a_sector(fast: Path) -> None:
    disk = Disk({"/a": b""})
    disk.take(lines(("write", "/a", "", 0, 1500, (b"x" * 1500).hex()))[0])
    sizes = {len(dict(state)["/a"] or b"") for state in states(fast / "x", disk)}
    assert sizes == {0, 512, 1024, 1500}


def test_a_later_write_may_be_there_without_an_earlier_one(fast: Path) -> None:
    disk = Disk({"/a": b""})
    for line in lines(("write", "/a", "", 0, 2, b"ab".hex()), ("write", "/a", "", 2, 2, b"cd".hex())):
        disk.take(line)
    assert {dict(state)["/a"] for state in states(fast / "x", disk)} == {b"", b"ab", b"abcd", b"\0\0cd"}
