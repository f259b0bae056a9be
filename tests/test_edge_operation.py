"""Running a station for years: its installation, the hardened service, the word to systemd, metrics, and the guide."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli import CONFIG_FILE, parser
from edge_agent.cli import run as run_cli
from edge_agent.operation.install_texts import SERVICE, folders_text, service_text, settings_text
from edge_agent.operation.metrics import exposition, write_metrics
from edge_agent.operation.notify import Notifier
from edge_agent.operation.status_text import Presence, status_page
from edge_agent.report import InstrumentReport, Report, to_dict
from edge_agent.settings import load_settings, parse_settings
from edge_agent.storage.day_file import DayFile
from fieldpost.v1 import observation_pb2
from fieldpost.words import count, size, span

ROOT = Path(__file__).resolve().parent.parent
NOW_UNIX_S = 1_795_000_000.0

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


# --- installation ---


FIRST = ["--station", "magurele", "--broker", "mqtts://broker-a:8883", "--broker", "mqtts://broker-b:8883"]
FOLDER = ["--instrument-folder", "cl61=/srv/sftp/cl61/upload"]


def install(root: Path, *words: str) -> int:
    return run_cli(["install", "--root", str(root), "--program", "/usr/bin/true", *words])


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_installation_makes_everything_a_station_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path, *FIRST, *FOLDER) == 0
    settings = load_settings(tmp_path / "etc/fieldpost/station.toml", {})
    assert (settings.station, settings.broker_urls) == ("magurele", ("mqtts://broker-a:8883", "mqtts://broker-b:8883"))
    assert [instrument.name for instrument in settings.instruments] == ["cl61"]
    assert str(settings.certificate_file) == "/var/lib/fieldpost/identity/station.pem"
    unit = (tmp_path / "etc/systemd/system" / SERVICE).read_text()
    assert f"ExecStart=/usr/bin/true run --config {CONFIG_FILE}\n" in unit
    drop_in = (tmp_path / f"etc/systemd/system/{SERVICE}.d/10-folders.conf").read_text()
    assert "ReadWritePaths=-/srv/sftp/cl61/upload\n" in drop_in
    assert "u fieldpost" in (tmp_path / "etc/sysusers.d/fieldpost.conf").read_text()
    assert "usbserial" in (tmp_path / "etc/modules-load.d/fieldpost.conf").read_text()
    modes = {path: (tmp_path / path).stat().st_mode & 0o7777 for path in ("var/lib/fieldpost/identity",)}
    assert modes == {"var/lib/fieldpost/identity": 0o700}
    assert (tmp_path / "srv/sftp/cl61/upload").stat().st_mode & 0o7777 == 0o2770
    assert (tmp_path / "usr/local/bin/fieldpost-agent").readlink() == Path("/usr/bin/true")
    said = capsys.readouterr().out
    assert "made" in said
    assert str(tmp_path / "etc/fieldpost/station.toml") in said


def test_a_second_installation_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path, *FIRST, *FOLDER)
    before = tree(tmp_path)
    capsys.readouterr()
    assert install(tmp_path, *FIRST, *FOLDER) == 0
    assert install(tmp_path) == 0
    assert tree(tmp_path) == before
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"kept", "left"}


def test_settings_that_are_there_are_never_changed_and_the_service_follows_them(tmp_path: Path) -> None:
    install(tmp_path, *FIRST)
    config = tmp_path / "etc/fieldpost/station.toml"
    config.write_text(
        'station = "magurele"\nbroker_urls = ["mqtt://a"]\nbuffer_folder = "/data/my buffer"\n'
        'metrics_file = "/var/lib/node/100%.prom"\n'
        '[[instruments]]\nname = "cl61"\nsource = "folder"\nfolder = "/srv/new folder"\n'
        '[[instruments]]\nname = "cl31"\nsource = "serial"\ndevice = "/dev/ttySC0"\npayload_format = "vaisala-cl"\n'
    )
    before = config.read_text()
    assert install(tmp_path) == 0
    assert config.read_text() == before
    lines = (tmp_path / f"etc/systemd/system/{SERVICE}.d/10-folders.conf").read_text().splitlines()
    assert 'RequiresMountsFor="/data/my buffer"' in lines
    assert 'ReadWritePaths="/data/my buffer"' in lines
    assert "ReadWritePaths=-/var/lib/node" in lines
    assert 'ReadWritePaths="-/srv/new folder"' in lines
    assert "DeviceAllow=/dev/ttySC0 rw" in lines


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--station", "other"], "expected station magurele"),
        (["--broker", "mqtts://elsewhere:8883"], "expected brokers and instruments as in"),
        (["--instrument-folder", "new=/srv/new"], "expected brokers and instruments as in"),
        (["--instrument-folder", "cl61=/srv/elsewhere"], "expected brokers and instruments as in"),
    ],
)
def test_options_that_do_not_fit_the_settings_are_refused_rather_than_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    install(tmp_path, *FIRST, *FOLDER)
    assert install(tmp_path, *words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "expected --station and --broker"),
        (["--station", "Magurele!", "--broker", "mqtts://a"], "expected a station name"),
        (["--station", "a", "--broker", "http://a"], "expected a broker URL"),
        (["--station", "a", "--broker", "mqtts://a", "--instrument-folder", "cl61"], "NAME=PATH"),
        (["--station", "a", "--broker", "mqtts://a", "--instrument-folder", "x=drop"], "an absolute path"),
        (["--station", "a", "--broker", "mqtts://a", "--instrument-folder", "x=/home/pi/x"], "outside of /home"),
        (["--station", "a", "--broker", "mqtts://a", "--program", "/run/user/1000/agent"], "outside of /run/user"),
        (["--station", "a", "--broker", "mqtts://a", "--config", "station.toml"], "--config to be an absolute path"),
        (["--station", "a", "--broker", "mqtts://a", "--config", "/home/pi/station.toml"], "outside of /home"),
    ],
)
def test_an_installation_that_cannot_work_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert install(tmp_path, *words) == 2
    assert says in capsys.readouterr().err
    assert tree(tmp_path) == {}


def test_settings_whose_files_the_service_cannot_see_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, *FIRST)
    config = tmp_path / "etc/fieldpost/station.toml"
    config.write_text(config.read_text().replace("/var/lib/fieldpost/identity/station.key", "/home/pi/station.key"))
    assert install(tmp_path) == 2
    assert "expected key_file outside of /home" in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path, *FIRST, *FOLDER, "--dry-run", "--json") == 0
    steps = json.loads(capsys.readouterr().out)
    assert {"done": "would make", "what": str(tmp_path / "etc/fieldpost/station.toml")} in steps
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_on_this_system_names_the_programs_that_it_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--station", "a", "--broker", "mqtt://a", "--program", "/usr/bin/true", "--dry-run"]
    assert run_cli(["install", *words, "--config", "/etc/fieldpost-that-is-not-there/station.toml"]) == 0
    said = capsys.readouterr().out
    assert "would run     systemd-sysusers /etc/sysusers.d/fieldpost.conf" in said
    assert "would run     systemctl restart fieldpost-agent.service" in said


def test_without_root_an_installation_says_sudo() -> None:
    program = (
        "import os, sys; from edge_agent.cli import run; from edge_agent.operation import actions, install\n"
        "os.setuid(65534) if os.geteuid() == 0 else None\n"
        "sys.exit(run(['install', '--station', 'a', '--broker', 'mqtt://a', '--program', '/usr/bin/true']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "sudo fieldpost-agent install" in done.stderr


def test_odd_names_survive_the_settings_file() -> None:
    import tomllib

    text = settings_text("a", ["mqtt://a"], {"cl61": Path('/srv/a "b" \\c 100%')})
    settings = parse_settings(tomllib.loads(text), {})
    assert str(settings.instruments[0].folder) == '/srv/a "b" \\c 100%'  # type: ignore[attr-defined]
    assert r'ReadWritePaths="-/srv/a \"b\" \\c 100%%"' in folders_text(settings).splitlines()
    assert 'ExecStart="/opt/a b/100%%$$x" run' in service_text(Path("/opt/a b/100%$x"), CONFIG_FILE)


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None or os.geteuid() != 0, reason="needs systemd and root")
def test_systemd_makes_the_user_and_enables_the_service_of_an_image(tmp_path: Path) -> None:
    install(tmp_path, *FIRST)
    (tmp_path / "etc/group").write_text("root:x:0:\ndialout:x:20:\n")
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=True, capture_output=True)
    assert "fieldpost:" in (tmp_path / "etc/passwd").read_text()
    assert "dialout:x:20:fieldpost" in (tmp_path / "etc/group").read_text()
    if shutil.which("systemctl") is not None:
        subprocess.run(["systemctl", f"--root={tmp_path}", "enable", SERVICE], check=True, capture_output=True)
        assert (tmp_path / "etc/systemd/system/multi-user.target.wants" / SERVICE).is_symlink()


# --- the service ---


@pytest.fixture
def unit_file(tmp_path: Path) -> Path:
    """The installed unit with its drop-in."""
    install(tmp_path, *FIRST, *FOLDER)
    return tmp_path / "etc/systemd/system" / SERVICE


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_service(unit_file: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit_file], capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "fieldpost" in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
def test_the_service_is_exposed_to_little(unit_file: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit_file)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    match = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", said)
    assert match is not None, said
    assert float(match[1]) <= 2.0


def unit_value(unit_file: Path, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit_file.read_text().splitlines() if line.startswith(f"{key}=")]


def test_the_service_is_begun_again_for_ever_and_ended_where_it_hangs(unit_file: Path) -> None:
    assert unit_value(unit_file, "StartLimitIntervalSec") == ["0"]
    assert unit_value(unit_file, "Restart") == ["always"]
    assert unit_value(unit_file, "Type") == ["notify"]
    assert int(unit_value(unit_file, "WatchdogSec")[0]) >= 60
    assert unit_value(unit_file, "OOMPolicy") == ["continue"], "a model that eats memory must not end the recorder"


def allowed_calls(unit_file: Path) -> set[str]:
    """The system calls that the service may use: its filter, with systemd's own groups."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    groups: dict[str, set[str]] = {}
    name = ""
    for line in listed.splitlines():
        word = line.strip()
        if line.startswith("@"):
            groups[name := word] = set()
        elif name and word and not word.startswith("#"):
            groups[name].add(word)

    def expand(words: set[str]) -> set[str]:
        return set().union(*({w} if w not in groups else expand(groups[w]) for w in words))

    allowed: set[str] = set()
    for line in unit_value(unit_file, "SystemCallFilter"):
        words = expand(set(line.removeprefix("~").split()))
        allowed = allowed - words if line.startswith("~") else allowed | words
    return allowed


