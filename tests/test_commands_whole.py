"""An operator far away, a real server, a real broker and a real station: asked, answered, done once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_support import open_store
from sqlalchemy import func, select
from typer.testing import CliRunner, Result

from demo.processes import free_port
from fieldpost import Client
from fieldpost.cli import app
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.storage.tables import observations

SCRIPTS = Path(sys.executable).parent
pytestmark = pytest.mark.mosquitto


@pytest.fixture
def address(mosquitto_port: int, tmp_path: Path) -> Iterator[str]:
    """A server, and a station that has delivered 40 observations, at work."""
    store = open_store(tmp_path)
    instrument = RegisteredInstrument(name="cl51", instrument_model="cl51")
    station = RegisteredStation(name="magurele", instruments=[instrument])
    store.write(lambda connection: register(connection, [station])).result(10)
    grpc_port = free_port()
    (tmp_path / "server.toml").write_text(
        f'data_folder = "{tmp_path}"\nworkers = 0\ngrpc_address = "127.0.0.1:{grpc_port}"\n'
        f'mqtt_urls = ["mqtt://127.0.0.1:{mosquitto_port}"]\n'
    )
    (tmp_path / "station.toml").write_text(
        f'station = "magurele"\nbroker_urls = ["mqtt://127.0.0.1:{mosquitto_port}"]\n'
        f'buffer_folder = "{tmp_path}/buffer"\nstatus_interval_s = 1\n[[instruments]]\nname = "cl51"\n'
        'source = "simulated"\nstart_time = 2026-03-01T00:00:00Z\ncount = 40\nspeed_up = 0\n'
    )
    server = subprocess.Popen(
        [str(SCRIPTS / "fieldpost-server"), "run", "--config", str(tmp_path / "server.toml")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert any("broker connected" in line for line in server.stdout)
    agent = subprocess.Popen(
        [str(SCRIPTS / "fieldpost-agent"), "run", "--config", str(tmp_path / "station.toml")], stdout=subprocess.DEVNULL
    )
    try:
        with Client(f"127.0.0.1:{grpc_port}") as client:
            while not any(s.status.last_sequence == 40 and not s.status.backlog_count for s in client.stations()):
                assert agent.poll() is None
                time.sleep(0.05)
        yield f"127.0.0.1:{grpc_port}"
    finally:
        agent.terminate()
        agent.wait(10)
        server.terminate()
        server.communicate(timeout=20)
        with store.read() as connection:
            assert connection.scalar(select(func.count()).select_from(observations)) == 40
        store.close()


def ask(address: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["station", *words, "--server", address])


def duplicate_count(address: str) -> int:
    with Client(address) as client:
        (station,) = (each for each in client.stations() if each.station == "magurele")
        return station.instruments[0].duplicate_count


def test_an_operator_asks_a_station_from_afar(address: str, tmp_path: Path) -> None:
    done = ask(address, "replay", "magurele", "--from", "11", "--to", "20")
    assert (done.exit_code, done.output) == (0, "magurele: it sends them again\n")
    while duplicate_count(address) < 10:
        time.sleep(0.05)
    assert duplicate_count(address) == 10
    done = ask(address, "replay", "magurele", "--since", "1h")
    assert done.exit_code == 0, done.output
    done = ask(address, "replay", "magurele", "--since", "2026-03-01", "--until", "2026-03-02")
    assert (done.exit_code, "it has none of that time" in done.output) == (1, True), "a time of capture is meant"
    assert ask(address, "set", "magurele", "retention_days", "30").exit_code == 0
    assert "retention_days" in (tmp_path / "buffer" / "overrides.json").read_text()
    done = ask(address, "set", "magurele", "broker_urls", "mqtt://elsewhere:1")
    assert (done.exit_code, "expected a setting that may be changed from afar" in done.output) == (1, True)
    assert ask(address, "report", "magurele").exit_code == 0
    done = ask(address, "report", "delft")
    assert (done.exit_code, "expected a registered station" in done.output) == (2, True)
