"""The command line, run as people and scripts run it: as a process."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fieldpost.testing import RecordingServer, make_prediction
from fieldpost.v1 import stations_service_pb2 as stations_pb2

HEIGHT = ("atmosphere_boundary_layer_thickness", "m")
COMMAND = [sys.executable, "-c", "from fieldpost.cli import main; main()"]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FIELDPOST_")} | more


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, env=environment(**env), timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as running:
        now = datetime.now(UTC)
        for hours, value in ((48, 500.0), (3, 800.0), (1, float("nan"))):
            running.add_prediction(make_prediction([now - timedelta(hours=hours)], {HEIGHT: [value]}))
        failed = make_prediction([now], {})
        failed.failure = "expected a profile of 770 values, but got 12"
        running.add_prediction(failed)
        running.stations.append(stations_pb2.Station(station="station-1"))
        yield running


def test_predictions_are_a_table(server: RecordingServer) -> None:
    done = run("predictions", "--server", server.address)
    assert done.returncode == 0
    head, units, *lines = done.stdout.splitlines()
    assert head.split()[-1] == HEIGHT[0] and units.split() == ["m"]
    assert [line.split()[-1] for line in lines] == ["500", "800", "-"]
    assert "1 observations could not be predicted" in done.stderr and "770 values" in done.stderr


def test_since_counts_back_from_now(server: RecordingServer) -> None:
    done = run("predictions", "--since", "4h", "--until", "2h", "--json", FIELDPOST_SERVER=server.address)
    assert [json.loads(line)[HEIGHT[0]] for line in done.stdout.splitlines()] == [800.0]


def test_json_has_null_where_a_value_is_missing_and_a_line_for_each_failure(server: RecordingServer) -> None:
    rows = [json.loads(line) for line in run("predictions", "--json", "--server", server.address).stdout.splitlines()]
    assert [row.get(HEIGHT[0], "none") for row in rows] == [500.0, 800.0, None, "none"]
    assert "770 values" in rows[-1]["failure"]


def test_csv_is_read_back(server: RecordingServer) -> None:
    done = run("predictions", "--csv", "--server", server.address)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row[f"{HEIGHT[0]} ({HEIGHT[1]})"] for row in rows] == ["500", "800", ""]


def test_nothing_found_is_said_and_is_no_failure(server: RecordingServer) -> None:
    done = run("predictions", "--station", "elsewhere", "--server", server.address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no predictions match\n")


def test_stations_are_listed_for_people_and_for_programs(server: RecordingServer) -> None:
    assert "station-1" in run("stations", "--server", server.address).stdout.splitlines()[1]
    (line,) = run("stations", "--json", "--server", server.address).stdout.splitlines()
    assert json.loads(line)["station"] == "station-1"


def test_a_watch_prints_at_once_into_a_pipe_and_ends_quietly_on_interrupt(server: RecordingServer) -> None:
    with subprocess.Popen(
        [*COMMAND, "watch", "--after", "0", "--json", "--server", server.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout and process.stderr
        ids = [json.loads(process.stdout.readline())["prediction_id"] for _ in range(4)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""
    assert ids == [1, 2, 3, 4]


def test_a_reader_that_has_seen_enough_is_no_error(server: RecordingServer) -> None:
    with RecordingServer() as long:
        long.add_prediction(
            make_prediction([f"2025-06-01T00:00:{n % 60:02}Z" for n in range(20_000)], {HEIGHT: [0.0] * 20_000})
        )
        command = " ".join(f"'{word}'" for word in [*COMMAND, "predictions", "--json", "--server", long.address])
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command} | head -n 1"], capture_output=True, text=True, env=environment()
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_a_server_that_is_not_there_is_two_lines_and_status_75(free_port: int) -> None:
    done = run("stations", "--server", f"127.0.0.1:{free_port}")
    assert done.returncode == 75
    assert done.stdout == ""
    what, what_to_do = done.stderr.splitlines()
    assert what.startswith("fieldpost: expected an answer of the server at 127.0.0.1")
    assert "try again" in what_to_do


def test_debug_shows_where_an_error_came_from(free_port: int) -> None:
    done = run("stations", "--debug", "--server", f"127.0.0.1:{free_port}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "OfflineError" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["predictions", "--since", "yesterday"],
        ["predictions", "--instrument", "ceilometer"],
        ["predictions", "--json", "--csv"],
        ["predictions", "--model-version", "0"],
        ["watch", "--after", "-1"],
        ["stations", "--no-such-option"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_said_without_a_traceback_and_has_status_2(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stderr


def test_a_folder_without_the_servers_authority_is_named(tmp_path: Path) -> None:
    done = run("stations", "--certificates", str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path / "ca.crt") in done.stderr


def test_the_server_script_says_what_to_do_where_there_is_no_server(tmp_path: Path) -> None:
    program = "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]]\n"
    program += "from fieldpost._server_script import main; sys.path[:] = [sys.argv[2]]; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "from a checkout or an image, not from the wheel" in done.stderr
