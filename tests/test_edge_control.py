"""The station's own door: real sockets, clients that hang or send nonsense, a killed agent's leftovers."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from other_users import let_others_in

import edge_agent.control
from edge_agent.buffer import Buffer
from edge_agent.cli import run as run_cli
from edge_agent.control import MAX_REQUEST_BYTES, Asked, ControlSocket, ask
from fieldpost.errors import BrokenStateError, RejectedError, TryAgainError
from fieldpost.v1 import command_pb2, observation_pb2

REPORT = command_pb2.Command(command_id="1" * 32, report=command_pb2.ReportCommand())


class Door:
    """A control socket, and a loop behind it that answers as the agent's does."""

    def __init__(self, path: Path, answer: Callable[[Asked], object], *, answer_timeout_s: float = 10) -> None:
        self.path = path
        self.asked: list[Asked] = []
        self._events: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._answer = answer
        self.socket = ControlSocket(path, self._events.put, answer_timeout_s=answer_timeout_s)
        self.socket.start()
        self._loop = threading.Thread(target=self._run)
        self._loop.start()

    def _run(self) -> None:
        while (asked := self._events.get()) is not None:
            self.asked.append(asked)
            self._answer(asked)

    def close(self) -> None:
        self.socket.stop()
        self._events.put(None)
        self._loop.join()


Open = Callable[..., Door]


@pytest.fixture
def open_door(tmp_path: Path) -> Iterator[Open]:
    doors: list[Door] = []

    def start(path: Path | None = None, answer: Callable[[Asked], object] | None = None, **more: Any) -> Door:
        doors.append(Door(path or tmp_path / "control.sock", answer or accept, **more))
        return doors[-1]

    yield start
    for door in doors:
        door.close()


def accept(asked: Asked) -> None:
    asked.answer(True, "", {"station": "magurele"} if asked.command.HasField("report") else None)


def test_the_agent_is_asked_and_its_answer_comes_back(open_door: Open) -> None:
    door = open_door()
    assert ask(door.path, REPORT, 5) == {"is_accepted": True, "detail": "", "report": {"station": "magurele"}}
    assert door.asked[0].command == REPORT
    assert door.path.stat().st_mode & 0o777 == 0o660


def test_a_refusal_says_why(open_door: Open) -> None:
    door = open_door(answer=lambda asked: asked.answer(False, "expected another epoch"))
    assert ask(door.path, REPORT, 5) == {"is_accepted": False, "detail": "expected another epoch"}


def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path, open_door: Open) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(TryAgainError, match="refused"):
        ask(path, REPORT, 5)
    door = open_door(path)
    assert ask(door.path, REPORT, 5)["is_accepted"]


def test_where_no_agent_runs_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(TryAgainError) as caught:
        ask(tmp_path / "control.sock", REPORT, 5)
    assert "is the agent running?" in caught.value.hint


def test_a_path_that_is_too_long_for_a_socket_works_all_the_same(tmp_path: Path, open_door: Open) -> None:
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    door = open_door(folder / "control.sock")
    assert ask(door.path, REPORT, 5)["is_accepted"]
    assert sorted(path.name for path in folder.iterdir()) == ["control.sock"]
    door.socket.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before, "descriptors stay open"


def test_a_client_that_hangs_is_given_up_and_the_next_one_is_served(
    open_door: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_agent.control, "CLIENT_TIMEOUT_S", 0.3)
    door = open_door()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(door.path))
        silent.sendall(b"\x00")
        begun_s = time.monotonic()
        assert ask(door.path, REPORT, 5)["is_accepted"]
        assert time.monotonic() - begun_s < 3


def test_a_client_that_sends_one_byte_at_a_time_gets_no_more_time(
    open_door: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_agent.control, "CLIENT_TIMEOUT_S", 0.4)
    door = open_door()
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(door.path))
        slow.sendall(struct.pack(">I", 1000))
        begun_s = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun_s < 5:
                slow.sendall(b"x")
                time.sleep(0.02)
    assert ask(door.path, REPORT, 5)["is_accepted"]


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x00\x00", struct.pack(">I", MAX_REQUEST_BYTES + 1), struct.pack(">I", 10) + b"short", b"\xff" * 64],
)
def test_nonsense_costs_its_sender_the_connection_and_nobody_else_anything(open_door: Open, sent: bytes) -> None:
    door = open_door()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(door.path))
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            assert client.recv(100) == b""
    assert ask(door.path, REPORT, 5)["is_accepted"]
    assert len(door.asked) == 1, "nonsense reached the agent"


def test_bytes_that_are_no_command_are_answered_with_a_reason(open_door: Open) -> None:
    door = open_door()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(door.path))
        client.sendall(struct.pack(">I", 4) + b"\xff\xff\xff\xff")
        (length,) = struct.unpack(">I", client.recv(4))
        answer = json.loads(client.recv(length))
    assert not answer["is_accepted"]
    assert "fieldpost.v1.Command" in answer["detail"]
    assert door.asked == []