CONFINED = """
import ctypes, json, runpy, sys
facts = json.loads(sys.argv[1])

class Comparison(ctypes.Structure):
    _fields_ = [("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
ALLOW, FAIL_WITH_EPERM, EQUAL = 0x7FFF0000, 0x00050001, 4
context = ctypes.c_void_p(seccomp.seccomp_init(FAIL_WITH_EPERM))
for name in facts["calls"]:
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if name == "socket":
        for family in facts["families"]:
            rule = Comparison(0, EQUAL, family, 0)
            assert seccomp.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(rule)) == 0
    elif number != -1:
        seccomp.seccomp_rule_add_array(context, ALLOW, number, 0, None)
if facts["has_mdwe"]:
    assert libc.prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
assert seccomp.seccomp_load(context) == 0
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def confined(unit_file: Path, *words: str) -> list[str]:
    """A command line that runs a module of ours under the service's filter of system calls, sockets and memory."""
    families = [int(getattr(socket, name)) for name in unit_value(unit_file, "RestrictAddressFamilies")[0].split()]
    libc = ctypes.CDLL(None)
    has_mdwe = unit_value(unit_file, "MemoryDenyWriteExecute") == ["true"] and libc.prctl(66, 0, 0, 0, 0) == 0
    facts = {"calls": sorted(allowed_calls(unit_file)), "families": families, "has_mdwe": has_mdwe}
    return [sys.executable, "-c", CONFINED, json.dumps(facts), *words]


