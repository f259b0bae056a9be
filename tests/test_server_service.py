"""The server's hardened systemd service: what systemd thinks of it, and a server that works under its filter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from model_support import CLASSIFIER_MANIFEST, make_classifier, make_image
from test_edge_operation import confined, needs_seccomp, needs_systemd, unit_value  # noqa: F401 - a fixture
from whole_support import until

from demo.processes import free_port, is_listening
from fieldpost import Client
from fieldpost.simulation import SimulatedCl51
from server.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "deploy" / "systemd" / "fieldpost-server.service"
NOW_UNIX_S = 1_795_000_000.0
IMAGE = make_image((255, 0, 0))
pytestmark = needs_systemd


def test_systemd_finds_nothing_wrong_with_the_service_but_that_it_is_not_installed_here(tmp_path: Path) -> None:
    (command,) = unit_value(UNIT, "ExecStart")
    assert command.split()[1:] == ["run", "--config", "/etc/fieldpost/server.toml"]
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace(command.split()[0], sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "fieldpost" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_service_is_exposed_to_little() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    match = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", said)
    assert match is not None, said
    assert float(match[1]) <= 1.5


def test_a_password_in_a_credential_or_in_the_environment_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FIELDPOST_DATABASE_URL").write_text("postgresql+psycopg://fieldpost:secret@db/fieldpost\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_settings().database == "postgresql+psycopg://fieldpost:secret@db/fieldpost"
    monkeypatch.setenv("FIELDPOST_DATABASE_URL", "sqlite:///x")
    assert load_settings().database == "sqlite:///x"


@pytest.fixture
def unit_here(tmp_path: Path) -> Path:
    """The unit; where the tests are root, which the service never is, its workers may become somebody else."""
    here = tmp_path / UNIT.name
    as_root = "SystemCallFilter=setgroups setresgid setresuid\n" if os.geteuid() == 0 else ""
    here.write_text(UNIT.read_text().replace("[Install]", f"{as_root}\n[Install]"))
    return here


@pytest.mark.usefixtures("needs_seccomp")
def test_a_server_predicts_under_the_services_filter_with_built_in_and_with_users_models(
    unit_here: Path, tmp_path: Path
) -> None:
    port = free_port()
    config = tmp_path / "server.toml"
    config.write_text(
        f'data_folder = "{tmp_path}/data"\ngrpc_address = "127.0.0.1:{port}"\n'
        f'mqtt_urls = ["embedded://127.0.0.1:{free_port()}"]\n'
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = confined(unit_here, "server", "run", "--config", str(config))
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until(lambda: is_listening(port) or server.poll() is not None)
        assert server.poll() is None, log.read_text()
        with Client(f"127.0.0.1:{port}", timeout_s=60) as client:
            model = client.models.submit(make_classifier(), manifest=CLASSIFIER_MANIFEST, sample=IMAGE).model
            assert "system call filter" in model.trial.confinements
            client.models.activate(model.analysis, model.model_version)
            assert len(client.predict(model.analysis, IMAGE).labels("cloud_type")) == 1
            telegram = SimulatedCl51(seed=1).telegram(NOW_UNIX_S)
            answer = client.predict("boundary-layer-height", telegram, instrument_model="cl51")
            assert len(answer["atmosphere_boundary_layer_thickness"]) == 1
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            assert server.wait(30) == 0, log.read_text()
        finally:
            server.kill()
            server.wait()
