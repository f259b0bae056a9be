"""What `fieldpost-agent check` finds: in made-up facts, and in real stations, disks, brokers and certificates."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from other_users import let_others_in
from tls_support import Brokers, brokers, certificates, issue  # noqa: F401  (brokers and certificates are fixtures)

from edge_agent.buffer import Buffer
from edge_agent.cli import run as run_cli
from edge_agent.control import ControlSocket
from edge_agent.link.certificate_facts import CertificateFacts
from edge_agent.operation.check import check_station
from edge_agent.operation.check_brokers import call_brokers
from edge_agent.operation.check_disk import buffer_facts, bytes_per_day, disk_facts, is_locked, last_captures
from edge_agent.operation.check_ports import port_problem
from edge_agent.operation.findings import BufferFacts, DiskFacts, judge_buffer, judge_clock, judge_disk
from edge_agent.operation.findings_around import (
    AgentFacts,
    BrokerFacts,
    InstrumentFacts,
    judge_agent,
    judge_brokers,
    judge_certificate,
    judge_instrument,
)
from edge_agent.operation.privileges import may_use
from edge_agent.settings import AgentSettings, load_settings
from edge_agent.source_settings import TcpClientSettings, TcpServerSettings, UdpSettings
from fieldpost.findings import Finding
from fieldpost.v1 import observation_pb2

NOW_UNIX_S = 1_795_000_000.0
DAY_S = 86400.0


def levels(findings: Iterator[Finding] | list[Finding]) -> list[str]:
    found = list(findings)
    assert all(finding.hint for finding in found if finding.level == "FAIL"), "a failure without a hint helps nobody"
    return [finding.level for finding in found]


# --- judgements: facts in, findings out ---


DISK = DiskFacts(
    kind="SD card or eMMC (mmcblk0p2)",
    file_system="ext4",
    free_bytes=100_000_000_000,
    floor_bytes=268_435_456,
    buffer_bytes=1_000_000_000,
    bytes_per_day=6_000_000.0,
    retention_days=1096,
)


@pytest.mark.parametrize(
    ("changes", "expected", "says"),
    [
        ({}, ["OK"], "6.0 MB a day: room for all 3.0 years of retention"),
        ({"bytes_per_day": None}, ["OK"], "after the first whole day"),
        ({"bytes_per_day": 312e6}, ["WARN"], "full in 320 days"),
        ({"free_bytes": 200_000_000}, ["FAIL"], "less than the 268 MB"),
        ({"file_system": "tmpfs"}, ["FAIL", "OK"], "may forget everything"),
        ({"file_system": "nfs4"}, ["WARN", "OK"], "without its network"),
    ],
)
def test_a_disk_is_judged_by_what_it_remembers_and_for_how_long_it_lasts(
    changes: dict[str, object], expected: list[str], says: str
) -> None:
    findings = list(judge_disk(dataclasses.replace(DISK, **changes)))  # type: ignore[arg-type]
    assert levels(findings) == expected
    assert any(says in finding.text for finding in findings), findings


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (BufferFacts(folder="/b", exists=False), ["FAIL"]),
        (BufferFacts(folder="/b", exists=True, is_usable=False, account="fieldpost"), ["FAIL"]),
        (BufferFacts(folder="/b", exists=True, newest_file="x.obs", good_count=9), ["OK"]),
        (BufferFacts(folder="/b", exists=True, newest_file="x.obs", good_count=9, damaged_count=1), ["FAIL"]),
        (BufferFacts(folder="/b", exists=True, set_aside_count=1, quarantined_count=2), ["OK", "WARN", "WARN"]),
    ],
)
def test_a_buffer_is_judged_by_whether_it_can_be_written_and_read(facts: BufferFacts, expected: list[str]) -> None:
    assert levels(judge_buffer(facts)) == expected


@pytest.mark.parametrize(
    ("is_synchronised", "now_unix_s", "has_battery_clock", "expected"),
    [
        (True, NOW_UNIX_S, True, ["OK"]),
        (False, NOW_UNIX_S, True, ["WARN"]),
        (None, NOW_UNIX_S, True, ["WARN"]),
        (True, NOW_UNIX_S, False, ["OK", "WARN"]),
        (False, 3600.0, True, ["FAIL"]),
    ],
)
def test_a_clock_is_judged_by_whether_it_is_right_and_stays_so(
    is_synchronised: bool | None, now_unix_s: float, has_battery_clock: bool, expected: list[str]
) -> None:
    found = judge_clock(is_synchronised=is_synchronised, now_unix_s=now_unix_s, has_battery_clock=has_battery_clock)
    assert levels(found) == expected


CERTIFICATE = CertificateFacts("magurele", "stations-ca", NOW_UNIX_S - DAY_S, NOW_UNIX_S + 300 * DAY_S)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "OK"),
        ({"valid_until_unix_s": NOW_UNIX_S + 10 * DAY_S}, "WARN"),
        ({"valid_until_unix_s": NOW_UNIX_S - 1}, "FAIL"),
        ({"valid_from_unix_s": NOW_UNIX_S + 1}, "FAIL"),
        ({"common_name": "payerne"}, "FAIL"),
    ],
)
def test_a_certificate_is_judged_by_its_name_and_its_days(changes: dict[str, object], expected: str) -> None:
    facts = dataclasses.replace(CERTIFICATE, **changes)  # type: ignore[arg-type]
    assert levels(judge_certificate(facts, "magurele", NOW_UNIX_S)) == [expected]


INSTRUMENT = InstrumentFacts(
    name="cl61",
    source="folder",
    path="/srv/cl61",
    is_in_unit=True,
    account="fieldpost",
    last_capture_unix_s=NOW_UNIX_S - 60,
    silent_after_s=3600.0,
)


@pytest.mark.parametrize(
    ("changes", "expected", "hint"),
    [
        ({}, ["OK"], ""),
        ({"is_there": False}, ["FAIL"], "sudo fieldpost-agent install makes it"),
        ({"is_there": False, "source": "serial"}, ["FAIL"], "is it plugged in?"),
        ({"is_there": False, "source": "serial", "last_capture_unix_s": None}, ["FAIL"], "is it plugged in?"),
        ({"is_there": False, "source": "replay"}, ["FAIL"], "correct its path in the settings"),
        ({"is_usable": False, "source": "replay"}, ["FAIL"], "chmod -R a+rX /srv/cl61"),
        ({"problem": "no answer", "source": "tcp-client"}, ["FAIL"], "compare host and port"),
        ({"is_usable": False}, ["FAIL"], "chmod 2770 /srv/cl61"),
        ({"is_usable": False, "source": "serial"}, ["FAIL"], "usermod -aG dialout fieldpost"),
        ({"is_in_unit": False}, ["FAIL"], "sudo fieldpost-agent install"),
        ({"last_capture_unix_s": None}, ["WARN"], "is it switched on"),
        ({"last_capture_unix_s": NOW_UNIX_S - 3601}, ["WARN"], "look at the instrument"),
        ({"last_capture_unix_s": NOW_UNIX_S - 3601, "silent_after_s": None}, ["OK"], ""),
        ({"port": 514}, ["FAIL"], "take one from 1024 on"),
    ],
)
def test_an_instrument_is_judged_by_whether_it_can_be_heard_and_is(
    changes: dict[str, object], expected: list[str], hint: str
) -> None:
    findings = list(judge_instrument(dataclasses.replace(INSTRUMENT, **changes), NOW_UNIX_S))  # type: ignore[arg-type]
    assert levels(findings) == expected
    assert hint in findings[0].hint


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (AgentFacts(has_answered=True, is_running=True, is_online=True), ["OK"]),
        (AgentFacts(has_answered=True, is_running=True, alarms=["cl61: silent"]), ["WARN", "WARN"]),
        (AgentFacts(has_answered=False, is_running=True), ["WARN"]),
        (AgentFacts(has_answered=False, is_running=False), ["FAIL"]),
        (AgentFacts(has_answered=True, is_running=True, is_online=True, is_enabled=False), ["OK", "FAIL"]),
    ],
)
def test_an_agent_is_judged_by_whether_it_runs_and_will_after_the_next_power_cut(
    facts: AgentFacts, expected: list[str]
) -> None:
    assert levels(judge_agent(facts)) == expected


def test_one_good_broker_is_enough_but_the_others_are_told() -> None:
    good, bad = (
        BrokerFacts(url="mqtts://a:8883", reached="connected"),
        BrokerFacts(url="mqtts://b:8883", failure="down"),
    )
    assert levels(judge_brokers([good, bad])) == ["OK", "WARN"]
    assert levels(judge_brokers([bad])) == ["FAIL"]
    assert levels(judge_brokers([dataclasses.replace(good, url="mqtt://a:1883")])) == ["OK", "WARN"]


@pytest.mark.parametrize(
    ("days_back", "expected"),
    [([], None), ([0], None), ([1], 100.0), ([0, 1, 2, 3], 100.0), ([2, 4], 50.0), ([1, 30], 100.0), ([9], None)],
)
def test_the_rate_is_that_of_the_last_whole_days(days_back: list[int], expected: float | None) -> None:
    today = date(2026, 11, 21)
    sizes = Counter({today - timedelta(days=back): 100 for back in days_back})
    assert bytes_per_day(sizes, today) == expected


# --- facts of real stations ---


class Station:
    """Settings, and a buffer with observations of yesterday and before."""

    def __init__(self, folder: Path, *broker_urls: str, more: str = "") -> None:
        self.folder = folder
        self.buffer = folder / "buffer"
        self.drop = folder / "drop"
        self.drop.mkdir()
        self.config = folder / "station.toml"
        self.config.write_text(
            f'station = "station-a"\nbroker_urls = {json.dumps(list(broker_urls) or ["mqtt://127.0.0.1:1"])}\n'
            f'buffer_folder = "{self.buffer}"\n{more}\n'
            f'[[instruments]]\nname = "cl61"\nsource = "folder"\nfolder = "{self.drop}"\n'
            '[[instruments]]\nname = "cl31"\nsource = "serial"\ndevice = "/dev/null"\npayload_format = "vaisala-cl"\n'
        )

    def fill(self, *days_back: int) -> None:
        buffer = Buffer(self.buffer, "station-a")
        for back in days_back:
            at_unix_s = time.time() - back * DAY_S
            observation = observation_pb2.Observation(payload=b"x" * 1000)
            observation.header.instrument = "cl61"
            observation.header.capture_clock.wall_time.FromSeconds(int(at_unix_s))
            buffer.append([observation], at_unix_s)
        buffer.close()

    def settings(self) -> AgentSettings:
        return load_settings(self.config, {})

    def findings(self) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        for finding in check_station(self.config, {}):
            found.setdefault(finding.subject, []).append(finding)
        return found


@pytest.fixture
def station(tmp_path: Path) -> Station:
    return Station(tmp_path)


def test_a_station_that_never_ran_is_told_what_to_do(station: Station, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["check", "--config", str(station.config)]) == 1
    said = capsys.readouterr().out
    assert "FAIL  agent: not running: nothing is recorded\n      -> sudo systemctl start fieldpost-agent" in said
    assert "FAIL  buffer: there is no folder" in said
    assert "WARN  instrument cl61: no observation yet" in said
    assert "FAIL  broker mqtt://127.0.0.1:1: 127.0.0.1 is there, but refuses connections on port 1" in said
    assert "things wrong" in said


def test_a_program_reads_the_same_as_a_person(station: Station, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["check", "--config", str(station.config), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {tuple(finding) for finding in findings} == {("level", "subject", "text", "hint")}


def test_settings_that_make_no_sense_end_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "station.toml"
    config.write_text('station = "a"\nbuffer_foldr = "/b"\n')
    assert run_cli(["check", "--config", str(config)]) == 1
    assert "did you mean buffer_folder?" in capsys.readouterr().out


def test_the_disk_and_the_rate_are_those_of_the_buffer(station: Station) -> None:
    station.fill(3, 2, 1)
    facts = disk_facts(station.settings(), time.time())
    assert facts.bytes_per_day == pytest.approx(1100, abs=100)
    assert facts.buffer_bytes > 3000
    assert facts.file_system != "unknown file system"
    assert abs(facts.free_bytes - shutil.disk_usage(station.folder).free) < 1 << 30


def test_memory_is_known_for_no_disk() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    settings = AgentSettings(station="a", broker_urls=("mqtt://a",), buffer_folder=Path("/dev/shm/not-there-yet"))
    assert "FAIL" in levels(judge_disk(disk_facts(settings, time.time())))


def test_a_damaged_record_is_found(station: Station) -> None:
    station.fill(1, 1, 1)
    assert station.findings()["buffer"][0].level == "OK"
    day_file = next((station.buffer / "days").glob("*.obs"))
    content = bytearray(day_file.read_bytes())
    content[200] ^= 1
    day_file.write_bytes(content)
    before = {path: path.read_bytes() for path in station.buffer.rglob("*") if path.is_file()}
    (finding,) = station.findings()["buffer"]
    assert (finding.level, finding.text.startswith("1 record of")) == ("FAIL", True)
    assert {path: path.read_bytes() for path in station.buffer.rglob("*") if path.is_file()} == before, "it only looks"


def test_without_an_agent_the_buffer_tells_when_an_instrument_was_heard_last(station: Station) -> None:
    station.fill(2, 1)
    assert last_captures(station.buffer, {"cl61", "cl31"}) == pytest.approx({"cl61": time.time() - DAY_S}, abs=60)
    (finding,) = station.findings()["instrument cl61"]
    assert (finding.level, "nothing for 24 h" in finding.text) == ("WARN", True)


def test_a_held_buffer_means_a_running_agent(station: Station) -> None:
    assert not is_locked(station.buffer)
    buffer = Buffer(station.buffer, "station-a")
    assert is_locked(station.buffer)
    assert station.findings()["agent"][0].text == "running, but it does not answer"
    buffer.close()
    assert not is_locked(station.buffer)


def test_a_missing_drop_folder_and_a_missing_device_are_found(station: Station) -> None:
    station.drop.rmdir()
    station.config.write_text(station.config.read_text().replace("/dev/null", "/dev/ttyUSB77"))
    findings = station.findings()
    assert findings["instrument cl61"][0].text == f"there is no {station.drop}"
    assert findings["instrument cl31"][0].text == "there is no /dev/ttyUSB77"


def network_problems(tcp_client_port: int, tcp_server_port: int, udp_port: int) -> list[str]:
    return [
        port_problem(TcpClientSettings(name="a", source="tcp-client", host="127.0.0.1", port=tcp_client_port)),
        port_problem(TcpServerSettings(name="b", source="tcp-server", address="127.0.0.1", port=tcp_server_port)),
        port_problem(UdpSettings(name="c", source="udp", address="127.0.0.1", port=udp_port)),
    ]


def test_ports_are_tried_as_the_sources_would() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        tcp_port, udp_port = tcp.getsockname()[1], udp.getsockname()[1]
        assert network_problems(tcp_port, tcp_port, udp_port) == [
            "",
            f"port {tcp_port} is in use by another program",
            f"port {udp_port} is in use by another program",
        ]
    assert network_problems(tcp_port, tcp_port, udp_port) == [
        f"127.0.0.1 is there, but refuses connections on port {tcp_port}",
        "",
        "",
    ]


def test_a_host_and_an_address_that_are_nobodys_are_named() -> None:
    nobody = TcpClientSettings(name="a", source="tcp-client", host="instrument.invalid", port=4001)
    assert port_problem(nobody) == "there is no host instrument.invalid"
    other = TcpServerSettings(name="b", source="tcp-server", address="192.0.2.1", port=4001)
    assert port_problem(other) == "192.0.2.1 is no address of this computer"


def test_every_kind_of_source_is_looked_at(station: Station) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        with station.config.open("a") as config:
            config.write(
                f'[[instruments]]\nname = "ct25k"\nsource = "tcp-client"\nhost = "127.0.0.1"\nport = 1\n'
                'payload_format = "vaisala-cl"\n'
                f'[[instruments]]\nname = "rain"\nsource = "tcp-server"\nport = {taken.getsockname()[1]}\n'
                'address = "127.0.0.1"\npayload_format = "line"\n'
                f'[[instruments]]\nname = "weather"\nsource = "udp"\nport = {udp.getsockname()[1]}\n'
                'address = "127.0.0.1"\npayload_format = "line"\n'
                '[[instruments]]\nname = "old"\nsource = "replay"\npath = "/nowhere"\n'
            )
        findings = station.findings()
        held = Buffer(station.buffer, "station-a")
        while_running = station.findings()
        held.close()
    found = {name: levels(findings[f"instrument {name}"]) for name in ("cl31", "ct25k", "rain", "weather", "old")}
    assert found == {"cl31": ["WARN"], "ct25k": ["FAIL"], "rain": ["FAIL"], "weather": ["FAIL"], "old": ["FAIL"]}
    assert levels(while_running["instrument rain"]) == ["WARN"], "the agent itself has that port"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look with another user's rights")
def test_root_looks_with_the_rights_of_the_services_user(station: Station) -> None:
    let_others_in(station.folder)
    station.drop.chmod(0o700)
    asked = [(station.drop, os.W_OK), (Path("/etc/passwd"), os.R_OK), (Path("/etc/passwd"), os.W_OK)]
    assert may_use(asked, "nobody") == [False, True, False]
    os.chown(station.drop, 65534, 65534)
    assert may_use(asked, "nobody") == [True, True, False]
    station.fill(1)
    assert not buffer_facts(station.settings(), "nobody").is_usable


@pytest.mark.parametrize("is_there", [True, False])
def test_the_quick_look_is_tried_where_it_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    if is_there:
        pytest.importorskip("ai_edge_litert", reason="the quick look is not installed")
    else:
        monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (finding,) = Station(tmp_path, more='quick_look = "on"').findings()["quick look"]
    assert finding.level == ("OK" if is_there else "FAIL")


# --- brokers ---


@pytest.mark.mosquitto
def test_without_an_agent_the_check_connects_and_subscribes(
    tmp_path: Path, mosquitto_port: int, start_mosquitto: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    station = Station(tmp_path, f"mqtt://127.0.0.1:{mosquitto_port}")
    (facts,) = call_brokers(station.settings(), is_agent_running=False)
    assert (facts.failure, facts.reached) == ("", "connected and subscribed")
    (facts,) = call_brokers(station.settings(), is_agent_running=True)
    assert (facts.failure, facts.reached) == ("", "it answers; more is not tried while the agent runs")


@pytest.mark.mosquitto
def test_the_check_of_a_running_station_does_not_throw_it_off(tmp_path: Path, mosquitto_port: int) -> None:
    station = Station(tmp_path, f"mqtt://127.0.0.1:{mosquitto_port}")
    one_instrument, _, _ = station.config.read_text().rpartition("[[instruments]]")
    station.config.write_text(one_instrument)
    with (tmp_path / "agent.log").open("wb") as log:
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(station.config)]
        agent = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + 20
        while (said := station.findings()["agent"][0]).text != "running and online":
            assert time.monotonic() < deadline_s, said
            time.sleep(0.1)
        station.findings()
        assert station.findings()["agent"][0].text == "running and online"
        assert (tmp_path / "agent.log").read_text().count('"connected"') == 1
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0


def tls_settings(certificates: Path, port: int, name: str, *, host: str = "localhost") -> str:  # noqa: F811
    files = {"ca_file": "stations-ca.crt", "certificate_file": f"{name}.crt", "key_file": f"{name}.key"}
    return "\n".join(f'{key} = "{certificates / file}"' for key, file in files.items())


@pytest.mark.mosquitto
@pytest.mark.parametrize("is_agent_running", [True, False])
@pytest.mark.parametrize(
    ("name", "host", "says"),
    [
        ("station-a", "localhost", ""),
        ("station-a", "127.0.0.1", "made out to another name than 127.0.0.1"),
        ("forged", "localhost", "refused the station's certificate"),
        ("expired", "localhost", "refused the station's certificate: it has expired"),
    ],
)
def test_what_is_wrong_with_tls_is_named(
    tmp_path: Path,
    certificates: Path,  # noqa: F811
    brokers: Brokers,  # noqa: F811
    name: str,
    host: str,
    says: str,
    is_agent_running: bool,
) -> None:
    if not (certificates / "expired.crt").exists():
        issue(certificates, "expired", common_name="station-a", ends=timedelta(minutes=-1))
    port = brokers.start()
    station = Station(tmp_path, f"mqtts://{host}:{port}", more=tls_settings(certificates, port, name))
    (facts,) = call_brokers(station.settings(), is_agent_running=is_agent_running)
    assert says in facts.failure
    assert bool(facts.failure) == bool(says)


def test_a_certificate_is_read_and_one_that_is_missing_is_named(
    tmp_path: Path,
    certificates: Path,  # noqa: F811
) -> None:
    station = Station(tmp_path, "mqtts://localhost:1", more=tls_settings(certificates, 1, "station-a"))
    (finding,) = station.findings()["certificate"]
    assert (finding.level, finding.text.startswith("the certificate expires on")) == ("WARN", True)
    station.config.write_text(station.config.read_text().replace("station-a.crt", "gone.crt"))
    findings = station.findings()
    assert "No such file" in findings["certificate"][0].text
    assert "docs/station.md" in findings["certificate"][0].hint
    assert findings["broker mqtts://localhost:1"][0].level == "FAIL"


def test_an_unknown_host_and_a_broker_that_says_nothing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.operation.check_brokers.CALL_TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        station = Station(tmp_path, "mqtt://broker.invalid", f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
        unknown, mute = call_brokers(station.settings(), is_agent_running=False)
    assert "broker.invalid" in unknown.failure
    assert "did not answer within 0.5 s" in mute.failure


def test_the_check_asks_a_running_agent_for_its_alarms(station: Station) -> None:
    station.buffer.mkdir()
    report = {
        "is_online": True,
        "alarms": ["the sky is falling"],
        "instruments": [
            {"instrument": "cl61", "last_capture_time": datetime.now(UTC).isoformat()},
            {"instrument": "cl31", "last_capture_time": None},
        ],
    }
    door = ControlSocket(
        station.buffer / "control.sock",
        lambda asked: threading.Thread(target=asked.answer, args=(True, "", report)).start(),
    )
    door.start()
    try:
        findings = station.findings()
    finally:
        door.stop()
    assert findings["alarm"][0].text == "the sky is falling"
    assert findings["instrument cl61"][0].level == "OK"
    assert findings["instrument cl31"][0].text == "no observation yet"