@pytest.fixture
def needs_seccomp() -> None:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")


@needs_systemd
@pytest.mark.usefixtures("needs_seccomp")
def test_the_agent_works_under_the_services_filter(unit_file: Path, tmp_path: Path) -> None:
    config, buffer = tmp_path / "station.toml", tmp_path / "buffer"
    config.write_text(
        f'station = "a"\nbroker_urls = ["mqtt://localhost:1"]\nbuffer_folder = "{buffer}"\n'
        f'metrics_file = "{tmp_path}/station.prom"\n'
        f'[[instruments]]\nname = "drop"\nsource = "folder"\nfolder = "{tmp_path}"\npattern = "*.dat"\n'
        '[[instruments]]\nname = "cl51"\nsource = "simulated"\ninterval_s = 0.1\n'
    )
    log = tmp_path / "agent.log"
    with log.open("wb") as output:
        command = confined(unit_file, "edge_agent", "run", "--config", str(config))
        agent = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + 30
        report: dict[str, Any] = {}
        while report.get("last_sequence", 0) < 3:
            assert agent.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                is_answered = run_cli(["status", "--config", str(config), "--json"]) == 0
            report = json.loads(printed.getvalue()) if is_answered else {}
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0, log.read_text()
    finally:
        agent.kill()
        agent.wait()
    assert report["clock_sync"] != "unknown", "the filter keeps the agent from asking whether its clock is right"
    text = log.read_text()
    assert "Traceback" not in text
    assert "not permitted" not in text
    assert "refuses connections" in text, "that localhost was looked up and called is what the log must say"


