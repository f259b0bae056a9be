"""Both clients against the server itself: what the RecordingServer plays has to be so in earnest, too."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from api_support import Running, Stubs, run

from fieldpost import AsyncClient, Client, Outbox
from fieldpost.errors import InvalidRequestError, RejectedError, UnknownModelError, UnknownObservationError

MIB = 1024 * 1024


def test_what_is_sent_is_listed_read_and_watched(tmp_path: Path) -> None:
    volume = tmp_path / "volume.raw"
    volume.write_bytes(os.urandom(8 * MIB))
    small = [f"profile {n} ".encode() * 20 for n in range(300)]

    def blocking(address: str) -> None:
        with Client(address) as client:
            outbox = Outbox("lindenberg")
            items = [("cl51", content, f"2025-06-01T12:{n // 60:02}:{n % 60:02}Z") for n, content in enumerate(small)]
            told: list[int] = []
            sent = [*outbox.number(items), outbox.file("cl51", volume, "2025-06-01T13:00:00Z")]
            report = client.send(sent, progress=told.append)
            assert (report.held_count, report.undecided, report.refused) == (301, {}, ())
            assert told[-1] == sum(map(len, small)) + 8 * MIB
            assert client.send(sent).duplicate_count == 301
            found = client.observations(station="lindenberg", since="2025-06-01T12:04Z")
            assert len(found) == 61 and found[-1].header.payload_bytes == 8 * MIB
            assert client.read(found[-1]) == volume.read_bytes() == client.read(found[-1].header)
            assert [content for _, content in client.iter_contents()] == [*small, volume.read_bytes()]
            with pytest.raises(UnknownObservationError):
                client.read(999)
            with client.watch_observations(after_observation_id=299) as watch:
                assert [next(watch).observation_id for _ in range(2)] == [300, 301]

    async def scenario(running: Running, stubs: Stubs) -> None:
        await asyncio.to_thread(blocking, running.address)

    run(tmp_path, scenario)


def test_an_asyncio_client_sends_a_large_file_and_reads_it_back(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        content = os.urandom(8 * MIB)
        async with AsyncClient(running.address) as client:
            report = await client.upload(Outbox("lindenberg").observation("cl51", content))
            assert report.held_count == 1
            (held,) = await client.observations()
            assert await client.read(held) == content
            assert (await client.capacity()).ingest.stored_count == 1

    run(tmp_path, scenario)


def test_many_are_predicted_at_once_and_each_gets_its_own(tmp_path: Path) -> None:
    def blocking(address: str) -> None:
        with Client(address) as client:
            lengths = [int(each["height"][0]) for each in client.predict_each("height", map(bytes, range(1, 1500)))]
            assert lengths == list(range(1, 1500))
            with pytest.raises(InvalidRequestError, match="cannot be decoded"):
                client.predict("height", b"bad")
            with pytest.raises(UnknownModelError):
                client.predict("nothing", b"1")
            with pytest.raises(RejectedError):
                client.predict("height", b"1", version=7)
            with pytest.raises(UnknownModelError):
                list(client.predict_each("nothing", [b"1"]))
            assert client.predict("height", b"12", version=1, instrument_model="cl51").model_version == 1

    async def scenario(running: Running, stubs: Stubs) -> None:
        await asyncio.to_thread(blocking, running.address)
        async with AsyncClient(running.address) as client:
            answers = await asyncio.gather(*(client.predict("height", bytes(n)) for n in range(1, 500)))
            assert [int(each["height"][0]) for each in answers] == list(range(1, 500))

    run(tmp_path, scenario)


def test_predictions_are_streamed_and_failures_tried_again(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        async with AsyncClient(running.address) as client:
            items = [("cl51", bytes([n]), f"2025-06-01T12:00:{n:02}Z") for n in range(5)]
            await client.send(Outbox("lindenberg").number(items))
            await running.predict(1, 2, 3, 4, 5, failing=(2, 4))
            table = await client.predictions(station="lindenberg", analysis="height")
            assert len(table) == 3 and len(table.failures) == 2
            assert await client.retry_predictions("height", station="lindenberg") == 2
            assert not (await client.predictions()).failures

    run(tmp_path, scenario)
