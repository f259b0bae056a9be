"""What an operator gets wrong at the start is one line that says what, and one that says what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def start(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "run", "--data-folder", str(folder / "data"), "--workers", "0", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("toml", "environment", "says"),
    [
        ("workers = [", {}, "expected TOML in"),
        ("", {"FIELDPOST_MQTT_URLS": "mqtt://a"}, "lists in the environment are JSON"),
        ("", {"FIELDPOST_MQTT_SHARDS": "5/3"}, "expected mqtt_shards as INDEX/COUNT"),
    ],
)
def test_wrong_settings_are_told_in_two_lines(
    tmp_path: Path, toml: str, environment: dict[str, str], says: str
) -> None:
    (tmp_path / "server.toml").write_text(toml)
    done = start(tmp_path, "-c", str(tmp_path / "server.toml"), **environment)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["gRPC", "broker"])
def test_a_port_that_is_taken_is_told_in_two_lines_and_may_be_tried_again(tmp_path: Path, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        grpc_port, mqtt_port = (port, 0) if what == "gRPC" else (0, port)
        brokers = ["--mqtt-url", f"embedded://127.0.0.1:{mqtt_port}"] if mqtt_port else []
        done = start(tmp_path, "--grpc-address", f"127.0.0.1:{grpc_port}", *brokers)
    assert done.returncode == 75
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
    assert "never awaited" not in done.stderr