@needs_systemd
@pytest.mark.usefixtures("needs_seccomp")
def test_the_filter_of_the_test_above_forbids_what_the_service_must_not_do(unit_file: Path, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import mmap, os, socket, time\n"
        "for attempt in (\n"
        "    lambda: os.chroot('/'),\n"
        "    lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),\n"
        "    lambda: socket.socket(socket.AF_NETLINK),\n"
        "):\n"
        "    try:\n        attempt()\n    except PermissionError:\n        print('refused')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(confined(unit_file, "module"), capture_output=True, text=True, env=environment, timeout=30)
    assert done.stdout.split() == ["refused"] * 3, done.stderr


@needs_systemd
@pytest.mark.usefixtures("needs_seccomp")
def test_the_model_works_under_the_services_filter(unit_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the quick look is not installed")
    config, days = tmp_path / "station.toml", tmp_path / "buffer" / "days"
    config.write_text(
        f'station = "a"\nbroker_urls = ["mqtt://localhost:1"]\nbuffer_folder = "{days.parent}"\nquick_look = "on"\n'
        '[[instruments]]\nname = "cl51"\nsource = "simulated"\ninterval_s = 0.2\n'
    )
    log = tmp_path / "agent.log"
    with log.open("wb") as output:
        command = confined(unit_file, "edge_agent", "run", "--config", str(config))
        agent = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + 30
        while not any(header.HasField("quick_look") for header in headers(days)):
            assert agent.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
    finally:
        agent.terminate()
        assert agent.wait(20) == 0, log.read_text()


def headers(days: Path) -> Iterator[observation_pb2.ObservationHeader]:
    """Of what a running agent has recorded so far."""
    for path in days.glob("*.obs"):
        file = DayFile(path)
        yield from [record.header for record in file.read_all()]
        file.close()


# --- the word to systemd ---


@pytest.fixture
def systemd() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        yield listening


def test_systemd_hears_that_the_service_is_ready_works_and_ends(systemd: socket.socket, tmp_path: Path) -> None:
    systemd.bind(str(tmp_path / "notify"))
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.ready()
    notifier.status("17 observations\nwait")
    notifier.stopping()
    assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=17 observations wait", b"STOPPING=1"]
    assert notifier.wake_at_s == float("inf"), "without a watchdog nobody has to wake"


def test_an_abstract_address_works_as_well(systemd: socket.socket) -> None:
    name = f"fieldpost-test-{os.getpid()}"
    systemd.bind(f"\0{name}")
    Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert systemd.recv(100) == b"READY=1"


def test_the_sign_of_life_comes_twice_in_the_watchdogs_time(systemd: socket.socket, tmp_path: Path) -> None:
    systemd.bind(str(tmp_path / "notify"))
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "120000000"}
    notifier = Notifier.from_environment({**environment, "WATCHDOG_PID": str(os.getpid())})
    for now_s in (1000.0, 1030.0, 1059.9, 1060.0, 1119.0):
        notifier.tick(now_s)
    assert notifier.wake_at_s == 1120.0
    systemd.setblocking(False)
    assert [systemd.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


def test_a_watchdog_of_another_process_is_not_answered(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert Notifier.from_environment(environment).wake_at_s == float("inf")


def test_without_systemd_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    Notifier.from_environment({}).ready()
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"})
    notifier.ready()
    notifier.tick(5.0)
    assert notifier.wake_at_s == 5.5


# --- metrics and status ---


REPORT = Report(
    station="magurele",
    report_unix_s=NOW_UNIX_S - 3,
    is_online=True,
    software_version="1.2.3",
    epoch="e" * 32,
    last_sequence=83231,
    backlog_count=1234,
    in_flight_count=12,
    rejected_count=1,
    quarantined_count=2,
    disk_free_bytes=41_200_000_000,
    buffer_bytes=12_300_000_000,
    broker_url="mqtts://broker-a:8883",
    clock_sync=observation_pb2.CLOCK_SYNC_SYNCHRONISED,
    clock_error_s=0.003,
    temperature_celsius=48.2,
    disk_left_days=100.0,
    certificate_expiry_unix_s=NOW_UNIX_S + 20 * 86400,
    instruments=[InstrumentReport("cl31", 12345, NOW_UNIX_S - 12), InstrumentReport("cl61", 0, None, 1)],
    alarms=["cl61: no observation for 3166 min"],
)


def samples(text: str) -> dict[tuple[str, str], float]:
    """What a real Prometheus parser reads: value by name and instrument."""
    families = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    found = {}
    for family in families.text_string_to_metric_families(text):
        assert family.documentation, f"{family.name} has no help"
        assert family.type in ("gauge", "counter")
        for sample in family.samples:
            assert sample.labels["station"] == "magurele"
            found[sample.name, sample.labels.get("instrument", "")] = sample.value
    return found


def test_prometheus_reads_what_the_report_says() -> None:
    read = samples(exposition(REPORT))
    expected = {
        ("online", ""): 1,
        ("backlog_observations", ""): 1234,
        ("buffer_bytes", ""): 12_300_000_000,
        ("report_timestamp_seconds", ""): NOW_UNIX_S - 3,
        ("disk_lasts_seconds", ""): 100 * 86400,
        ("clock_synchronised", ""): 1,
        ("clock_error_seconds", ""): 0.003,
        ("temperature_celsius", ""): 48.2,
        ("certificate_expiry_timestamp_seconds", ""): NOW_UNIX_S + 20 * 86400,
        ("alarms", ""): 1,
        ("captured_observations_total", "cl31"): 12345,
        ("captured_observations_total", "cl61"): 0,
        ("last_capture_timestamp_seconds", "cl31"): NOW_UNIX_S - 12,
        ("set_aside_inputs_total", "cl61"): 1,
    }
    assert {key: read[f"fieldpost_station_{key[0]}", key[1]] for key in expected} == expected
    assert ("fieldpost_station_last_capture_timestamp_seconds", "cl61") not in read, "what never was has no time"


def test_what_a_station_does_not_know_is_left_out_of_its_metrics() -> None:
    unknown = dataclasses.replace(
        REPORT,
        clock_sync=0,
        clock_error_s=None,
        temperature_celsius=None,
        certificate_expiry_unix_s=None,
        instruments=[],
    )
    names = {name for name, _ in samples(exposition(unknown))}
    assert not names & {f"fieldpost_station_{name}" for name in ("clock_synchronised", "temperature_celsius")}
    assert "fieldpost_station_backlog_observations" in names


def test_odd_texts_survive_in_labels() -> None:
    odd = dataclasses.replace(REPORT, quick_look_model='a "b"\\c\nd')
    families = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families(exposition(odd))
    info = next(family for family in families if family.name == "fieldpost_station_info")
    assert info.samples[0].labels["quick_look_model"] == 'a "b"\\c\nd'


def test_the_metrics_file_is_replaced_as_a_whole_and_others_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "station.prom"
    path.write_text("old")
    write_metrics(path, REPORT)
    assert samples(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["station.prom"]


def test_a_person_sees_at_a_glance_how_the_station_is() -> None:
    page = status_page(to_dict(REPORT), NOW_UNIX_S, Presence.LIVE)
    for line in (
        "station       magurele   ONLINE, with mqtts://broker-a:8883",
        "ALARM         cl61: no observation for 3166 min",
        "backlog       1,234 observations not yet receipted, 12 of them under way",
        "disk          12.3 GB of observations, 41.2 GB free, lasts for 100 days at the present rate",
        "clock         synchronised, within 3 ms",
        "cl31         12 s ago                        12,345           0",
        "cl61         none since the start                 0           1",
    ):
        assert line in page.splitlines()
    assert "in 20 days  <- RENEW IT" in page


def test_a_status_that_nobody_writes_any_more_says_since_when() -> None:
    page = status_page(to_dict(REPORT), NOW_UNIX_S + 10_000, Presence.GONE)
    assert "NOT RUNNING   nobody has written status.json for 2 h 47 min (since " in page
    assert "ONLINE, with" not in page, "what it once said of its link is no fact any more"


def test_an_agent_that_runs_and_does_not_answer_is_not_called_dead() -> None:
    page = status_page(to_dict(REPORT), NOW_UNIX_S, Presence.MUTE)
    assert "the agent runs, but does not answer" in page
    assert "NOT RUNNING" not in page


def test_what_the_server_refused_it_is_not_said_to_hold() -> None:
    done = dataclasses.replace(REPORT, backlog_count=0)
    page = status_page(to_dict(done), NOW_UNIX_S, Presence.LIVE)
    assert "backlog       none: the server holds everything but what it refused" in page.splitlines()
    page = status_page(to_dict(dataclasses.replace(done, rejected_count=0)), NOW_UNIX_S, Presence.LIVE)
    assert "backlog       none: the server holds everything" in page.splitlines()


def test_all_is_well_is_said_in_words() -> None:
    assert status_page(to_dict(dataclasses.replace(REPORT, alarms=[])), NOW_UNIX_S, Presence.LIVE).endswith("no alarms")


def test_the_report_of_an_older_agent_is_shown_as_far_as_it_goes() -> None:
    old = {
        key: value for key, value in to_dict(REPORT).items() if not key.startswith(("clock", "disk_d", "temp", "cert"))
    }
    assert "magurele" in status_page(old, NOW_UNIX_S, Presence.LIVE)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (12, "12 s"),
        (300, "5 min"),
        (12_000, "3 h 20 min"),
        (200_000, "2 days 8 h"),
        (4e6, "46 days"),
        (1e8, "3.2 years"),
    ],
)
def test_spans_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_sizes_and_counts_are_said_as_people_say_them() -> None:
    assert [size(n) for n in (512, 3_400_000, 118e9, 2e12)] == ["512 bytes", "3.4 MB", "118 GB", "2.0 TB"]
    assert [count(n, "input") for n in (0, 1, 12345)] == ["0 inputs", "1 input", "12,345 inputs"]


# --- the guide, and what the commands say of themselves ---


def guide_lines(page: Path) -> list[str]:
    """The commands in console blocks, continued lines joined."""
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.startswith("#")]


def test_every_command_of_the_guide_is_one_that_exists() -> None:
    lines = [line for line in guide_lines(ROOT / "docs" / "station.md") if "fieldpost-agent " in line]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line, comments=True)
        while words[0] in ("sudo", "-u", "fieldpost") or words[0].endswith("/bin/sudo"):
            words = words[1:]
        if Path(words[0]).name == "fieldpost-agent":
            assert isinstance(parser().parse_args(words[1:]), argparse.Namespace), line


