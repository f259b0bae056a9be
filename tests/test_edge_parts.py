"""The small parts of the agent: the intake on a full disk, sources that fail, reports, backoff, clocks."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.capture import Capture, observation_of, parse_origin
from edge_agent.clock import read_capture_clock
from edge_agent.intake import Intake
from edge_agent.link.uplink import backoff_s
from edge_agent.report import InstrumentReport, Report, to_json, to_status
from edge_agent.source_threads import Captured, SourceEnded, SourceThread
from edge_agent.sources.source import Sink, Stopping
from edge_agent.storage.origins import MAX_NAMES, Origins, origins_from_json
from edge_agent.storage.quarantine import Quarantine
from edge_agent.storage.retention import RetentionPolicy
from edge_agent.upkeep import Upkeep
from fieldpost.broker_url import parse_broker_url
from fieldpost.errors import BrokenStateError

EPOCH = "e" * 32


def captured(number: int) -> Captured:
    capture = Capture("cl51", "vaisala-cl", b"telegram %d" % number, origin_name="cl51:run", origin_index=number)
    return Captured("cl51", [observation_of(capture)], Future())


def intake_of(buffer: Buffer, alarms: Alarms) -> Intake:
    """An intake that knows one instrument, beside an upkeep that lets nothing go."""
    intake = Intake(buffer, alarms, Upkeep(buffer, alarms, RetentionPolicy(drops_undelivered=False)))
    intake.instruments = {"cl51": InstrumentReport("cl51")}
    return intake


# --- intake ---


@pytest.fixture
def buffer(tmp_path: Path) -> Buffer:
    return Buffer(tmp_path / "buffer", "magurele")


def test_everything_that_waits_becomes_one_write_and_then_the_sources_are_released(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr("edge_agent.storage.day_file.os.fdatasync", lambda fd: (syncs.append(fd), real(fd)))
    intake = intake_of(buffer, Alarms())
    waiting = [captured(number) for number in range(5)]
    for one in waiting:
        intake.add(one)
    assert not any(one.done.done() for one in waiting)
    assert intake.write(now_s=0)
    assert all(one.done.done() for one in waiting)
    assert (len(syncs), buffer.last_sequence, intake.instruments["cl51"].captured_count) == (1, 5, 5)
    assert not intake.write(now_s=0), "nothing waits any more"
    buffer.close()


def test_on_a_full_disk_the_sources_wait_with_an_alarm_and_nothing_is_dropped(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = Alarms()
    intake = intake_of(buffer, alarms)
    one = captured(1)
    intake.add(one)

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edge_agent.storage.day_file.os.fdatasync", fail)
        assert not intake.write(now_s=0)
    assert not one.done.done()
    assert "No space left on device" in alarms.texts()[0]
    assert intake.wake_at_s == 1.0
    assert not intake.write(now_s=0.9), "too early to try again"
    assert intake.write(now_s=1.0)
    assert one.done.done()
    assert alarms.texts() == []
    buffer.close()


def test_on_a_disk_that_is_broken_the_sources_wait_and_the_next_try_begins_another_file(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = Alarms()
    intake = intake_of(buffer, alarms)
    for number in (1, 2):
        intake.add(captured(number))
        if number == 1:
            assert intake.write(now_s=0)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("edge_agent.storage.day_file.os.fdatasync", fail)
        assert not intake.write(now_s=1)
    assert "Input/output error" in alarms.texts()[0]
    assert intake.write(now_s=2)
    assert len(list((buffer.folder / "days").glob("*.obs"))) == 2
    assert [o.header.sequence for o in buffer.read(1, 2, 1 << 20).observations] == [1, 2]
    buffer.close()


def test_at_the_end_whoever_still_waits_keeps_what_it_has(buffer: Buffer) -> None:
    intake = intake_of(buffer, Alarms())
    one = captured(1)
    intake.add(one)
    intake.refuse_all()
    with pytest.raises(Stopping):
        one.done.result()
    buffer.close()


# --- source threads ---


class FailsOnce:
    """A source whose device is not there at first."""

    instrument = "cl51"
    is_finite = True

    def __init__(self) -> None:
        self.run_count = 0

    def run(self, sink: Sink, stop: threading.Event) -> None:
        self.run_count += 1
        if self.run_count == 1:
            raise FileNotFoundError("/dev/ttyUSB0")
        sink.alarm("")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_source_that_fails_is_an_alarm_and_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.source_threads.RETRY_FIRST_S", 0.01)
    events: list[object] = []
    ended = threading.Event()

    def take(event: object) -> None:
        events.append(event)
        if isinstance(event, SourceEnded):
            ended.set()

    source = FailsOnce()
    SourceThread(source, take, Quarantine(tmp_path / "quarantine"), threading.Event()).start()
    assert ended.wait(10)
    assert source.run_count == 2
    assert [getattr(event, "text", "ended") for event in events] == ["source failed: /dev/ttyUSB0", "", "ended"]


# --- reports, origins, clocks ---


def test_a_report_says_the_same_to_the_server_and_to_a_person() -> None:
    report = Report(
        station="magurele",
        report_unix_s=1748736000.5,
        is_online=True,
        software_version="1",
        epoch=EPOCH,
        last_sequence=7,
        backlog_count=3,
        in_flight_count=2,
        rejected_count=1,
        quarantined_count=4,
        disk_free_bytes=5,
        buffer_bytes=6,
        instruments=[InstrumentReport("cl51", 7, 1748735999.0), InstrumentReport("off")],
        alarms=["the disk is full"],
    )
    status, fields = to_status(report), json.loads(to_json(report))
    for name in ("station", "epoch", "last_sequence", "backlog_count", "rejected_count", "quarantined_count", "alarms"):
        assert getattr(status, name) == fields[name], name
    assert status.report_time.ToJsonString() == "2025-06-01T00:00:00.500Z"
    assert fields["instruments"][0]["last_capture_time"] == "2025-05-31T23:59:59+00:00"
    assert not status.instruments[1].HasField("last_capture_time")
    assert fields["instruments"][1]["last_capture_time"] is None


@pytest.mark.parametrize(
    ("origin", "expected"),
    [("cl51:run#7", ("cl51:run", 7)), ("a#b#0", ("a#b", 0)), ("", None), ("#1", None), ("a#", None), ("a#-1", None)],
)
def test_an_origin_is_a_name_and_an_index(origin: str, expected: tuple[str, int] | None) -> None:
    assert parse_origin(origin) == expected


def test_origins_keep_the_highest_index_and_forget_the_oldest_names() -> None:
    origins = Origins()
    for sequence in range(1, MAX_NAMES + 2):
        origins.add(f"file{sequence}#0", sequence)
    origins.add("file2#5", MAX_NAMES + 2)
    origins.add("file2#3", MAX_NAMES + 3)
    read = origins_from_json(origins.to_json())
    assert read.through_sequence == MAX_NAMES + 3
    assert len(read.highest()) == MAX_NAMES
    assert "file1" not in read.highest() and read.highest()["file2"] == 5
    with pytest.raises(BrokenStateError, match="expected the list of origins"):
        origins_from_json(b"{}")


def test_an_alarm_is_one_sentence_as_long_as_it_lasts() -> None:
    alarms = Alarms()
    changes: list[bool] = []
    steps: list[Callable[[], None]] = [
        lambda: alarms.set("disk", ""),
        lambda: alarms.set("disk", "full"),
        lambda: alarms.set("disk", "very full"),
        lambda: alarms.set("disk", ""),
    ]
    for step in steps:
        alarms.is_changed = False
        step()
        changes.append(alarms.is_changed)
    assert changes == [False, True, False, True]
    assert alarms.texts() == []


def test_the_wait_between_connections_grows_to_30_seconds_and_half_as_much_again() -> None:
    assert [backoff_s(n, 0.0) for n in (1, 2, 3, 4, 5, 6, 100)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff_s(100, 0.999) == pytest.approx(45, abs=0.1)


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls"),
    [
        ("mqtt://a", "a", 1883, False),
        ("mqtts://a.example", "a.example", 8883, True),
        ("mqtt://[::1]:7", "::1", 7, False),
    ],
)
def test_a_broker_url_says_host_port_and_tls(url: str, host: str, port: int, is_tls: bool) -> None:
    broker = parse_broker_url(url)
    assert (broker.host, broker.port, broker.is_tls) == (host, port, is_tls)


def test_the_capture_clock_has_all_four_clocks() -> None:
    first, second = read_capture_clock(), read_capture_clock()
    assert second.monotonic_nanos > first.monotonic_nanos > 0
    assert first.wall_time.ToNanoseconds() > 1.7e18
    assert len(first.boot_id) in (0, 32)
    assert first.boot_id == second.boot_id
    assert first.clock_sync in (0, 1, 2)
