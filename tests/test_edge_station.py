"""Whole stations: real processes, a real Mosquitto, a small server that answers with receipts, and kill -9."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from edge_agent.buffer import Buffer
from edge_agent.cli import run as run_cli
from fieldpost.names import commands_topic, receipts_topic
from fieldpost.payload import decode_checked
from fieldpost.v1 import command_pb2, observation_pb2, receipt_pb2, station_pb2

pytestmark = pytest.mark.mosquitto

STATION = "magurele"
FILE_COUNT = 400
Answer = Callable[[observation_pb2.Observation], receipt_pb2.Rejection | None]


def hold_everything(observation: observation_pb2.Observation) -> receipt_pb2.Rejection | None:
    return None


class Server:
    """Subscribes to all stations, holds what comes, and answers each bundle with a receipt."""

    def __init__(self, port: int, answer: Answer = hold_everything) -> None:
        self.answer = answer
        self.is_silent = False
        self.held: dict[int, bytes] = {}
        self.came_count = 0
        self.statuses: list[station_pb2.StationStatus] = []
        self.results: list[command_pb2.CommandResult] = []
        self.changed = threading.Condition()
        self._ready = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="server")
        self._client.on_connect = lambda client, *_: client.subscribe("fieldpost/v1/up/+/#", 1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def command(self, command: command_pb2.Command) -> None:
        self._client.publish(commands_topic(STATION), command.SerializeToString(), qos=1)

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float = 15) -> None:
        with self.changed:
            assert self.changed.wait_for(is_so, timeout_s), "the server waited in vain"

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        with self.changed:
            kind = message.topic.rpartition("/")[2]
            if kind == "status":
                self.statuses.append(station_pb2.StationStatus.FromString(message.payload))
            elif kind == "results":
                self.results.append(command_pb2.CommandResult.FromString(message.payload))
            else:
                self._take_bundle(observation_pb2.Bundle.FromString(message.payload))
            self.changed.notify_all()

    def _take_bundle(self, bundle: observation_pb2.Bundle) -> None:
        first = bundle.observations[0].header
        receipt = receipt_pb2.Receipt(station=first.station, epoch=first.epoch)
        for observation in bundle.observations:
            self.came_count += 1
            sequence, content = observation.header.sequence, decode_checked(observation)
            rejection = self.answer(observation)
            if rejection is not None:
                receipt.rejections.append(rejection)
                continue
            assert self.held.setdefault(sequence, content) == content, "other bytes under the same identity"
            receipt.held_ranges.add(first_sequence=sequence, last_sequence=sequence)
        if not self.is_silent:
            self._client.publish(receipts_topic(first.station), receipt.SerializeToString(), qos=1)


class Station:
    """The agent's process, and what its settings and its buffer are."""

    def __init__(self, folder: Path, ports: list[int], instruments: str, **settings: object) -> None:
        self.folder = folder
        self.buffer_folder = folder / "buffer"
        self.config = folder / "station.toml"
        urls = [f"mqtt://127.0.0.1:{port}" for port in ports]
        lines = [
            f'station = "{STATION}"',
            f"broker_urls = {json.dumps(urls)}",
            f'buffer_folder = "{self.buffer_folder}"',
        ]
        # The clock of a test machine may not be synchronised, and is right all the same.
        settings = {"clock_wait_s": 0} | settings
        lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        self.config.write_text("\n".join(lines) + instruments)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config), *flags]
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self.process

    def finish(self, timeout_s: float = 30) -> None:
        """Runs until everything is delivered."""
        assert self.start("--exit-when-delivered").wait(timeout_s) == 0, self.log()

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def buffered(self) -> list[observation_pb2.Observation]:
        buffer = Buffer(self.buffer_folder, STATION)
        try:
            return buffer.read(1, buffer.last_sequence, 1 << 30).observations
        finally:
            buffer.close()


def simulated(count: int, name: str = "cl51", **changes: object) -> str:
    settings = {"speed_up": 0, "seed": 1, "count": count} | changes
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(
        [f'\n[[instruments]]\nname = "{name}"\nsource = "simulated"', "start_time = 2025-06-01", *lines, ""]
    )


