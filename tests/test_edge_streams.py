"""Streams: a serial port, TCP both ways and UDP, each real, into a sink with a real quarantine."""

from __future__ import annotations

import json
import os
import resource
import socket
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from edge_source_support import RememberingSink, running, wait_until

from edge_agent.assembly import build_source
from edge_agent.capture import observation_of
from edge_agent.clock import boot_id
from edge_agent.framing import Unframed
from edge_agent.source_settings import StreamSettings, TcpServerSettings, UdpSettings, parse_instrument
from edge_agent.sources import link as link_module
from edge_agent.sources import udp as udp_module
from edge_agent.sources.chunk_queue import CHUNK_OVERHEAD_BYTES, MAX_TORN, Chunk, ChunkQueue
from edge_agent.sources.quarantine_entries import WAITING_MAX_BYTES, QuarantineEntries
from edge_agent.sources.source import Source, Stopping
from edge_agent.sources.tcp import TcpServerLink
from fieldpost.errors import BrokenStateError, InvalidRequestError

TELEGRAMS = "ceilometer/vaisala/kenttarova_cl31_msg.dat"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RETRY_FIRST_S", 0.05)
    monkeypatch.setattr(link_module, "RETRY_MAX_S", 0.2)


@pytest.fixture
def sink(tmp_path: Path) -> RememberingSink:
    return RememberingSink(quarantine_folder=tmp_path / "quarantine")


def stream(source: str, **entry: Any) -> Source:
    settings = parse_instrument({"name": "cl51", "source": source, "payload_format": "line", **entry})
    assert isinstance(settings, StreamSettings)
    return build_source(settings, {})


