"""Kills a whole agent at every file operation and every send of a short life, and counts at the server.

    PYTHONPATH=tests python -m faults.every_step [--kinds kill,torn,EIO:5,ENOSPC:5] [--every 1] [--json]

A first run without a fault enumerates the steps. Then one agent each, with a station name of its own, meets its fault
at one of them; after that it runs once more, undisturbed, until everything is delivered. The server must then hold
every observation of the instrument exactly once, with its bytes, in the order in which it was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from faults.agent import Agent, Server
from faults.library import build_library, fast_folder

from demo.processes import find_mosquitto, free_port, is_listening
from fieldpost.simulation import SimulatedCl51

COUNT = 40
INTERVAL_S = 15.0
SPEED_UP = 6000.0
"""The observations come a few at a time. 0: all at once, for a quick look."""
START = datetime(2025, 6, 1, tzinfo=UTC)
AT_ONCE = 3
RUN_TIMEOUT_S = 60.0
KILLED = -9


@dataclass(frozen=True, slots=True)
class Step:
    """A fault: of which kind, for how many operations, and at which."""

    kind: str
    count: int
    at: int
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.count} at {self.at} ({self.name})"


def instrument(speed_up: float) -> str:
    """The settings of the instrument."""
    return (
        '\n[[instruments]]\nname = "cl51"\nsource = "simulated"\nstart_time = 2025-06-01\nseed = 1\n'
        f"count = {COUNT}\ninterval_s = {INTERVAL_S}\nspeed_up = {speed_up}\n"
    )


def telegrams() -> list[bytes]:
    """What the instrument gives."""
    simulated = SimulatedCl51(1)
    return [simulated.telegram(START.timestamp() + index * INTERVAL_S) for index in range(COUNT)]


def step_names(folder: Path, port: int, library: Path, speed_up: float = SPEED_UP) -> list[str]:
    """The operations of one life without a fault."""
    server = Server(port)
    agent, log = Agent(folder / "first", "first", port, instrument(speed_up)), folder / "first" / "log"
    process = agent.start(library, "--exit-when-delivered", folder=agent.buffer_folder, log=log, sends=1)
    try:
        assert process.wait(RUN_TIMEOUT_S) == 0, agent.log()
    finally:
        agent.kill()
        server.close()
    return [" ".join(line.split("\t")[:2]).split(":[")[0] for line in log.read_text().splitlines()]


def try_step(
    folder: Path, port: int, library: Path, server: Server, step: Step, given: list[bytes], speed_up: float
) -> str:
    """What is wrong after this fault; empty where nothing is."""
    station = f"{step.kind}-{step.count}-{step.at}".lower()
    agent = Agent(folder / station, station, port, instrument(speed_up))
    faults = {"folder": agent.buffer_folder, "kind": step.kind, "at": step.at, "count": step.count, "sends": 1}
    try:
        status = agent.start(library, "--exit-when-delivered", **faults).wait(RUN_TIMEOUT_S)
        expected = (KILLED, 0) if step.kind in ("kill", "torn") else (0, 1, 75)
        if status not in expected:
            return f"ended with status {status}: {agent.log()[-2000:]}"
        agent.finish(library, RUN_TIMEOUT_S)
        with server.changed:
            held = [server.held[station][sequence] for sequence in sorted(server.held[station])]
        numbers = [int(each.header.origin.rpartition("#")[2]) for each in held]
        if numbers != list(range(COUNT)):
            return f"expected 0 to {COUNT - 1}, once and in order, but got {numbers}"
        if [each.content for each in held] != given:
            return "other bytes"
        shutil.rmtree(folder / station)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return f"{error}: {agent.log()[-2000:]}"
    finally:
        agent.kill()
    return ""


def try_steps(
    folder: Path, port: int, library: Path, steps: Iterable[Step], speed_up: float = SPEED_UP
) -> dict[str, str]:
    """What is wrong, by step."""
    given = telegrams()
    server = Server(port)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tried = [
                (step, pool.submit(try_step, folder, port, library, server, step, given, speed_up)) for step in steps
            ]
            return {str(step): problem for step, done in tried if (problem := done.result())}
    finally:
        server.close()


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="kill,torn,EIO:5,ENOSPC:5")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th step")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        folder, port = Path(name), free_port()
        library = build_library(folder)
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n")
        broker = subprocess.Popen(
            [str(find_mosquitto()), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not is_listening(port):
                time.sleep(0.02)
            names = step_names(folder, port, library)
            steps = [
                Step(kind, int(count or 1), at, names[at - 1])
                for kind, _, count in (each.partition(":") for each in options.kinds.split(","))
                for at in range(1, len(names) + 1, options.every)
            ]
            wrong = try_steps(folder, port, library, steps)
        finally:
            broker.kill()
            broker.wait()
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