@pytest.fixture
def serve(mosquitto_port: int) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Answer = hold_everything) -> Server:
        servers.append(Server(mosquitto_port, answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def make_station(tmp_path: Path, mosquitto_port: int) -> Iterator[Callable[..., Station]]:
    stations: list[Station] = []

    def make(instruments: str, **settings: object) -> Station:
        stations.append(Station(tmp_path, [mosquitto_port], instruments, **({"resend_after_s": 0.5} | settings)))
        return stations[-1]

    yield make
    for station in stations:
        if station.process is not None and station.process.poll() is None:
            station.process.kill()
            station.process.wait()


def wait_until_fewer_files(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while sum(1 for _ in folder.iterdir()) >= count:
        assert time.monotonic() < deadline, "the files stay where they are"
        time.sleep(0.005)


def origins(observations: list[observation_pb2.Observation]) -> list[str]:
    return [observation.header.origin for observation in observations]


def test_a_station_delivers_everything_and_ends(
    serve: Callable[..., Server], make_station: Callable[..., Station], shared_data: Path
) -> None:
    server = serve()
    replay = f'[[instruments]]\nname = "old"\nsource = "replay"\npath = "{shared_data}/ceilometer/vaisala"\n'
    station = make_station(simulated(100) + replay)
    station.finish()
    buffered = station.buffered()
    assert len(buffered) == 121
    assert server.held == {o.header.sequence: decode_checked(o) for o in buffered}
    assert server.came_count == 121, "nothing was sent twice"
    server.wait_until(lambda: bool(server.statuses) and not server.statuses[-1].is_online)
    status = server.statuses[-1]
    assert (status.last_sequence, status.backlog_count, status.quarantined_count) == (121, 0, 3)
    assert [(i.instrument, i.captured_count, i.quarantined_count) for i in status.instruments] == [
        ("cl51", 100, 0),
        ("old", 21, 3),
    ]
    assert any("could not be framed" in alarm for alarm in status.alarms)
    station.finish()
    assert server.came_count == 121, "a finished station has nothing more to say"


@pytest.mark.chaos
def test_kill_9_at_any_moment_loses_nothing_and_repeats_nothing_in_the_buffer(
    serve: Callable[..., Server], make_station: Callable[..., Station]
) -> None:
    server = serve()
    count = 1500
    station = make_station(simulated(count) + simulated(count, "other", seed=2), day_file_max_bytes=1 << 20)
    chance = random.Random(1)
    for kill in range(6):
        process = station.start()
        if kill % 3 == 2:
            time.sleep(chance.uniform(0.05, 0.3))  # while it starts; the moment of a kill is no argument
        else:
            wanted = min(len(server.held) + chance.randint(1, 400), 2 * count)
            server.wait_until(lambda wanted=wanted: len(server.held) >= wanted)
        process.send_signal(signal.SIGKILL)
        process.wait()
    station.finish()
    buffered = station.buffered()
    for instrument in ("cl51", "other"):
        numbers = [int(o.header.origin.rpartition("#")[2]) for o in buffered if o.header.instrument == instrument]
        assert numbers == list(range(count)), "lost or twice in the buffer"
    assert [o.header.sequence for o in buffered] == list(range(1, 2 * count + 1))
    assert server.held == {o.header.sequence: decode_checked(o) for o in buffered}


@pytest.mark.chaos
def test_a_drop_folder_under_kill_9_takes_every_file_once(
    serve: Callable[..., Server], make_station: Callable[..., Station], shared_data: Path, tmp_path: Path
) -> None:
    server = serve()
    drop_folder = tmp_path / "drop"
    drop_folder.mkdir()
    telegram = (shared_data / "ceilometer/vaisala/kenttarova_cl31_msg.dat").read_bytes()
    for number in range(FILE_COUNT):
        (drop_folder / f"{number:03d}.dat").write_bytes(telegram)
    settings = f'\n[[instruments]]\nname = "cl31"\nsource = "folder"\nfolder = "{drop_folder}"\n'
    station = make_station(settings + "settle_s = 0.0\npoll_interval_s = 0.05\n")
    for left in (350, 250, 150, 50):
        process = station.start()
        wait_until_fewer_files(drop_folder, left)
        process.send_signal(signal.SIGKILL)
        process.wait()
    known = len(server.statuses)
    process = station.start()
    wait_until_fewer_files(drop_folder, 1)
    server.wait_until(lambda: len(server.statuses) > known and server.statuses[-1].is_online)
    process.terminate()
    assert process.wait(10) == 0
    names = [origin.split(":")[1].split("@")[0] for origin in origins(station.buffered())]
    assert sorted(names) == [f"{number:03d}.dat" for number in range(FILE_COUNT)]


def test_without_a_receipt_a_station_sends_again_and_forgets_nothing(
    serve: Callable[..., Server], make_station: Callable[..., Station]
) -> None:
    server = serve()
    server.is_silent = True
    station = make_station(simulated(10))
    process = station.start("--exit-when-delivered")
    server.wait_until(lambda: server.came_count >= 12)
    assert process.poll() is None
    server.is_silent = False
    assert process.wait(15) == 0


def test_a_station_without_a_broker_keeps_everything_and_delivers_later_by_another_broker(
    start_mosquitto: Callable[[int], subprocess.Popen[bytes]],
    tmp_path: Path,
    mosquitto_port: int,
    serve: Callable[..., Server],
) -> None:
    dead_port = 9  # the discard port: nobody listens
    station = Station(tmp_path, [dead_port], simulated(20))
    process = station.start()
    deadline = time.monotonic() + 15
    while "source ended" not in station.log():
        assert time.monotonic() < deadline, station.log()
        time.sleep(0.02)
    process.terminate()
    assert process.wait(15) == 0
    report = json.loads((station.buffer_folder / "status.json").read_text())
    assert (report["backlog_count"], report["is_online"]) == (20, False)
    assert "no connection to mqtt://127.0.0.1:9" in str(report["alarms"])
    server = serve()
    Station(tmp_path, [dead_port, mosquitto_port], simulated(20)).finish()
    assert len(server.held) == 20


def test_a_broker_that_comes_back_gets_the_rest(
    start_mosquitto: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path, free_port: int
) -> None:
    broker = start_mosquitto(free_port)
    server = Server(free_port)
    station = Station(tmp_path, [free_port], simulated(4000, speed_up=30000, interval_s=15.0))
    process = station.start("--exit-when-delivered")
    server.wait_until(lambda: len(server.held) > 100)
    broker.kill()
    broker.wait()
    server.close()
    start_mosquitto(free_port)
    held = server.held
    server = Server(free_port)
    assert process.wait(30) == 0
    server.close()
    assert set(held) | set(server.held) == set(range(1, 4001))


def test_the_last_will_says_that_a_killed_station_is_gone(
    serve: Callable[..., Server], make_station: Callable[..., Station]
) -> None:
    server = serve()
    process = make_station(simulated(1)).start()
    server.wait_until(lambda: any(status.is_online for status in server.statuses))
    process.kill()
    process.wait()
    server.wait_until(lambda: not server.statuses[-1].is_online)
    assert not server.statuses[-1].HasField("report_time"), "written before, so without a time"


def test_an_unknown_instrument_is_kept_and_offered_again_at_the_next_start(
    serve: Callable[..., Server], make_station: Callable[..., Station]
) -> None:
    server = serve(
        lambda o: receipt_pb2.Rejection(
            sequence=o.header.sequence, reason=receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT, detail="register cl51"
        )
    )
    station = make_station(simulated(5))
    station.finish()
    server.wait_until(lambda: bool(server.statuses) and not server.statuses[-1].is_online)
    assert server.statuses[-1].rejected_count == 5
    assert any("UNKNOWN_INSTRUMENT: register cl51" in alarm for alarm in server.statuses[-1].alarms)
    server.answer = hold_everything
    station.finish()
    assert len(server.held) == 5


def test_a_registered_instrument_gets_through_at_the_next_connection_without_a_restart(
    tmp_path: Path, start_mosquitto: Callable[[int], subprocess.Popen[bytes]], free_port: int
) -> None:
    broker = start_mosquitto(free_port)
    server = Server(
        free_port,
        lambda o: receipt_pb2.Rejection(
            sequence=o.header.sequence, reason=receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT, detail="register cl51"
        ),
    )
    process = Station(tmp_path, [free_port], simulated(200), status_interval_s=1).start()
    server.wait_until(lambda: any(status.rejected_count == 200 for status in server.statuses))
    server.close()
    broker.kill()
    broker.wait()
    start_mosquitto(free_port)
    server = Server(free_port)
    server.wait_until(lambda: set(server.held) == set(range(1, 201)))
    process.terminate()
    assert process.wait(30) == 0
    server.close()


def test_a_sequence_that_the_server_has_under_other_bytes_is_given_anew(
    serve: Callable[..., Server], make_station: Callable[..., Station]
) -> None:
    taken = {2, 3}  # by an earlier life of this buffer

    def answer(observation: observation_pb2.Observation) -> receipt_pb2.Rejection | None:
        sequence = observation.header.sequence
        if sequence not in taken:
            return None
        return receipt_pb2.Rejection(
            sequence=sequence, reason=receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT, detail="x"
        )

    server = serve(answer)
    station = make_station(simulated(5))
    station.finish()
    by_sequence = {o.header.sequence: o for o in station.buffered()}
    assert sorted(server.held) == [1, 4, 5, 6, 7]
    assert {by_sequence[n].header.origin for n in (6, 7)} == {by_sequence[n].header.origin for n in (2, 3)}
    assert {decode_checked(o) for o in by_sequence.values()} == set(server.held.values())


def test_a_replay_command_is_done_once_and_answered_every_time(
    serve: Callable[..., Server], make_station: Callable[..., Station]
) -> None:
    server = serve()
    station = make_station(simulated(10))
    station.start()
    server.wait_until(lambda: len(server.held) == 10 and bool(server.statuses))
    epoch = server.statuses[-1].epoch
    command = command_pb2.Command(command_id="a" * 32)
    command.replay.epoch = epoch
    command.replay.ranges.add(first_sequence=3, last_sequence=5)
    command.replay.ranges.add(first_sequence=9, last_sequence=99)
    server.command(command)
    server.wait_until(lambda: server.came_count == 15)
    server.command(command)
    foreign = command_pb2.Command(command_id="b" * 32)
    foreign.replay.epoch = "0" * 32
    server.command(foreign)
    server.wait_until(lambda: len(server.results) == 3)
    assert [result.is_accepted for result in server.results] == [True, True, False]
    assert server.results[2].detail == f"expected a replay of epoch {epoch}, but got '{'0' * 32}'"
    known = len(server.statuses)
    server.command(command_pb2.Command(command_id="c" * 32, report=command_pb2.ReportCommand()))
    server.wait_until(lambda: len(server.statuses) > known)
    assert server.statuses[-1].command_count >= 1
    assert server.came_count == 15


def test_sigterm_ends_a_station_cleanly_and_the_commands_tell_how_it_is(
    serve: Callable[..., Server], make_station: Callable[..., Station], capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    station = make_station(simulated(3), status_interval_s=1)
    process = station.start()
    server.wait_until(lambda: any((s.last_sequence, s.backlog_count) == (3, 0) for s in server.statuses))
    config = ["--config", str(station.config)]
    assert run_cli(["run", *config]) == 75
    assert "another one holds its lock" in capsys.readouterr().err
    process.terminate()
    assert process.wait(10) == 0
    assert run_cli(["status", *config, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["backlog_count"], report["last_sequence"], report["is_online"]) == (0, 3, False)
    assert run_cli(["status", *config]) == 0
    assert "NOT RUNNING" in capsys.readouterr().out
    assert run_cli(["buffer", "list", *config, "--json"]) == 0
    assert [file["delivered_count"] for file in json.loads(capsys.readouterr().out)] == [3]
    assert run_cli(["buffer", "check", *config]) == 0
    assert "3 good" in capsys.readouterr().out
    day_file = next((station.buffer_folder / "days").glob("*.obs"))
    content = bytearray(day_file.read_bytes())
    content[100] ^= 1
    day_file.write_bytes(content)
    assert run_cli(["buffer", "check", *config, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["damaged"] == [[1, 1]]


def test_a_station_imports_nothing_heavy() -> None:
    imported = subprocess.run(
        [
            sys.executable,
            "-c",
            "import edge_agent.assembly, sys; print(*sorted(m for m in sys.modules if '.' not in m))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"numpy", "grpc", "torch", "pydantic", "sqlite3", "asyncio"} & set(imported)
