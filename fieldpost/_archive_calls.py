"""The calls about the archive, for both clients. What they ask for is built in _archive_requests.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Unpack

from fieldpost._archive_fetching import Fetch
from fieldpost._archive_requests import (
    ArchivedBag,
    BagFile,
    BagQuery,
    Day,
    FileReading,
    get_request,
    list_request,
    to_bag,
    to_file,
)
from fieldpost._async_connection import AsyncConnection
from fieldpost._connection import Connection
from fieldpost.errors import UnknownInstrumentError, UnknownObservationError
from fieldpost.v1 import archive_service_pb2 as pb
from fieldpost.v1.archive_service_pb2_grpc import ArchiveStub

if TYPE_CHECKING:
    from fieldpost.v1.archive_service_pb2_grpc import ArchiveAsyncStub

FetchProgress: TypeAlias = Callable[[int, int], None]
"""(bytes that have come, bytes of the whole bag)."""


class Archive:
    """What is archived. `client.archive` is one."""

    def __init__(self, connection: Connection, stub: ArchiveStub) -> None:
        self._connection = connection
        self._stub = stub

    def list(self, **query: Unpack[BagQuery]) -> list[ArchivedBag]:
        """Lists bags, by station, instrument, day and version.

        Args:
            query: Any of station, instrument (with station), first_day, last_day and all_versions, as BagQuery says.
                Nothing: the newest bag of every day.

        Raises:
            InvalidRequestError: The query makes no sense.
            TryAgainError: The server cannot be reached, or has too much to do.
        """
        return [*self.iter(**query)]

    def iter(self, **query: Unpack[BagQuery]) -> Iterator[ArchivedBag]:
        """The same one by one; never holds more than a page of them."""
        return self._pages(list_request(**query))

    def _pages(self, request: pb.ListBagsRequest) -> Iterator[ArchivedBag]:
        while True:
            page = self._connection.call(self._stub.List, request)
            yield from map(to_bag, page.bags)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def get(self, station: str, instrument: str, day: Day, *, version: int | None = None) -> ArchivedBag:
        """What is known of one bag.

        Args:
            station: Its station.
            instrument: Its instrument.
            day: Its UTC day.
            version: Its version; None for the newest.

        Raises:
            UnknownObservationError: The day is not archived; the message says what the server does hold of it.
        """
        return to_bag(self._get(get_request(station, instrument, day, version)).bag)

    def files(self, bag: ArchivedBag) -> tuple[BagFile, ...]:
        """The files of a bag, by name, with what its manifests promise.

        Raises:
            UnknownObservationError: There is no such bag.
            BrokenStateError: The bag is damaged.
            TryAgainError: The storage of the archive cannot be read now.
        """
        response = self._get(get_request(bag.station, bag.instrument, bag.day, bag.version))
        return tuple(map(to_file, response.files))

    def _get(self, request: pb.GetBagRequest) -> pb.GetBagResponse:
        with unknown_bags():
            return self._connection.call(self._stub.Get, request)

    def fetch(self, bag: ArchivedBag, folder: str | Path, *, progress: FetchProgress | None = None) -> Path:
        """Fetches a bag; returns its folder, <folder>/station/instrument/YYYY/YYYY-MM-DD.vN.

        It has that name once every file is on the disk and was compared with the manifest, and the manifest with what
        is recorded. Where the connection breaks it goes on where it was; so does a later call, and a bag that is there
        already is only read through.

        Args:
            bag: As list or get gave it.
            folder: Below which the bag is to appear.
            progress: Told now and then how many bytes have come, of how many.

        Raises:
            InvalidRequestError: Something else has the name of the bag in this folder.
            BrokenStateError: What came is not what the manifests promise.
            TryAgainError: The server cannot be reached, the disk refuses, or another process fetches the same.
        """
        fetch = Fetch(bag, self.files(bag), Path(folder))
        with fetch.alone():
            if fetch.is_there():
                return fetch.final
            done_bytes = 0
            for part in fetch.parts():
                while not part.is_whole():
                    reading = FileReading(bag, part.file, part.done_bytes, self._connection.timeout_s)
                    with unknown_bags():
                        for piece in self._connection.resumed(self._stub.Read, reading):
                            part.write(piece)
                            if progress is not None:
                                progress(done_bytes + part.done_bytes, fetch.total_bytes)
                done_bytes += part.file.file_bytes
            return fetch.publish()


class AsyncArchive:
    """The same calls for asyncio programs; see Archive."""

    def __init__(self, connection: AsyncConnection, stub: ArchiveAsyncStub) -> None:
        self._connection = connection
        self._stub = stub

    async def list(self, **query: Unpack[BagQuery]) -> list[ArchivedBag]:
        """Lists bags, by station, instrument, day and version; see Archive.list."""
        return [bag async for bag in self.iter(**query)]

    def iter(self, **query: Unpack[BagQuery]) -> AsyncIterator[ArchivedBag]:
        """The same one by one; never holds more than a page of them."""
        return self._pages(list_request(**query))

    async def _pages(self, request: pb.ListBagsRequest) -> AsyncIterator[ArchivedBag]:
        while True:
            page = await self._connection.call(self._stub.List, request)
            for bag in page.bags:
                yield to_bag(bag)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get(self, station: str, instrument: str, day: Day, *, version: int | None = None) -> ArchivedBag:
        """What is known of one bag; see Archive.get."""
        return to_bag((await self._get(get_request(station, instrument, day, version))).bag)

    async def files(self, bag: ArchivedBag) -> tuple[BagFile, ...]:
        """The files of a bag, by name, with what its manifests promise; see Archive.files."""
        response = await self._get(get_request(bag.station, bag.instrument, bag.day, bag.version))
        return tuple(map(to_file, response.files))

    async def _get(self, request: pb.GetBagRequest) -> pb.GetBagResponse:
        with unknown_bags():
            return await self._connection.call(self._stub.Get, request)

    async def fetch(self, bag: ArchivedBag, folder: str | Path, *, progress: FetchProgress | None = None) -> Path:
        """Fetches a bag; see Archive.fetch. The disk is waited for in threads."""
        fetch = Fetch(bag, await self.files(bag), Path(folder))
        with fetch.alone():
            if await asyncio.to_thread(fetch.is_there):
                return fetch.final
            done_bytes, parts = 0, fetch.parts()
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                while not await asyncio.to_thread(part.is_whole):
                    reading = FileReading(bag, part.file, part.done_bytes, self._connection.timeout_s)
                    with unknown_bags():
                        async for piece in self._connection.resumed(self._stub.Read, reading):
                            await asyncio.to_thread(part.write, piece)
                            if progress is not None:
                                progress(done_bytes + part.done_bytes, fetch.total_bytes)
                done_bytes += part.file.file_bytes
            return await asyncio.to_thread(fetch.publish)


@contextmanager
def unknown_bags() -> Generator[None]:
    """A bag that is not there is no unknown instrument."""
    try:
        yield
    except UnknownInstrumentError as error:
        hint = "`fieldpost archive list` shows what is archived"
        raise UnknownObservationError(str(error), hint=hint) from error
