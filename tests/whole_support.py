"""A whole server as its operator starts it, with real workers, for tests that go through its front doors alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.processes import free_port, is_listening, program
from fieldpost import Client

WAIT_S = 60.0


class WholeServer:
    """`fieldpost-server run` on a free port of the loopback, and again on the same after it was ended.

    Args:
        folder: Of its settings, its log and, unless they say otherwise, its data.
        instruments: Instrument models by STATION/INSTRUMENT.
        settings: In TOML, beyond what every server here has.
    """

    def __init__(self, folder: Path, instruments: dict[str, str], settings: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.config = folder / "server.toml"
        stations = folder / "stations.toml"
        lines = []
        for station in {name.partition("/")[0] for name in instruments}:
            lines += ["[[stations]]", f'name = "{station}"']
            for name, model in instruments.items():
                if name.startswith(f"{station}/"):
                    instrument = name.partition("/")[2]
                    lines += ["[[stations.instruments]]", f'name = "{instrument}"', f'instrument_model = "{model}"']
        stations.write_text("\n".join(lines) + "\n")
        common = {"grpc_address": self.address, "stations_file": str(stations), "mqtt_urls": []}
        if "data_folder" not in settings:
            common["data_folder"] = str(folder / "data")
        words = "".join(f"{name} = {json.dumps(value)}\n" for name, value in common.items())
        self.config.write_text(words + settings)
        self.start()

    def start(self) -> None:
        """Returns once it serves."""
        command = [program("fieldpost-server"), "run", "--config", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        until(lambda: is_listening(self.port) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()

    def stop(self) -> None:
        """Ends it as its service manager does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0, self.log()

    def close(self) -> None:
        """Ends it, however it is."""
        self.process.kill()
        self.process.wait()

    def client(self) -> Client:
        """Asks it."""
        return Client(self.address, timeout_s=WAIT_S)

    def cli(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs `fieldpost` against it."""
        command = [program("fieldpost"), *map(str, arguments), "--server", self.address]
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)

    def log(self) -> str:
        """Its last words."""
        return (self.folder / "log").read_text(errors="replace")[-6000:]

    def logged(self, message: str) -> list[dict[str, Any]]:
        """The lines of its log with this message."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        found = (json.loads(line) for line in lines if line.startswith("{"))
        return [each for each in found if each["message"] == message]

    def worker_ids(self, kind: str) -> list[int]:
        """The process ids of its workers of a kind."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self.process.pid and b"server.workers.worker_main" in command and kind.encode() in command:
                found.append(int(process.name))
        return found

    def signal_workers(self, kind: str, number: signal.Signals) -> list[int]:
        """Sends a signal to its workers of a kind; returns which."""
        ids = self.worker_ids(kind)
        for each in ids:
            os.kill(each, number)
        return ids


def until(has_come: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """What the condition returns once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := has_come()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return found