def test_the_guides_request_for_a_certificate_names_the_station(tmp_path: Path) -> None:
    (line,) = [line for line in guide_lines(ROOT / "docs" / "station.md") if "openssl req" in line]
    subprocess.run(shlex.split(line.removeprefix("sudo ")), check=True, capture_output=True, cwd=tmp_path)
    asked = ["openssl", "req", "-in", "station.csr", "-noout", "-subject"]
    subject = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert re.search(r"CN ?= ?magurele", subject)


def test_every_command_is_in_the_guide() -> None:
    text = (ROOT / "docs" / "station.md").read_text()
    from edge_agent.operation.actions import ACTIONS

    assert [action for action in ("run", *ACTIONS) if f"fieldpost-agent {action}" not in text] == []


def test_the_settings_in_the_guide_are_settings() -> None:
    import tomllib

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "station.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    whole = {"station": "a", "broker_urls": ["mqtt://a"], "buffer_folder": "/b"}
    for block in blocks:
        parse_settings(whole | tomllib.loads(block), {})


def test_every_alarm_that_the_agent_can_raise_is_explained_in_the_guide() -> None:
    """Alarms are set with a cause; the guide names each cause in code type, without the instrument's name."""
    sources = "\n".join(path.read_text() for path in sorted((ROOT / "edge_agent").glob("*.py")))
    causes = {cause.partition(" {")[0] for cause in re.findall(r'alarms\.set\(\s*f?"([^"]+)"', sources)}
    assert len(causes) >= 8
    text = (ROOT / "docs" / "station.md").read_text()
    assert sorted(cause for cause in causes if f"`{cause}`" not in text) == []


