"""Observations too large for a message: in pieces, from files, on after a cut."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from sdk_support import Connect, both_clients, until_online

from fieldpost import Client, Outbox
from fieldpost.errors import InvalidObservationError, OfflineError
from fieldpost.payload import decode_checked
from fieldpost.testing import RecordingServer

MIB = 1024 * 1024


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as running:
        yield running


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.raw"
    path.write_bytes(os.urandom(24 * MIB))
    return path


@both_clients
def test_large_and_small_ones_are_sent_in_order_and_the_report_counts_all(
    server: RecordingServer, connect: Connect, volume: Path
) -> None:
    outbox = Outbox("station-1")
    items = [
        ("camera", b"1", None),
        ("ct", volume, "2025-06-01"),
        ("camera", b"2", None),
        ("ct", os.urandom(9 * MIB), None),
    ]
    told: list[int] = []
    with connect(server.address) as client:
        report = client.send(outbox.number(items), progress=told.append)
    assert (report.sent_count, report.held_count, report.undecided) == (4, 4, {})
    assert [each.header.sequence for each in server.observations] == [1, 2, 3, 4]
    assert decode_checked(server.observations[1]) == volume.read_bytes()
    assert told == sorted(told) and told[-1] == 33 * MIB + 2 and len(told) > 10


@both_clients
def test_an_upload_that_is_cut_goes_on_by_itself_from_where_it_was(
    server: RecordingServer, connect: Connect, volume: Path
) -> None:
    cut = threading.Event()

    def progress(done_bytes: int) -> None:
        if done_bytes >= 4 * MIB and not cut.is_set():
            cut.set()
            server.stop()
            held_at_the_cut.extend(len(held) for held in server.uploads.values())
            server.start()
        elif cut.is_set():
            told_after.append(done_bytes)

    held_at_the_cut: list[int] = []
    told_after: list[int] = []
    with connect(server.address) as client:
        report = client.upload(Outbox("station-1").file("ct", volume), progress=progress)
    assert report.held_count == 1
    assert cut.is_set() and told_after[0] >= held_at_the_cut[0] >= 4 * MIB
    assert decode_checked(server.observations[0]) == volume.read_bytes()


@both_clients
def test_an_upload_that_gives_up_is_taken_up_by_calling_again(
    server: RecordingServer, connect: Connect, volume: Path
) -> None:
    observation = Outbox("station-1").file("ct", volume)

    def progress(done_bytes: int) -> None:
        if done_bytes >= 4 * MIB:
            server.stop()

    with connect(server.address, timeout_s=0.5) as client, pytest.raises(OfflineError):
        client.upload(observation, progress=progress)
    (held,) = server.uploads.values()
    assert len(held) >= 4 * MIB
    server.start()
    told: list[int] = []
    with connect(server.address) as client:
        assert until_online(lambda: client.upload(observation, progress=told.append)).held_count == 1
        assert told[0] >= 4 * MIB  # it began there
        again = client.upload(observation)
    assert (again.held_count, again.duplicate_count) == (1, 1)
    assert len(server.observations) == 1


@both_clients
def test_a_refusal_is_in_the_report(connect: Connect, volume: Path) -> None:
    with RecordingServer(registered=frozenset()) as server, connect(server.address) as client:
        report = client.upload(Outbox("station-1").file("ct", volume))
    assert report.held_count == 0 and "not registered" in report.refused[0].detail


@both_clients
def test_a_file_that_became_shorter_or_went_away_is_the_callers_error(
    server: RecordingServer, connect: Connect, volume: Path
) -> None:
    observation = Outbox("station-1").file("ct", volume)
    with connect(server.address) as client:
        os.truncate(volume, 3 * MIB)
        with pytest.raises(InvalidObservationError, match="but there are 3145728"):
            client.upload(observation)
        volume.unlink()
        server.uploads.clear()
        with pytest.raises(FileNotFoundError):
            client.upload(observation)
        assert client.stations() == []  # and the connection is still good


@both_clients
def test_a_file_that_changed_is_refused_by_its_checksum(
    server: RecordingServer, connect: Connect, volume: Path
) -> None:
    observation = Outbox("station-1").file("ct", volume)
    with volume.open("r+b") as file:
        file.write(b"changed")
    with connect(server.address) as client:
        report = client.upload(observation)
    assert report.held_count == 0 and "SHA-256" in report.refused[0].detail


class Silent(grpc.GenericRpcHandler):
    """Takes every call and answers none."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def wait(requests: object, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.released.wait(30)
            yield from ()

        return grpc.stream_stream_rpc_method_handler(wait)


@both_clients
def test_an_upload_in_which_nothing_moves_is_given_up_after_the_timeout(connect: Connect, volume: Path) -> None:
    handler = Silent()
    running = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    address = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    running.start()
    try:
        with connect(address, timeout_s=0.3) as client, pytest.raises(OfflineError, match=r"within 0\.8"):
            client.upload(Outbox("station-1").file("ct", volume))
    finally:
        handler.released.set()
        running.stop(None).wait()


def test_an_upload_leaves_no_thread_behind(server: RecordingServer, volume: Path) -> None:
    with Client(server.address) as client:
        client.stations()
        before = set(threading.enumerate())
        client.upload(Outbox("station-1").file("ct", volume))
        for thread in set(threading.enumerate()) - before:
            if "recording" not in thread.name:
                thread.join(timeout=10)
                assert not thread.is_alive()
