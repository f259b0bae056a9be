"""A server is gone while a station takes many observations, and then a broker too. Does it all drain afterwards.

    PYTHONPATH=tests python -m chaos.outage [--count 100000] [--server real|small] [--late-s 30] [--json]

The station captures the first half with a broker that acknowledges and nobody behind it, is started again, and captures
the second half without a broker. Then both come back. What was measured is known here beforehand, and is held against
what the server has, by SHA-256. The agent's memory is sampled while it drains.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import queue
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import paho.mqtt.client as mqtt
from bad_link.broker import Broker, running
from test_edge_station import STATION, Server, Station

from demo.processes import free_port, is_listening, program

OBSERVATION_BYTES = 1000
OBSERVATIONS_A_FILE = 500
MEMORY_MAX_MB = 40.0
"""Of the agent while it drains, whatever waits in its buffer."""
CAPTURE_TIMEOUT_S = 600.0
SAMPLE_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found. `lost` and `stored_twice` must be 0; `sent_count` may be more than `observations`."""

    server: str
    observations: int
    drain_s: float
    observations_per_s: float
    lost: int
    stored_twice: int
    sent_count: int | None
    memory_begin_mb: float
    memory_max_mb: float

    @property
    def is_clean(self) -> bool:
        """Whether all of it arrived, once, and the agent stayed small."""
        return not self.lost and not self.stored_twice and self.memory_max_mb <= MEMORY_MAX_MB