def test_an_agent_that_does_not_answer_in_time_is_said_to(open_door: Open) -> None:
    door = open_door(answer=lambda asked: None, answer_timeout_s=0.2)
    answer = ask(door.path, REPORT, 5)
    assert answer == {"is_accepted": False, "detail": "expected the agent's answer within 0.2 s, but got none"}
    door.asked[0].answer(True)  # too late, and harmless


def test_whoever_waits_while_the_agent_ends_is_told_so(open_door: Open) -> None:
    door = open_door(answer=lambda asked: threading.Thread(target=door.socket.stop).start())
    assert ask(door.path, REPORT, 5)["detail"] == "the agent is ending"
    door.asked[0].answer(True)  # nobody waits any more


def test_a_request_that_is_too_large_is_not_even_sent(tmp_path: Path) -> None:
    command = command_pb2.Command(take_model=command_pb2.TakeModelCommand(package=bytes(MAX_REQUEST_BYTES)))
    with pytest.raises(RejectedError, match="at most"):
        ask(tmp_path / "control.sock", command, 5)


def test_a_large_request_within_the_bound_arrives_whole(open_door: Open) -> None:
    door = open_door()
    package = os.urandom(4 << 20)
    command = command_pb2.Command(take_model=command_pb2.TakeModelCommand(package=package))
    assert ask(door.path, command, 10)["is_accepted"]
    assert door.asked[0].command.take_model.package == package


def test_a_folder_that_is_gone_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(BrokenStateError, match=r"control\.sock"):
        ControlSocket(tmp_path / "gone" / "control.sock", lambda asked: None).start()