def quarantined(tmp_path: Path) -> list[tuple[bytes, str]]:
    """(content, reason) of what lies in the real quarantine."""
    notes = sorted((tmp_path / "quarantine").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [(path.with_suffix(".bin").read_bytes(), json.loads(path.read_bytes())["reason"]) for path in notes]


# --- serial port ---


class Wire:
    """A pty pair: the test holds the instrument's end, and the other is the port."""

    def __init__(self, port: Path) -> None:
        self.instrument, self.port_descriptor = os.openpty()
        tty.setraw(self.port_descriptor)
        port.unlink(missing_ok=True)
        port.symlink_to(os.ttyname(self.port_descriptor))

    def wait_until_open(self, speed: int = termios.B9600) -> None:
        """The port is open once its speed is set; what came before is thrown away by the kernel."""
        wait_until(lambda: termios.tcgetattr(self.port_descriptor)[4] == speed, "the port is opened")
        time.sleep(0.05)

    def unplug(self) -> None:
        os.close(self.instrument)
        os.close(self.port_descriptor)


@pytest.fixture
def port(tmp_path: Path) -> Path:
    return tmp_path / "ttyUSB0"


def test_telegrams_come_out_of_a_serial_port_with_the_clock_of_their_last_byte(
    shared_data: Path, port: Path, sink: RememberingSink
) -> None:
    content = (shared_data / TELEGRAMS).read_bytes()
    wire = Wire(port)
    with running(stream("serial", device=str(port), payload_format="vaisala-cl"), sink):
        wire.wait_until_open()
        os.write(wire.instrument, content[:1000])
        time.sleep(0.1)
        last_nanos = time.monotonic_ns()
        for at in range(1000, len(content), 1000):
            os.write(wire.instrument, content[at : at + 1000])
        wait_until(lambda: sink.captures, "the telegram is there")
    wire.unplug()
    (capture,) = sink.captures
    assert capture.content == content.strip(b"\r\n")
    assert 0 < capture.clock.monotonic_nanos - last_nanos < 5_000_000_000
    assert capture.clock.boot_id == boot_id()
    assert capture.origin_name.startswith("cl51:serial-") and capture.origin_index == 0
    assert observation_of(capture).header.payload_format == "vaisala-cl"


@pytest.mark.parametrize(
    ("characters", "asked"),
    [
        ("7E1", termios.CS7 | termios.PARENB),
        ("8O2", termios.CS8 | termios.PARENB | termios.PARODD | termios.CSTOPB),
        ("8N1", termios.CS8),
    ],
)
def test_speed_and_characters_are_those_of_the_settings(
    port: Path, sink: RememberingSink, monkeypatch: pytest.MonkeyPatch, characters: str, asked: int
) -> None:
    mask = termios.CSIZE | termios.PARENB | termios.PARODD | termios.CSTOPB
    settings: list[int] = []
    real = termios.tcsetattr

    def tcsetattr(descriptor: int, when: int, attributes: list[Any]) -> None:
        settings.append(attributes[2] & mask)
        real(descriptor, when, attributes)

    monkeypatch.setattr("serial.serialposix.termios.tcsetattr", tcsetattr)
    wire = Wire(port)
    settings.clear()
    with running(stream("serial", device=str(port), baud=4800, characters=characters), sink):
        wire.wait_until_open(termios.B4800)
        assert settings == [asked], "what the kernel was asked for"
        # A pty carries bytes, so that the kernel keeps it at eight data bits without parity; the rest it takes.
        kept = termios.CSTOPB | termios.PARODD
        assert termios.tcgetattr(wire.port_descriptor)[2] & kept == asked & kept
    wire.unplug()


def test_a_port_that_is_unplugged_is_an_alarm_and_what_was_cut_off_is_set_aside(
    tmp_path: Path, port: Path, sink: RememberingSink
) -> None:
    wire = Wire(port)
    with running(stream("serial", device=str(port)), sink):
        wire.wait_until_open()
        os.write(wire.instrument, b"one\ntw")
        wait_until(lambda: sink.captures, "the first line")
        wire.unplug()
        wait_until(lambda: "expected bytes from" in sink.alarm_now and str(port) in sink.alarm_now, "an alarm")
        wait_until(lambda: quarantined(tmp_path), "half a line is set aside")
        wire = Wire(port)
        wire.wait_until_open()
        assert sink.alarm_now, "until bytes come"
        os.write(wire.instrument, b"three\n")
        wait_until(lambda: sink.alarm_now == "", "the alarm is over")
    wire.unplug()
    assert sink.contents() == [b"one\n", b"three\n"]
    ((content, reason),) = quarantined(tmp_path)
    assert content == b"tw" and reason.endswith("then the end of the stream")


def test_a_port_that_is_not_there_is_an_alarm_until_it_is(port: Path, sink: RememberingSink) -> None:
    with running(stream("serial", device=str(port)), sink):
        wait_until(lambda: "No such file" in sink.alarm_now, "an alarm")
        wire = Wire(port)
        wire.wait_until_open()
        os.write(wire.instrument, b"one\n")
        wait_until(lambda: sink.captures and sink.alarm_now == "", "the alarm is over")
    wire.unplug()


def test_an_instrument_that_must_be_asked_is_asked(port: Path, sink: RememberingSink) -> None:
    wire = Wire(port)
    with running(stream("serial", device=str(port), poll_command="send\r", poll_interval_s=0.2), sink):
        for number in range(2):
            assert os.read(wire.instrument, 100) == b"send\r"
            os.write(wire.instrument, b"%d\r\n" % number)
        wait_until(lambda: len(sink.captures) == 2, "both answers")
    wire.unplug()


# --- TCP ---


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def test_a_tcp_client_connects_again_after_the_other_side_closed_refused_and_came_back(
    tmp_path: Path, sink: RememberingSink, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    with running(stream("tcp-client", host="127.0.0.1", port=port), sink):
        with listener.accept()[0] as connection:
            connection.sendall(b"one\ncut o")
            wait_until(lambda: sink.captures, "the first line")
            listener.close()
        wait_until(lambda: "the other side closed the connection" in sink.alarms[-1], "an alarm: closed")
        wait_until(lambda: "refused" in sink.alarm_now, "an alarm: refused")
        with socket.create_server(("127.0.0.1", port)) as again:
            again.settimeout(10)
            with again.accept()[0] as connection:
                connection.sendall(b"two\n")
                wait_until(lambda: len(sink.captures) == 2 and sink.alarm_now == "", "the alarm is over")
    assert sink.contents() == [b"one\n", b"two\n"]
    assert [content for content, _ in quarantined(tmp_path)] == [b"cut o"]


def test_a_tcp_client_that_reaches_nobody_stops_within_a_second(sink: RememberingSink) -> None:
    # A listener whose queue is full: the kernel answers no further connection, as over a link that is down.
    with socket.socket() as deaf, ExitStack() as held:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        with running(stream("tcp-client", host="127.0.0.1", port=deaf.getsockname()[1]), sink):
            time.sleep(0.2)  # in the middle of connecting; running() asserts that it stops in time
    assert sink.captures == []


def test_several_connections_to_a_tcp_server_are_framed_apart(
    tmp_path: Path, sink: RememberingSink, free_port: int
) -> None:
    def connect() -> socket.socket:
        deadline_s = time.monotonic() + 10
        while True:
            try:
                return socket.create_connection(("127.0.0.1", free_port), 1)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)

    with running(stream("tcp-server", address="127.0.0.1", port=free_port, max_clients=2), sink):
        with closing(connect()) as first, closing(connect()) as second:
            first.sendall(b"from the fi")
            time.sleep(0.05)
            second.sendall(b"from the second\n")
            wait_until(lambda: sink.captures, "the second's line")
            first.sendall(b"rst\nand ha")
            wait_until(lambda: len(sink.captures) == 2, "the first's line")
            with closing(connect()) as third:
                assert third.recv(1) == b"", "one too many is closed"
                wait_until(lambda: "expected at most 2 connections" in sink.alarm_now, "an alarm")
        wait_until(lambda: quarantined(tmp_path), "half a line of the first")
        wait_until(lambda: sink.alarm_now == "", "a connection that closes is no alarm")
        with closing(connect()) as fourth:
            fourth.sendall(b"later\n")
            wait_until(lambda: len(sink.captures) == 3, "a later connection's line")
    assert sink.contents() == [b"from the second\n", b"from the first\n", b"later\n"]
    assert [content for content, _ in quarantined(tmp_path)] == [b"and ha"]


def test_tcp_holds_the_sender_back_while_the_disk_takes_nothing_and_nothing_is_lost(
    tmp_path: Path, sink: RememberingSink, listener: socket.socket
) -> None:
    lines = [b"%06d " % number + b"x" * 993 + b"\n" for number in range(12_000)]
    sink.disk_takes.clear()
    source = stream(
        "tcp-client", host="127.0.0.1", port=listener.getsockname()[1], queue_max_bytes=1 << 16, idle_gap_s=0.3
    )
    with running(source, sink), listener.accept()[0] as connection:
        connection.settimeout(0.5)
        sent = 0
        content = b"".join(lines)
        with pytest.raises(TimeoutError):
            while sent < len(content):
                sent += connection.send(content[sent : sent + 100_000])
        time.sleep(0.4)  # longer than idle_gap_s, in the middle of a line: to be held back is no silence
        sink.disk_takes.set()
        connection.settimeout(30)
        connection.sendall(content[sent:])
        wait_until(lambda: len(sink.captures) == len(lines), "all lines", 30)
    assert sink.contents() == lines
    assert quarantined(tmp_path) == [] and "lost" not in "".join(sink.alarms)


# --- UDP ---


def test_each_datagram_is_an_observation(sink: RememberingSink, free_port: int) -> None:
    source = stream("udp", address="127.0.0.1", port=free_port, payload_format="file")
    with running(source, sink), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        wait_until(lambda: sink.alarms, "it listens")
        time.sleep(0.1)
        for content in (b"one", b"", b"two\nlines"):
            sender.sendto(content, ("127.0.0.1", free_port))
        wait_until(lambda: len(sink.captures) == 2, "both")
    assert sink.contents() == [b"one", b"two\nlines"]


def test_a_line_in_several_datagrams_is_put_together_for_each_sender(sink: RememberingSink, free_port: int) -> None:
    with (
        running(stream("udp", address="127.0.0.1", port=free_port), sink),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b,
    ):
        wait_until(lambda: sink.alarms, "it listens")
        time.sleep(0.1)
        for sender, content in ((a, b"a1"), (b, b"b1"), (a, b"a2\n"), (b, b"b2\n")):
            sender.sendto(content, ("127.0.0.1", free_port))
        wait_until(lambda: len(sink.captures) == 2, "both")
    assert sink.contents() == [b"a1a2\n", b"b1b2\n"]


def test_datagrams_that_the_kernel_dropped_are_counted(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_module, "RECEIVE_BUFFER_BYTES", 4096)
    settings = parse_instrument({"name": "a", "source": "udp", "port": free_port, "payload_format": "file"})
    assert isinstance(settings, UdpSettings)
    link = udp_module.UdpLink(settings)
    link.open()
    arrived = 0
    with closing(link), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(100):
            sender.sendto(b"x" * 1000, ("127.0.0.1", free_port))
        while arrivals := link.read(0.0):
            arrived += len(arrivals)
        sender.sendto(b"x", ("127.0.0.1", free_port))
        link.read(1.0)
        assert 0 < arrived < 100
        assert link.problem == f"{100 - arrived} datagrams were lost, which came faster than they were read"
        monkeypatch.setattr(udp_module, "LOSS_ALARM_S", 0.0)
        sender.sendto(b"x", ("127.0.0.1", free_port))
        link.read(1.0)
        assert link.problem == "", "the kernel's count still comes with each datagram, but it has not grown"


def test_senders_that_use_a_new_port_for_each_datagram_leave_nothing_behind(
    sink: RememberingSink, free_port: int
) -> None:
    source = stream("udp", address="127.0.0.1", port=free_port, payload_format="file")
    with running(source, sink):
        wait_until(lambda: sink.alarms, "it listens")
        time.sleep(0.1)
        for number in range(300):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"%d" % number, ("127.0.0.1", free_port))
        wait_until(lambda: len(sink.captures) == 300, "all datagrams")
        assert not source._reader._channels and not source._channels  # type: ignore[attr-defined]


