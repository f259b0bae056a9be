"""Kills a server at every operation on its files, or lets the disk refuse it, and counts what it holds afterwards.

    PYTHONPATH=tests python -m faults.server_steps [--kinds kill,torn,EIO:5,ENOSPC:5] [--every 1] [--json]

A life without a fault enumerates the steps: the first migration, commits, receipts, predictions, the settled mark, the
end. Then one server each meets its fault at one of them; after that another one runs undisturbed on the same folder,
and is sent what had no receipt. Every receipted observation must then be held, once, with its bytes; each must have
one prediction, its own, and those of an instrument the order of its observations. A life that meets a disk that
refuses for a moment must come to its end by itself. Every life is a fork, so that Python starts only once.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults.library import Faults, build_library, environment, fast_folder
from faults.server_life import COUNT, LIFE_S, hold, live, start

from fieldpost.errors import FieldpostError

NOT_STARTED = 75
EVERYTHING = range(1, COUNT + 1)


@dataclass(frozen=True, slots=True)
class Step:
    """A fault: of which kind, for how many operations, and at which."""

    kind: str
    count: int
    at: int
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.count} at {self.at} ({self.name})"


@dataclass(frozen=True, slots=True)
class Life:
    """How a life ended: exit status, or minus the signal; and what it said."""

    status: int
    said: list[str]

    @property
    def receipted(self) -> set[int]:
        """What it promised."""
        return {int(each) for line in self.said if line.startswith("receipt ") for each in line.split()[1:]}


def run_life(folder: Path, sequences: set[int], prepare: Callable[[], None]) -> Life:
    """One life, in a fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(_be_child(folder, sequences, prepare, writer))
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read().splitlines()
    return Life(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


def _be_child(folder: Path, sequences: set[int], prepare: Callable[[], None], writer: int) -> int:
    def say(line: str) -> None:
        os.write(writer, line.encode() + b"\n")

    logging.disable()
    faulthandler.dump_traceback_later(2 * LIFE_S, exit=True, file=writer)  # one that does not even end says where
    prepare()
    try:
        store, files = start(folder)
    except (FieldpostError, OSError) as error:
        say(f"it did not start: {error}")
        return NOT_STARTED
    try:
        live(folder, store, files, sorted(sequences), say)
    except BaseException:
        say(traceback.format_exc())
        return 1
    return 0


def step_names(folder: Path) -> list[str]:
    """What the disk is asked to do in a life without a fault."""
    faults, log, data = Faults(), folder / "log", folder / "first"

    def prepare() -> None:
        faults.log_to(log)
        faults.arm(data, "", 0, 0)

    life = run_life(data, set(EVERYTHING), prepare)
    assert life.status == 0 and life.receipted == set(EVERYTHING), life
    hold(data)
    return [" ".join(line.split("\t")[:2]) for line in log.read_text().splitlines()]


def try_step(folder: Path, step: Step) -> str:
    """What is wrong after this fault; empty where nothing is."""
    data = folder / f"{step.kind}-{step.count}-{step.at}"
    faults = Faults()
    first = run_life(data, set(EVERYTHING), lambda: faults.arm(data, step.kind, step.at, step.count))
    expected = (-signal.SIGKILL, 0) if step.kind in ("kill", "torn") else (0, NOT_STARTED)
    if first.status not in expected:
        return f"ended with status {first.status}: {first.said}"
    second = run_life(data, set(EVERYTHING) - first.receipted, lambda: None)
    if second.status != 0:
        return f"does not run again: {second.status} {second.said} after {first.said}"
    try:
        hold(data)
    except Exception:
        return f"{traceback.format_exc()} after {first.said} and {second.said}"
    shutil.rmtree(data)
    return ""


def try_steps(folder: Path, steps: list[Step]) -> dict[str, str]:
    """What is wrong, by step; as many at once as there are processors."""
    count = os.cpu_count() or 1
    results = []
    for part in range(count):
        path = folder / f"wrong-{part}.json"
        child = os.fork()
        if child == 0:
            try:
                wrong = {str(step): problem for step in steps[part::count] if (problem := try_step(folder, step))}
                path.write_text(json.dumps(wrong))
            finally:
                os._exit(0)
        results.append((child, path))
    wrong = {}
    for child, path in results:
        os.waitpid(child, 0)
        wrong.update(json.loads(path.read_text()))
    return wrong


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="kill,torn,EIO:5,ENOSPC:5")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th step, another one for each kind")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        folder = Path(name)
        if "FIELDPOST_FAULT_KIND" not in os.environ:
            again = environment(build_library(folder), kind="")
            return subprocess.run([sys.executable, "-m", "faults.server_steps", *sys.argv[1:]], env=again).returncode
        names = step_names(folder)
        kinds = [each.partition(":") for each in options.kinds.split(",")]
        steps = [
            Step(kind, int(count or 1), at, names[at - 1])
            for number, (kind, _, count) in enumerate(kinds)
            for at in range(1 + number * options.every // len(kinds), len(names) + 1, options.every)
        ]
        wrong = try_steps(folder, steps)
    outcome = {"steps": len(steps), "wrong": wrong, "duration_s": round(time.monotonic() - begun_s, 1)}
    if options.json:
        print(json.dumps(outcome))
    else:
        print(f"{len(steps)} faults, {len(wrong)} of them broke a promise, {outcome['duration_s']} s")
        for step, problem in wrong.items():
            print(f"\n{step}\n{problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
