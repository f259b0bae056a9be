"""A station behind a bad link, and what it measures: known beforehand, so that it can be held against what arrived."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bad_link.link import BadLink
from test_edge_station import Server, Station

from fieldpost.payload import decode_checked

INSTRUMENTS = ("a", "b")


class FarStation(Station):
    """A station at the far end of a link; without one it is at the near end."""

    def __init__(self, folder: Path, link: BadLink | None, ports: list[int], instruments: str, **settings: object):
        # Observations do not wait for this machine's clock to be synchronised.
        super().__init__(folder, ports, instruments, **({"clock_wait_s": 0} | settings))
        self._link = link
        if link is not None:
            self.config.write_text(self.config.read_text().replace("127.0.0.1", link.address))

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config), *flags]
        if self._link is not None:
            command = self._link.far_command(*command)
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self.process

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(10) == 0, self.log()

    def run_until(self, message: str, count: int) -> None:
        """Until it has logged so many messages."""
        self.start()
        wait_for(lambda: self.log().count(f'"message": "{message}"') >= count, message)
        self.stop()

    def alarms(self) -> str:
        """What is in status.json; "" before the first."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads((self.buffer_folder / "status.json").read_text())["alarms"])
        return ""


class Recorded:
    """Recorded lines of two instruments that a station replays at the pace at which they were measured.

    Args:
        folder: Where the recordings are written.
        count: Lines of each instrument.
        line_bytes: Their length; random, so that compression does not make them short.
        per_s: How many are measured in a second; 0 for all at once.
    """

    def __init__(self, folder: Path, count: int, line_bytes: int, per_s: float = 0.0) -> None:
        chance = random.Random(count)
        self.lines: dict[str, list[bytes]] = {}
        self.settings = ""
        for name in INSTRUMENTS:
            printable = [bytes(chance.choices(range(33, 127), k=line_bytes - 1)) + b"\n" for _ in range(count)]
            self.lines[name] = printable
            path = folder / f"{name}.txt"
            path.write_bytes(b"".join(printable))
            pace = f"speed_up = 1.0\ninterval_s = {1 / per_s}\n" if per_s else ""
            self.settings += f'\n[[instruments]]\nname = "{name}"\nsource = "replay"\npath = "{path}"\n{pace}'
            self.settings += 'payload_format = "line"\n'

    @property
    def count(self) -> int:
        return sum(len(lines) for lines in self.lines.values())

    def assert_held(self, server: Server, station: Station) -> None:
        """Everything once, bytes equal, in the order of each instrument; no matter in which order it came."""
        buffered = {observation.header.sequence: observation for observation in station.buffered()}
        assert sorted(server.held) == sorted(buffered) == list(range(1, self.count + 1))
        for name, lines in self.lines.items():
            sequences = [sequence for sequence, o in sorted(buffered.items()) if o.header.instrument == name]
            assert [server.held[sequence] for sequence in sequences] == lines
        assert all(server.held[sequence] == decode_checked(o) for sequence, o in buffered.items())


def repeated_share(server: Server) -> float:
    """How many observations came that the server held already, for each that it holds."""
    return server.came_count / len(server.held) - 1


def wait_for(is_so: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.02)