def test_a_server_without_a_descriptor_left_waits_and_takes_the_connection_later(free_port: int) -> None:
    settings = parse_instrument({"name": "a", "source": "tcp-server", "port": free_port, "payload_format": "line"})
    assert isinstance(settings, TcpServerSettings)
    link = TcpServerLink(settings)
    link.open()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(link), socket.socket() as client, Path(os.devnull).open("rb") as probe:
        client.connect(("127.0.0.1", free_port))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_lowest_free_descriptor(probe.fileno()), hard))
        try:
            begun_s = time.monotonic()
            assert not link.read(0.0)
            assert time.monotonic() - begun_s > 0.1, "no busy loop"
            assert "Too many open files" in link.problem
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        link.read(1.0)
        assert link.problem == ""
        client.sendall(b"one\n")
        assert [arrival.content for arrival in link.read(5.0)] == [b"one\n"]


def _lowest_free_descriptor(descriptor: int) -> int:
    copy = os.dup(descriptor)
    os.close(copy)
    return copy


# --- a disk that refuses, a full queue, a stop ---


def test_what_does_not_fit_while_the_disk_refuses_is_counted_and_an_alarm_and_no_line_is_made_of_the_rest(
    tmp_path: Path, sink: RememberingSink, free_port: int
) -> None:
    source = stream("udp", address="127.0.0.1", port=free_port, queue_max_bytes=1 << 16)
    with running(source, sink), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        wait_until(lambda: sink.alarms, "it listens")
        time.sleep(0.1)
        sink.disk_takes.clear()
        sender.sendto(b"first\n", ("127.0.0.1", free_port))
        time.sleep(0.1)
        for number in range(100):  # each ends in the middle of a line
            sender.sendto(b"end of %02d\n" % (number - 1) + b"." * 988 + b" begin", ("127.0.0.1", free_port))
            time.sleep(0.001)
        wait_until(lambda: "bytes were lost" in sink.alarm_now, "an alarm, although the disk still refuses")
        assert sink.captures == []
        sink.disk_takes.set()
        wait_until(lambda: len(sink.captures) > 20, "what was in the queue")
        sender.sendto(b" lost its begin\nwhole\n", ("127.0.0.1", free_port))
        wait_until(lambda: sink.contents()[-1] == b"whole\n", "the next whole line")
    lost_bytes = int(sink.alarm_now.split()[0])
    assert lost_bytes > 0 and lost_bytes % 1004 == 0, "whole datagrams are lost, and counted"
    assert not any(b"lost its begin" in content for content in sink.contents())
    assert b" lost its begin\n" in b"".join(content for content, _ in quarantined(tmp_path))