def test_a_folder_that_has_gone_does_not_keep_the_agent_from_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "buffer"
    folder.mkdir()
    door = Door(folder / "control.sock", accept)
    folder.rename(tmp_path / "aside")
    folder.write_bytes(b"no folder")
    door.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_may_not_ask_and_is_told_what_to_do(open_door: Open, tmp_path: Path) -> None:
    door = open_door()
    let_others_in(tmp_path)
    program = (
        "import os, sys; from pathlib import Path; from edge_agent.control import ask\n"
        "from fieldpost.errors import RejectedError; from fieldpost.v1 import command_pb2\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: ask(Path(sys.argv[1]), command_pb2.Command(), 5)\n"
        "except RejectedError as error: print(error, error.hint)"
    )
    command = [sys.executable, "-c", program, str(door.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "Permission denied" in done.stdout, done.stderr
    assert "usermod -aG fieldpost" in done.stdout


# --- a whole agent, and the commands of the command line ---


class Agent:
    """The agent's process, without any broker to reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "station.toml"
        self.buffer = folder / "buffer"
        self.config.write_text(
            f'station = "magurele"\nbroker_urls = ["mqtt://127.0.0.1:1"]\nbuffer_folder = "{self.buffer}"\n'
            '[[instruments]]\nname = "cl51"\nsource = "simulated"\nstart_time = 2025-06-01T00:00:00Z\n'
            "speed_up = 0\ncount = 20\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            command = [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + 20
        while self.report().get("last_sequence", 0) < 20:
            assert time.monotonic() < deadline_s, (self.folder / "agent.log").read_text()
            time.sleep(0.05)

    def report(self) -> dict[str, Any]:
        try:
            report: dict[str, Any] = ask(self.buffer / "control.sock", report_now(), 5).get("report", {})
            return report
        except TryAgainError:
            return {}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None


def report_now() -> command_pb2.Command:
    return command_pb2.Command(command_id=os.urandom(16).hex(), report=command_pb2.ReportCommand())


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    agent.start()
    yield agent
    agent.stop(signal.SIGKILL)


def test_the_commands_ask_the_running_agent(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(agent.config)]
    assert run_cli(["status", *config, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["is_live"], report["last_sequence"], report["backlog_count"]) == (True, 20, 20)
    assert run_cli(["status", *config]) == 0
    page = capsys.readouterr().out
    assert "OFFLINE" in page
    assert "20 observations not yet receipted" in page
    assert "ALARM" in page, "that there is no broker is an alarm"

    assert run_cli(["replay", "--from", "3", "--to", "5", *config]) == 0
    assert run_cli(["replay", "--from", "300", "--to", "500", *config]) == 1
    assert "the station refused: expected observations that the buffer still has" in capsys.readouterr().err
    assert run_cli(["replay", "--since", "2000-01-01", *config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_accepted"]

    assert run_cli(["set", "status_interval_s", "7", *config]) == 0
    assert run_cli(["set", "status_interval_s", "--reset", *config]) == 0
    assert run_cli(["set", "station", "other", *config]) == 1
    assert "may be changed from afar" in capsys.readouterr().err
    package = agent.folder / "model"
    package.write_bytes(b"no model")
    assert run_cli(["model", "take", str(package), "--signature", str(package), *config]) == 1


def test_a_killed_agents_door_opens_again_at_the_next_start(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.stop(signal.SIGKILL)
    assert (agent.buffer / "control.sock").exists()
    assert run_cli(["set", "status_interval_s", "7", "--config", str(agent.config)]) == 75
    assert "is the agent running?" in capsys.readouterr().err
    agent.start()
    agent.stop()
    assert not (agent.buffer / "control.sock").exists(), "an agent that ends cleanly closes its door"


def test_without_an_agent_the_status_says_since_when(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.stop()
    assert run_cli(["status", "--config", str(agent.config)]) == 0
    assert "NOT RUNNING" in capsys.readouterr().out


def test_an_agent_that_hangs_is_said_to_run_without_an_answer(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.operation.actions.ASK_TIMEOUT_S", 0.3)
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    assert run_cli(["status", "--config", str(agent.config)]) == 0
    page = capsys.readouterr().out
    assert "NO ANSWER" in page
    assert "NOT RUNNING" not in page


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("words", ["status", "buffer list", "buffer check", "replay --from 1 --to 2"])
def test_whoever_may_not_look_into_the_buffer_is_told_what_to_do(delivered: Path, words: str) -> None:
    let_others_in(delivered.parent)
    (delivered.parent / "buffer").chmod(0o750)
    program = (
        "import os, shutil, sys; from edge_agent.cli import main\n"
        "from edge_agent.operation import actions, check_disk\n"
        "import edge_agent.buffer, edge_agent.storage.inspection  # what another user cannot import\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, *words.split(), "--config", str(delivered)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "usermod -aG fieldpost" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_station_that_never_ran_has_no_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent(tmp_path)
    assert run_cli(["status", "--config", str(agent.config)]) == 75
    assert run_cli(["replay", "--from", "1", "--to", "2", "--config", str(agent.config)]) == 2
    assert "has the agent run yet?" in capsys.readouterr().err


# --- replay without an agent ---


@pytest.fixture
def delivered(tmp_path: Path) -> Path:
    """The settings of a station whose ten observations are all delivered."""
    buffer = Buffer(tmp_path / "buffer", "magurele")
    observations = [observation_pb2.Observation(payload=b"%d" % number) for number in range(10)]
    for number, observation in enumerate(observations):
        observation.header.instrument = "cl51"
        observation.header.capture_clock.wall_time.FromSeconds(1_780_000_000 + 60 * number)
    buffer.append(observations, 1_780_000_000)
    buffer.deliver([(1, 10)])
    buffer.close()
    config = tmp_path / "station.toml"
    lines = ('station = "magurele"', 'broker_urls = ["mqtt://127.0.0.1:1"]', f'buffer_folder = "{tmp_path}/buffer"')
    config.write_text("\n".join(lines))
    return config


def undelivered(config: Path) -> list[tuple[int, int]]:
    buffer = Buffer(config.parent / "buffer", "magurele")
    try:
        return list(buffer.settled().gaps(1, buffer.last_sequence))
    finally:
        buffer.close()


def test_a_replay_without_an_agent_waits_for_its_next_start(
    delivered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert undelivered(delivered) == []
    assert run_cli(["replay", "--from", "3", "--to", "99", "--config", str(delivered)]) == 0
    assert capsys.readouterr().out == "no agent is running: 8 observations will go again when it starts\n"
    assert undelivered(delivered) == [(3, 10)]


def test_a_replay_by_time_takes_what_was_captured_then(delivered: Path) -> None:
    # 1,780,000,000 s is 2026-05-28T20:26:40Z; the third observation came two minutes later.
    span = ["--since", "2026-05-28T20:28:40Z", "--until", "2026-05-28T20:30:40"]
    assert run_cli(["replay", *span, "--config", str(delivered)]) == 0
    assert undelivered(delivered) == [(3, 4)]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--from", "1"],
        ["--until", "2026-05-28"],
        ["--from", "1", "--to", "2", "--since", "2026-05-28"],
        ["--from", "5", "--to", "2"],
        ["--from", "50", "--to", "60"],
    ],
)
def test_a_replay_of_nothing_is_wrong_usage(delivered: Path, words: list[str]) -> None:
    assert run_cli(["replay", *words, "--config", str(delivered)]) == 2
    assert undelivered(delivered) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_root_does_to_a_buffer_leaves_no_file_that_its_owner_cannot_write(delivered: Path) -> None:
    buffer = delivered.parent / "buffer"
    for path in (buffer, *buffer.rglob("*")):
        os.chown(path, 65534, 65534)
    let_others_in(delivered.parent)
    (buffer / "lock").unlink()
    words = ["replay", "--from", "3", "--to", "5", "--config", str(delivered)]
    subprocess.run([sys.executable, "-m", "edge_agent", *words], check=True, timeout=30)
    assert {path.stat().st_uid for path in (buffer, *buffer.rglob("*"))} == {65534}
