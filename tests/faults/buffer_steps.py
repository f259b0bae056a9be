"""Runs the scenarios with one fault at every single step, each in a process of its own, and holds the promises.

    LD_PRELOAD=faults.so python -m faults.buffer_steps FOLDER SCENARIO KIND:COUNT...

KIND and COUNT as in faults.c; COUNT 0 means that the disk refuses until the scenario has seen an error, and is well
from then on. Prints one JSON object: the names of the steps, and what went wrong at which. Every step is a fork of
this process, so that Python starts only once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from faults.library import Faults
from faults.promises import hold
from faults.scenarios import SCENARIOS

from fieldpost.errors import FieldpostError

T = TypeVar("T")

KILLED = 9
TRIES = 6


class Steps:
    """The steps of one scenario."""

    def __init__(self, folder: Path, name: str) -> None:
        self._faults = Faults()
        self._folder = folder
        self._scenario = SCENARIOS[name]
        self._prepared = folder / "prepared"
        self._buffer = folder / "run" / "buffer"
        self._said_before: list[str] = []
        self._scenario.prepare(self._prepared, self._said_before.append)

    def names(self) -> list[str]:
        """What the disk is asked to do, in order, where nothing fails."""
        log = self._folder / "log"
        status, said = self._run("", 0, 0, log)
        assert status == 0, f"the scenario fails without any fault: {said}"
        hold(self._buffer, [*self._said_before, *said])
        return [" ".join(line.split("\t")[:2]) for line in log.read_text().splitlines()]

    def fail_at(self, step: int, kind: str, count: int) -> str:
        """What is wrong after a fault at this step; empty where nothing is."""
        status, said = self._run(kind, step, count)
        if kind in ("kill", "torn") and status != KILLED:
            return f"not killed: {status} {said}"
        if kind not in ("kill", "torn") and status != 0:
            return f"ended with status {status}: {said}"
        try:
            hold(self._buffer, [*self._said_before, *(line for line in said if not line.startswith("!"))])
        except Exception:
            return f"{traceback.format_exc()} after {said}"
        return ""

    def _run(self, kind: str, at: int, count: int, log: Path | None = None) -> tuple[int, list[str]]:
        """Runs the scenario in a child; its exit status or signal, and what it said."""
        shutil.rmtree(self._buffer.parent, ignore_errors=True)
        self._buffer.parent.mkdir()
        if self._prepared.exists():
            shutil.copytree(self._prepared, self._buffer)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os._exit(self._be_child(writer, kind, at, count, log))
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), said

    def _be_child(self, writer: int, kind: str, at: int, count: int, log: Path | None) -> int:
        def say(line: str) -> None:
            os.write(writer, line.encode() + b"\n")

        def act(call: Callable[[], T]) -> T:
            for _ in range(TRIES):
                try:
                    return call()
                except FieldpostError:
                    if count == 0:
                        self._faults.disarm()
            return call()

        logging.disable()
        if log is not None:
            self._faults.log_to(log)
        self._faults.arm(self._buffer, kind, at, count)
        try:
            self._scenario.run(self._buffer, say, act, self._faults.disarm)
        except BaseException:
            say("!" + traceback.format_exc().replace("\n", " | "))
            return 1
        return 0


def main() -> None:
    folder, scenario, *kinds = Path(sys.argv[1]), *sys.argv[2:]
    steps = Steps(folder, scenario)
    names = steps.names()
    wrong = {}
    for kind, _, count in (each.partition(":") for each in kinds):
        for step in range(1, len(names) + 1):
            if problem := steps.fail_at(step, kind, int(count)):
                wrong[f"{kind}:{count} at {step} {names[step - 1]}"] = problem
    print(json.dumps({"steps": names, "wrong": wrong}))


if __name__ == "__main__":
    main()