def test_at_a_stop_what_is_not_framed_is_set_aside_and_what_is_framed_is_handed_over(
    tmp_path: Path, sink: RememberingSink, listener: socket.socket
) -> None:
    source = stream("tcp-client", host="127.0.0.1", port=listener.getsockname()[1])
    with running(source, sink) as stop, listener.accept()[0] as connection:
        connection.sendall(b"one\nhalf")
        wait_until(lambda: sink.captures, "the line")
        stop.set()
        wait_until(lambda: quarantined(tmp_path), "half a line is set aside")
    assert quarantined(tmp_path)[0][0] == b"half"
    assert source.is_finite is False


def test_what_is_silent_in_the_middle_of_a_line_is_set_aside_and_white_space_is_not(
    tmp_path: Path, sink: RememberingSink, listener: socket.socket
) -> None:
    source = stream("tcp-client", host="127.0.0.1", port=listener.getsockname()[1], idle_gap_s=0.2)
    with running(source, sink), listener.accept()[0] as connection:
        connection.sendall(b"one\n  ")
        wait_until(lambda: sink.captures, "the line")
        time.sleep(0.4)
        assert quarantined(tmp_path) == []
        connection.sendall(b"half")
        wait_until(lambda: quarantined(tmp_path), "half a line is set aside")
        assert quarantined(tmp_path)[0][1].endswith("then silence")
        connection.sendall(b"two\n")
        wait_until(lambda: len(sink.captures) == 2, "the next line")


