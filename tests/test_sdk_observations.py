"""Listing, reading and watching observations, and what happens when the connection breaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from itertools import islice

import pytest
from sdk_support import Connect, both_clients

from fieldpost import AsyncClient, Client, Outbox
from fieldpost._observation_requests import read_request
from fieldpost._reading import Reading
from fieldpost.errors import BrokenStateError, InvalidRequestError, OfflineError, UnknownObservationError
from fieldpost.testing import RecordingServer
from fieldpost.v1 import observation_pb2
from fieldpost.v1 import observations_service_pb2 as pb

MIB = 1024 * 1024


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(page_size_max=3) as running:
        yield running


def fill(server: RecordingServer, count: int = 7, station: str = "station-1") -> None:
    outbox = Outbox(station)
    for n in range(count):
        server.observations.append(
            outbox.observation("camera", f"image {n} ".encode() * 50, f"2025-06-01T12:00:{59 - n:02}Z")
        )
    server.notify()


def large(server: RecordingServer, content: bytes) -> int:
    server.observations.append(Outbox("station-1").observation("ct", content))
    return len(server.observations)


@both_clients
def test_observations_come_by_measure_time_page_after_page(server: RecordingServer, connect: Connect) -> None:
    fill(server)
    fill(server, station="station-2")
    with connect(server.address) as client:
        found = client.observations(station="station-1", since="2025-06-01T12:00:54Z")
        assert [held.observation_id for held in found] == [6, 5, 4, 3, 2, 1]
        assert not found[0].payload and found[0].header.payload_bytes == 400
        assert len(client.observations()) == 14
        with pytest.raises(InvalidRequestError):
            client.observations(instrument="camera")


@both_clients
def test_contents_come_unpacked_and_checked_also_those_too_large_for_a_stream(
    server: RecordingServer, connect: Connect
) -> None:
    fill(server, 4)
    noise = os.urandom(3 * MIB)
    large(server, noise)
    with connect(server.address) as client:
        found = list(client.iter_contents(station="station-1"))
    assert [content for _, content in found[:4]] == [f"image {n} ".encode() * 50 for n in (3, 2, 1, 0)]
    assert found[4][1] == noise


@both_clients
def test_contents_go_on_where_they_were_when_the_server_was_restarted(
    server: RecordingServer, connect: Connect
) -> None:
    fill(server, 20)
    with connect(server.address) as client:
        contents = client.iter_contents()
        ids = [next(contents)[0].observation_id for _ in range(4)]
        server.stop()
        server.start()
        ids += [held.observation_id for held, _ in contents]
    assert ids == list(range(20, 0, -1))


@both_clients
@pytest.mark.parametrize("content", [os.urandom(9 * MIB), b"", b"x" * 9 * MIB], ids=["noise", "empty", "packed"])
def test_an_observation_is_read_by_number_listing_and_header(
    server: RecordingServer, connect: Connect, content: bytes
) -> None:
    number = large(server, content)
    with connect(server.address) as client:
        assert client.read(number) == content
        (held,) = client.observations()
        assert client.read(held) == content
        assert client.read(held.header) == content


@both_clients
def test_a_read_goes_on_from_where_it_was_when_the_connection_broke(server: RecordingServer, connect: Connect) -> None:
    content = os.urandom(48 * MIB)  # more than the network holds on its way
    number = large(server, content)
    with connect(server.address) as client:
        pieces = client.iter_read(number)
        got = [next(pieces)]
        server.stop()
        server.start()
        got += list(pieces)
    assert b"".join(got) == content


@both_clients
def test_what_is_not_there_is_an_unknown_observation(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        with pytest.raises(UnknownObservationError, match="no observation 3") as caught:
            client.read(3)
        assert "fieldpost observations" in caught.value.hint
        with pytest.raises(InvalidRequestError):
            client.read(0)


@both_clients
def test_damaged_bytes_are_a_broken_state(server: RecordingServer, connect: Connect) -> None:
    number = large(server, os.urandom(100))
    server.observations[0].payload = os.urandom(100)
    with connect(server.address) as client:
        with pytest.raises(BrokenStateError, match="SHA-256"):
            client.read(number)
        with pytest.raises(BrokenStateError, match="SHA-256"):
            list(client.iter_contents())


def test_a_server_that_gives_another_observation_after_a_break_is_not_believed() -> None:
    reading = Reading(read_request(1), patience_s=1)
    header = observation_pb2.ObservationHeader(payload_encoding=1, payload_bytes=4, sha256=b"a" * 32)
    assert list(reading.take(pb.ReadObservationResponse(header=header, encoded_bytes=4, content=b"ab"))) == [b"ab"]
    assert reading.request().offset_bytes == 2
    header.sha256 = b"b" * 32
    with pytest.raises(BrokenStateError, match="but got another"):
        list(reading.take(pb.ReadObservationResponse(header=header, encoded_bytes=4, content=b"cd")))


def test_bytes_before_a_header_are_not_believed() -> None:
    with pytest.raises(BrokenStateError, match="header first"):
        list(Reading(read_request(1), 1).take(pb.ReadObservationResponse(content=b"ab")))


@both_clients
def test_a_server_that_is_not_there_is_an_error_and_not_a_silence(connect: Connect, free_port: int) -> None:
    with connect(f"127.0.0.1:{free_port}") as client:
        for ask in (client.observations, lambda: list(client.iter_contents()), lambda: client.read(1)):
            with pytest.raises(OfflineError):
                ask()


def test_a_watch_of_observations_survives_restarts_without_loss_or_repetition(server: RecordingServer) -> None:
    with Client(server.address) as client, client.watch_observations(after_observation_id=0) as watch:
        seen = []
        for _ in range(3):
            fill(server, 5)
            seen += [held.observation_id for held in islice(watch, 4)]
            server.stop()
            fill(server, 5)
            server.start()
        seen += [held.observation_id for held in islice(watch, 30 - len(seen))]
        assert watch.last_observation_id == 30
    assert seen == list(range(1, 31))


def test_an_asyncio_watch_of_observations_hands_out_only_what_was_asked_for(server: RecordingServer) -> None:
    async def run() -> list[int]:
        async with AsyncClient(server.address) as client:
            watch = client.watch_observations(station="b", after_observation_id=0)
            return [(await anext(watch)).observation_id for _ in range(2)]

    fill(server, 2, station="a")
    fill(server, 2, station="b")
    assert asyncio.run(run()) == [3, 4]