def test_what_a_model_says_of_itself_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = ROOT / "edge_agent" / "quick_look" / "boundary-layer.fpmodel"
    assert run_cli(["model", "show", str(shipped)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model          boundary-layer@")
    assert any(re.fullmatch(r"      mae_m +\d+(\.\d+)?", line) for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_time_that_no_clock_shows_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("0001-01-01T00:00:00+05:00", "yesterday"):
        with pytest.raises(SystemExit) as caught:
            run_cli(["replay", "--since", text])
        assert caught.value.code == 2
        assert "expected a time such as" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_cli(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"fieldpost-agent \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_every_command_says_what_it_is_for() -> None:
    def walk(one: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield one
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from itertools.chain.from_iterable(walk(verb) for verb in action.choices.values())

    for verb in walk(parser()):
        assert verb.description, verb.prog
        assert all(action.help for action in verb._actions if not isinstance(action, argparse._SubParsersAction)), (
            verb.prog
        )


def test_the_agents_process_stays_free_of_what_is_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; import edge_agent.assembly, edge_agent.operation.run, edge_agent.operation.metrics\n"
        "heavy = {'numpy', 'cryptography', 'prometheus_client', 'pandas', 'torch', 'importlib.metadata'}\n"
        "heavy |= {'edge_agent.operation.check', 'edge_agent.operation.install', 'edge_agent.operation.actions'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