class Receiver(Protocol):
    """A server that came back."""

    def held_count(self) -> int:
        """How many observations it holds."""
        ...

    def digests(self) -> Counter[bytes]:
        """The SHA-256 of each observation that it holds."""
        ...

    def sent_count(self) -> int | None:
        """How many observations reached it, repeated ones as well; None where it does not say."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class LateServer(Server):
    """The small server of the tests; takes what comes only some seconds later, and so its receipts are as late."""

    def __init__(self, port: int, late_s: float) -> None:
        self._late_s = late_s
        self._waiting: queue.SimpleQueue[tuple[float, mqtt.MQTTMessage] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        super().__init__(port)

    def held_count(self) -> int:
        return len(self.held)

    def digests(self) -> Counter[bytes]:
        return Counter(hashlib.sha256(content).digest() for content in self.held.values())

    def sent_count(self) -> int | None:
        return self.came_count

    def close(self) -> None:
        super().close()
        self._waiting.put(None)
        self._worker.join()

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        self._waiting.put((time.monotonic() + self._late_s, message))

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            due_s, message = entry
            time.sleep(max(0.0, due_s - time.monotonic()))
            super()._on_message(self._client, None, message)


class RealServer:
    """fieldpost-server with a database and segments of its own."""

    def __init__(self, folder: Path, mqtt_port: int) -> None:
        stations = folder / "stations.toml"
        stations.write_text(
            f'[[stations]]\nname = "{STATION}"\n[[stations.instruments]]\nname = "it"\ninstrument_model = "camera"\n'
        )
        self._database = folder / "server" / "fieldpost.db"
        grpc_port = free_port()
        command = [program("fieldpost-server"), "run", "--data-folder", str(folder / "server")]
        command += ["--stations-file", str(stations), "--mqtt-url", f"mqtt://127.0.0.1:{mqtt_port}"]
        command += ["--grpc-address", f"127.0.0.1:{grpc_port}", "--workers", "1"]
        with (folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        _wait_for(lambda: is_listening(grpc_port), "the server", 60)

    def held_count(self) -> int:
        return int(self._query("select count(*) from observation")[0][0])

    def digests(self) -> Counter[bytes]:
        return Counter(sha256 for (sha256,) in self._query("select sha256 from observation"))

    def sent_count(self) -> int | None:
        return None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _query(self, statement: str) -> list[tuple[bytes]]:
        with contextlib.closing(sqlite3.connect(self._database, timeout=30)) as connection:
            return connection.execute(statement).fetchall()


def run_outage(
    folder: Path, count: int, server: str = "small", late_s: float = 0.0, tell: Callable[[str], object] = print
) -> Outcome:
    """Runs one outage in an empty folder.

    Args:
        folder: For everything.
        count: How many observations the station takes during it.
        server: small or real: which one comes back.
        late_s: How late the small one's receipts are.
        tell: Takes lines of progress.
    """
    recordings, port = folder / "recordings", free_port()
    recordings.mkdir()
    instrument = f'\n[[instruments]]\nname = "it"\nsource = "replay"\npath = "{recordings}"\npayload_format = "line"\n'
    station = Station(folder, [port], instrument, clock_wait_s=0, status_interval_s=1, disk_free_alarm_bytes=0)
    chance = random.Random(count)
    half = count // 2
    expected = _record(recordings, chance, 0, half)
    with contextlib.ExitStack() as stack:
        stack.callback(_kill, station)
        with running(Broker(folder, port)):
            _capture(station, half)
            tell(f"{half} captured with a broker that acknowledges, and no server")
            assert station.process is not None
            station.process.terminate()
            assert station.process.wait(30) == 0, station.log()
        expected += _record(recordings, chance, half, count)
        _capture(station, count)
        tell(f"{count} captured, the second half without a broker")
        stack.enter_context(running(Broker(folder, port)))
        receiver: Receiver = RealServer(folder, port) if server == "real" else LateServer(port, late_s)
        stack.callback(receiver.close)
        return _drain(station, receiver, expected, server, tell)


def _record(recordings: Path, chance: random.Random, first: int, end: int) -> Counter[bytes]:
    """Writes lines that compression does not make shorter; returns their SHA-256."""
    digests: Counter[bytes] = Counter()
    for begin in range(first, end, OBSERVATIONS_A_FILE):
        indexes = range(begin, min(begin + OBSERVATIONS_A_FILE, end))
        content = [_line(chance, index) for index in indexes]
        digests.update(hashlib.sha256(line).digest() for line in content)
        (recordings / f"{begin:09d}.txt").write_bytes(b"".join(content))
    return digests


def _line(chance: random.Random, index: int) -> bytes:
    noise = chance.randbytes(OBSERVATION_BYTES).replace(b"\n", b" ")
    return f"{index:09d} ".encode() + noise[: OBSERVATION_BYTES - 11] + b"\n"


def _capture(station: Station, count: int) -> None:
    station.start()
    _wait_for(lambda: _last_sequence(station) >= count, f"{count} observations", CAPTURE_TIMEOUT_S)


def _drain(
    station: Station, receiver: Receiver, expected: Counter[bytes], server: str, tell: Callable[[str], object]
) -> Outcome:
    assert station.process is not None
    count, begun_s = expected.total(), time.monotonic()
    memory_begin_mb = memory_max_mb = resident_mb(station.process.pid)
    told_s = last_progress_s = begun_s
    held_count = 0
    while held_count < count and time.monotonic() < last_progress_s + 180:
        time.sleep(SAMPLE_INTERVAL_S)
        assert station.process.poll() is None, f"the agent has ended:\n{station.log()[-3000:]}"
        memory_max_mb = max(memory_max_mb, resident_mb(station.process.pid))
        now_count = receiver.held_count()
        last_progress_s = time.monotonic() if now_count > held_count else last_progress_s
        held_count = now_count
        if time.monotonic() > told_s + 5:
            told_s = time.monotonic()
            tell(f"{held_count} of {count} after {told_s - begun_s:.0f} s, agent {memory_max_mb:.1f} MB")
    drain_s = time.monotonic() - begun_s
    held = receiver.digests()
    return Outcome(
        server=server,
        observations=count,
        drain_s=round(drain_s, 2),
        observations_per_s=round(held_count / drain_s, 1),
        lost=(expected - held).total(),
        stored_twice=(held - expected).total(),
        sent_count=receiver.sent_count(),
        memory_begin_mb=memory_begin_mb,
        memory_max_mb=memory_max_mb,
    )


def resident_mb(process_id: int) -> float:
    """VmRSS of a process."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


def _last_sequence(station: Station) -> int:
    with contextlib.suppress(FileNotFoundError):
        return int(json.loads((station.buffer_folder / "status.json").read_text())["last_sequence"])
    return 0


def _kill(station: Station) -> None:
    if station.process is not None:
        station.process.kill()
        station.process.wait()


def _wait_for(is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.05)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--server", choices=["small", "real"], default="small")
    parser.add_argument("--late-s", type=float, default=0.0, help="how late the small server's receipts are")
    parser.add_argument("--json", action="store_true", help="nothing but one JSON object")
    options = parser.parse_args()
    base = Path("benchmark-output")
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        tell: Callable[[str], object] = (lambda line: None) if options.json else print
        outcome = run_outage(Path(folder).absolute(), options.count, options.server, options.late_s, tell)
    print(json.dumps(asdict(outcome) | {"is_clean": outcome.is_clean}))
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
