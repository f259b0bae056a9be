"""A gap in the database of a real server, a real station that still has the observations, and the flow between them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from sqlalchemy import delete, func, select
from whole_support import WholeServer, until

from demo.processes import program
from flows.fill_gaps import fill_gaps
from flows.gap_filling.parameters import FillGapsParams
from server.queries.gaps import read_ranges
from server.storage.store import Store
from server.storage.tables import epochs, observations

pytestmark = pytest.mark.mosquitto
COUNT = 300

# What the flow does, without Prefect, in a process that can be killed: what it would leave is the same.
FILL = """
import sys, time
from pathlib import Path
from flows.gap_filling.filling import Filler, Patience
from flows.gap_filling.finding import find_gaps
from flows.server_client import open_client
from flows.site import open_store
with open_store(Path(sys.argv[1])) as (settings, store), open_client(settings) as client:
    (gaps,) = find_gaps(store, station="", grace_s=0, now_unix_nanos=time.time_ns())
    Filler(store, client.ask, Patience(60.0)).fill(gaps)
"""


class Station:
    """`fieldpost-agent` with a simulated instrument that measures COUNT times at once."""

    def __init__(self, folder: Path, broker_port: int) -> None:
        self.config = folder / "station.toml"
        self.buffer = folder / "buffer"
        self.config.write_text(
            f'station = "magurele"\nbroker_urls = ["mqtt://127.0.0.1:{broker_port}"]\n'
            f'buffer_folder = "{self.buffer}"\nstatus_interval_s = 1\nbundle_observations = 10\n'
            'window_observations = 10\n[[instruments]]\nname = "cl31"\nsource = "simulated"\n'
            f"start_time = 2026-03-01T00:00:00Z\ncount = {COUNT}\nspeed_up = 0\n"
        )

    def start(self) -> None:
        command = [program("fieldpost-agent"), "run", "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0

    def ask(self, *words: str) -> None:
        command = [program("fieldpost-agent"), *words, "--config", str(self.config)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)


class ServerWithBroker(WholeServer):
    """A whole server that takes observations over MQTT."""

    def __init__(self, folder: Path, broker: str) -> None:
        self._broker = broker
        super().__init__(folder, {"magurele/cl31": "cl31"}, "workers = 0\n")

    def start(self) -> None:
        text = self.config.read_text().replace("mqtt_urls = []", f'mqtt_urls = ["{self._broker}"]')
        self.config.write_text(text)
        super().start()


@pytest.fixture
def server(tmp_path: Path, mosquitto_port: int) -> Iterator[WholeServer]:
    broker = f"mqtt://127.0.0.1:{mosquitto_port}"
    running = ServerWithBroker(tmp_path / "server", broker)
    yield running
    running.close()


@pytest.fixture
def store(server: WholeServer) -> Iterator[Store]:
    data = server.folder / "data"
    opened = Store(f"sqlite:///{data / 'fieldpost.db'}", data / "segments")
    yield opened
    opened.close()


def held(store: Store) -> int:
    with store.read() as connection:
        return connection.scalar(select(func.count()).select_from(observations)) or 0


def forget(store: Store, first: int, last: int) -> None:
    wanted = observations.c.sequence.between(first, last)
    store.write(lambda connection: connection.execute(delete(observations).where(wanted))).result(10)


def lost(store: Store) -> list[tuple[int, int]]:
    with store.read() as connection:
        return list(read_ranges(connection.scalar(select(epochs.c.lost_ranges))))


def wait_until_told(server: WholeServer) -> None:
    """The station has said that all is delivered."""

    def has_told() -> bool:
        with server.client() as client:
            (station,) = client.stations()
        status = station.status
        return status.is_online and status.last_sequence == COUNT and not status.backlog_count

    until(has_told)


def backlog_count(server: WholeServer) -> int:
    with server.client() as client:
        return client.stations()[0].status.backlog_count


def summary() -> str:
    with get_client(sync_client=True) as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["fill-gaps-summary"]))
        found = client._client.post("/artifacts/filter", json={"artifacts": key.model_dump(mode="json")}).json()
    return str(max(found, key=lambda each: str(each["created"]))["data"])


def test_a_gap_is_filled_a_killed_run_loses_nothing_and_what_nobody_has_is_lost(
    server: WholeServer, store: Store, tmp_path: Path, mosquitto_port: int, prefect_api: str
) -> None:
    params = FillGapsParams(settings_file=server.config)
    station = Station(tmp_path, mosquitto_port)
    station.start()
    try:
        wait_until_told(server)
        forget(store, 11, 30)
        fill_gaps(params)
        assert (held(store), lost(store)) == (COUNT, [])
        assert "20 observations missing, 20 of them came" in summary()

        forget(store, 41, 240)
        station.ask("set", "rate_limit_bytes_per_s", "30000")  # so that it comes slowly enough to be in the middle
        with subprocess.Popen([sys.executable, "-c", FILL, str(server.config)]) as run:
            until(lambda: held(store) > COUNT - 200 or run.poll() is not None)
            run.send_signal(signal.SIGKILL)
        assert held(store) < COUNT, "it was killed in the middle"
        until(lambda: backlog_count(server))
        fill_gaps(params)
        assert "still to deliver" in summary(), "the station goes on by itself, and is not asked once more"
        station.ask("set", "rate_limit_bytes_per_s", "--reset")
        until(lambda: held(store) == COUNT)
    finally:
        station.stop()

    day_files = list(station.buffer.rglob("*.obs"))
    assert day_files
    for each in day_files:
        each.unlink()
    forget(store, 5, 8)
    station.start()
    try:
        wait_until_told(server)
        fill_gaps(params)
    finally:
        station.stop()
    assert (held(store), lost(store)) == (COUNT - 4, [(5, 8)])
    assert "nobody has 5 to 8 (4 observations) any more" in summary()