def test_a_pause_ends_an_observation_whose_clock_is_that_of_its_last_bytes(
    sink: RememberingSink, listener: socket.socket
) -> None:
    source = stream(
        "tcp-client", host="127.0.0.1", port=listener.getsockname()[1], payload_format="idle-gap", idle_gap_s=0.3
    )
    with running(source, sink), listener.accept()[0] as connection:
        connection.sendall(b"first ")
        time.sleep(0.1)
        sent_nanos = time.monotonic_ns()
        connection.sendall(b"observation")
        wait_until(lambda: len(sink.captures) == 1, "the first")
        handed_over_nanos = time.monotonic_ns()
        connection.sendall(b"second observation")
        wait_until(lambda: len(sink.captures) == 2, "the second")
    assert sink.contents() == [b"first observation", b"second observation"]
    assert sent_nanos < sink.captures[0].clock.monotonic_nanos < handed_over_nanos - 250_000_000


def test_after_an_error_of_the_disk_nothing_is_lost_and_nothing_comes_twice(listener: socket.socket) -> None:
    class FailingSink(RememberingSink):
        failures = 2

        def put(self, captures: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise BrokenStateError("expected to write, but got Input/output error")
            super().put(captures)

    source, sink, stop = stream("tcp-client", host="127.0.0.1", port=listener.getsockname()[1]), FailingSink(), []

    def run_again_and_again(done: threading.Event) -> None:
        while not done.is_set():
            try:
                source.run(sink, done)
            except BrokenStateError:
                stop.append(1)

    done = threading.Event()
    thread = threading.Thread(target=run_again_and_again, args=(done,))
    thread.start()
    with listener.accept()[0] as connection:
        for number in range(50):
            connection.sendall(b"%d\n" % number)
            time.sleep(0.002)
        wait_until(lambda: len(sink.captures) == 50, "all lines")
        done.set()
        thread.join(5)
    assert len(stop) == 2
    assert sink.contents() == [b"%d\n" % number for number in range(50)]
    assert [capture.origin_index for capture in sink.captures] == list(range(50))


def test_a_quarantine_that_is_broken_for_long_costs_no_memory_beyond_the_queue(
    tmp_path: Path, sink: RememberingSink, listener: socket.socket
) -> None:
    source = stream(
        "tcp-client", host="127.0.0.1", port=listener.getsockname()[1], queue_max_bytes=1 << 16, max_frame_bytes=64
    )
    sent = b"".join(b"%0100d\n" % number for number in range(30_000))
    done, errors = threading.Event(), []
    (tmp_path / "quarantine").rename(tmp_path / "good")
    (tmp_path / "quarantine").write_bytes(b"no folder")

    def run_again_and_again() -> None:
        while not done.is_set():
            try:
                source.run(sink, done)
            except BrokenStateError:
                errors.append(1)
                done.wait(0.005)

    def in_hand_bytes() -> int:
        return sum(len(entry.content) for entry in source._entries) + source._unframed.waiting_bytes  # type: ignore[attr-defined]

    thread = threading.Thread(target=run_again_and_again)
    thread.start()
    with listener.accept()[0] as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        wait_until(lambda: len(errors) > 50, "it is tried again and again")
        assert in_hand_bytes() <= 2 << 16
        (tmp_path / "quarantine").unlink()
        (tmp_path / "good").rename(tmp_path / "quarantine")
        sender.join()
    wait_until(lambda: "closed the connection" in sink.alarm_now, "everything is read")
    done.set()
    thread.join(10)
    assert sorted(b"".join(content for _, content, _ in sink.unframed).split()) == sorted(sent.split())
    assert sink.captures == []


def test_what_the_disk_did_not_take_until_the_end_is_said_in_the_log(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    class StoppingSink(RememberingSink):
        def put(self, captures: Any) -> None:
            raise Stopping

    source, stop = stream("tcp-client", host="127.0.0.1", port=listener.getsockname()[1]), threading.Event()

    def send() -> None:
        with listener.accept()[0] as connection:
            connection.sendall(b"one\n")
            stop.wait(5)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Stopping):
        source.run(StoppingSink(), stop)
    stop.set()
    thread.join()
    (record,) = [record for record in caplog.records if "bytes lost" in record.message]
    assert record.__dict__["lost_bytes"] == 4


def test_each_start_has_an_origin_of_its_own(free_port: int) -> None:
    sources = [stream("udp", port=free_port) for _ in range(20)]
    assert len({source._origin_name for source in sources}) == 20  # type: ignore[attr-defined]


def test_a_station_has_several_instruments_of_all_kinds_at_once(
    shared_data: Path, tmp_path: Path, port: Path, listener: socket.socket, free_port: int
) -> None:
    telegram = (shared_data / TELEGRAMS).read_bytes()
    (tmp_path / "in").mkdir()
    wire = Wire(port)
    entries = [
        {"name": "cl31", "source": "serial", "device": str(port), "payload_format": "vaisala-cl"},
        {"name": "wind", "source": "tcp-client", "host": "127.0.0.1", "port": listener.getsockname()[1]}
        | {"payload_format": "fixed-length", "frame_bytes": 6, "frame_start": "0xaa55"},
        {"name": "rain", "source": "udp", "address": "127.0.0.1", "port": free_port, "payload_format": "line"},
        {"name": "chm15k", "source": "folder", "folder": str(tmp_path / "in")},
    ]
    sources = [build_source(parse_instrument(entry), {}) for entry in entries]
    sinks = {source.instrument: RememberingSink() for source in sources}
    netcdf = (shared_data / "ceilometer/chm15k/00100_A202010220005_CHM170137.nc").read_bytes()
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(running(source, sinks[source.instrument]))
        connection = stack.enter_context(listener.accept()[0])
        sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        wait_until(lambda: all(sink.alarms for sink in sinks.values()), "all are at work")
        wire.wait_until_open()
        time.sleep(0.1)
        for at in range(0, len(telegram), 1000):
            os.write(wire.instrument, telegram[at : at + 1000])
        connection.sendall(b"\xaa\x551234")
        sender.sendto(b"0.2 mm\n", ("127.0.0.1", free_port))
        (tmp_path / "in" / "a.nc").write_bytes(netcdf)
        wait_until(lambda: all(sink.captures for sink in sinks.values()), "one observation of each")
    wire.unplug()
    assert {name: sink.contents() for name, sink in sinks.items()} == {
        "cl31": [telegram.strip(b"\r\n")],
        "wind": [b"\xaa\x551234"],
        "rain": [b"0.2 mm\n"],
        "chm15k": [netcdf],
    }
    assert all(capture.instrument == name for name, sink in sinks.items() for capture in sink.captures)


# --- the queue and the entries of the quarantine (pure) ---


def chunk(content: bytes, channel: str = "", *, is_end: bool = False) -> Chunk:
    return Chunk(channel, content, b"", 0.0, is_end=is_end)


def test_a_queue_counts_what_does_not_fit_and_marks_what_comes_behind_it() -> None:
    queue = ChunkQueue(2 * CHUNK_OVERHEAD_BYTES + 10)
    assert queue.put(chunk(b"12345", "a")) and queue.put(chunk(b"67890", "b"))
    assert not queue.put(chunk(b"lost", "a"))
    assert queue.put(chunk(b"", "b", is_end=True)), "an end always fits"
    assert queue.lost_bytes == 4
    assert [(one.content, one.is_behind_loss) for one in queue.take(0)] == [
        (b"12345", False),
        (b"67890", False),
        (b"", False),
    ]
    assert queue.put(chunk(b"next", "b")) and queue.put(chunk(b"next", "a"))
    assert [(one.channel, one.is_behind_loss) for one in queue.take(0)] == [("b", False), ("a", True)]
    assert queue.take(0) == []


def test_a_chunk_costs_no_more_memory_than_the_queue_counts() -> None:
    import tracemalloc

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    queue = ChunkQueue(1 << 22)
    while queue.put(Chunk("".join(["host", ":1"]), bytes(bytearray(10)), bytes(bytearray(70)), time.monotonic())):
        pass
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used <= 1 << 22


def test_the_first_noise_is_an_entry_at_once_and_what_follows_is_joined_ever_longer() -> None:
    entries = QuarantineEntries()
    written: list[tuple[float, int]] = []
    for second in range(3 * 3600):
        entries.add("tty", Unframed(b"x", "expected a line"), float(second))
        written += [(second, len(entry.content)) for entry in entries.due(float(second))]
    assert written[:4] == [(0, 1), (60, 60), (180, 120), (420, 240)]
    assert len(written) < 12, "a noisy year is some nine thousand entries, not thirty million"
    (last,) = entries.take_all()
    assert sum(length for _, length in written) + len(last.content) == 3 * 3600
    assert last.reason == f"expected a line (the first of {len(last.content)} such parts)"


def test_after_quiet_time_noise_is_an_entry_at_once_again_and_a_large_one_never_waits() -> None:
    entries = QuarantineEntries()
    for now_s in (0.0, 100.0):
        entries.add("tty", Unframed(b"x", "expected"), now_s)
        assert [entry.reason for entry in entries.due(now_s)] == ["expected"]
        assert entries.due(now_s + 60) == []
    entries.add("tty", Unframed(b"x", "expected"), 170.0)
    entries.due(170.0)
    entries.add("tty", Unframed(b"x" * WAITING_MAX_BYTES, "expected"), 171.0)
    assert [len(entry.content) for entry in entries.due(171.0)] == [WAITING_MAX_BYTES]


def test_noise_of_many_senders_together_waits_no_longer_than_that_of_one() -> None:
    entries = QuarantineEntries()
    for number in range(60):
        entries.add(f"udp {number}", Unframed(b"x", "expected"), 0.0)
    assert len(entries.due(0.0)) == 60
    for number in range(60):
        entries.add(f"udp {number}", Unframed(b"x" * (WAITING_MAX_BYTES // 50), "expected"), 1.0)
    assert len(entries.due(1.0)) == 60
    assert entries.waiting_bytes == 0


def test_a_thousand_channels_that_lost_bytes_cost_no_memory() -> None:
    queue = ChunkQueue(CHUNK_OVERHEAD_BYTES)
    queue.put(chunk(b"", "first"))
    for number in range(2 * MAX_TORN):
        assert not queue.put(chunk(b"lost", f"host:{number}"))
    queue.take(0)
    queue.put(chunk(b"next", f"host:{2 * MAX_TORN - 1}"))
    assert [one.is_behind_loss for one in queue.take(0)] == [True]
    assert len(queue._torn) < MAX_TORN


def test_noise_of_a_thousand_senders_is_bounded() -> None:
    entries = QuarantineEntries()
    for number in range(1000):
        entries.add(f"udp {number}", Unframed(b"x", "expected"), 0.0)
    written = entries.take_all()
    assert len(written) <= 65
    assert sum(len(entry.content) for entry in written) == 1000


# --- settings ---


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"source": "serial", "device": "/dev/ttyUSB0", "characters": "9N1"}, "expected instruments.characters"),
        ({"source": "serial", "device": "/dev/ttyUSB0", "payload_format": "file"}, "expected instruments.payload_fo"),
        ({"source": "udp", "port": 1, "payload_format": "netcdf"}, "expected instruments.payload_format"),
        ({"source": "udp", "port": 65536}, "expected instruments.port to be at most 65535"),
        ({"source": "udp", "port": 1, "payload_format": "fixed-length"}, "expected instruments.frame_bytes"),
        ({"source": "udp", "port": 1, "payload_format": "idle-gap"}, "expected instruments.idle_gap_s"),
        ({"source": "udp", "port": 1, "line_end": ""}, "expected instruments.line_end"),
        ({"source": "udp", "port": 1, "line_end": "€"}, "expected one byte a character"),
        (
            {"source": "udp", "port": 1, "payload_format": "fixed-length", "frame_bytes": 2, "frame_start": "0xabc"},
            "expected instruments.frame_start as 0x",
        ),
        (
            {"source": "udp", "port": 1, "payload_format": "fixed-length", "frame_bytes": 2, "frame_start": "abc"},
            "expected instruments.frame_start to be shorter than a frame",
        ),
        (
            {"source": "udp", "port": 1, "payload_format": "fixed-length", "frame_bytes": 99999},
            "expected frame_bytes to be at most max_frame_bytes",
        ),
    ],
)
def test_settings_of_streams_that_make_no_sense_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_instrument({"name": "cl51", "payload_format": "line"} | entry)


def test_a_stream_without_a_format_is_refused_with_a_hint() -> None:
    with pytest.raises(InvalidRequestError, match=r"expected instruments\.payload_format") as caught:
        parse_instrument({"name": "cl51", "source": "udp", "port": 1})
    assert "not recognised by its content" in caught.value.hint
