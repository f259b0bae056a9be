"""A real agent and a real server meet over TLS, on Mosquitto in its production configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from server_support import open_store
from sqlalchemy import func, select
from tls_support import brokers, certificates, start_broker  # noqa: F401  (fixtures)

from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.storage.tables import observations

SCRIPTS = Path(sys.executable).parent
pytestmark = pytest.mark.mosquitto


def test_observations_travel_over_tls_with_certificates_on_both_sides(
    certificates: Path,  # noqa: F811
    start_broker: Callable[..., int],  # noqa: F811
    tmp_path: Path,
) -> None:
    port = start_broker()
    store = open_store(tmp_path)
    station = RegisteredStation(
        name="station-a", instruments=[RegisteredInstrument(name="cl51", instrument_model="cl51")]
    )
    store.write(lambda connection: register(connection, [station])).result(10)
    config = tmp_path / "server.toml"
    config.write_text(
        f'data_folder = "{tmp_path}"\nworkers = 0\ngrpc_address = "127.0.0.1:0"\n'
        f'mqtt_urls = ["mqtts://localhost:{port}"]\nmqtt_client_id = "ingest"\n'
        f'mqtt_ca_file = "{certificates}/stations-ca.crt"\nmqtt_cert_file = "{certificates}/ingest.crt"\n'
        f'mqtt_key_file = "{certificates}/ingest.key"\n'
    )
    agent_config = tmp_path / "agent.toml"
    agent_config.write_text(
        f'station = "station-a"\nbroker_urls = ["mqtts://localhost:{port}"]\nbuffer_folder = "{tmp_path}/buffer"\n'
        f'ca_file = "{certificates}/stations-ca.crt"\ncertificate_file = "{certificates}/station-a.crt"\n'
        f'key_file = "{certificates}/station-a.key"\n[[instruments]]\nname = "cl51"\nsource = "simulated"\n'
        "start_time = 2026-03-01T00:00:00Z\ncount = 50\nspeed_up = 0\n"
    )
    server = subprocess.Popen(
        [str(SCRIPTS / "fieldpost-server"), "run", "--config", str(config)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert any("broker connected" in line for line in server.stdout)  # ends where the server does
        command = [str(SCRIPTS / "fieldpost-agent"), "run", "--config", str(agent_config), "--exit-when-delivered"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.terminate()
        server.communicate(timeout=20)
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(observations)) == 50
    store.close()
