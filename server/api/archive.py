"""The service Archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from fieldpost.errors import BrokenStateError, InvalidRequestError, UnknownObservationError
from fieldpost.v1 import archive_service_pb2 as pb
from fieldpost.v1 import archive_service_pb2_grpc
from server.api.credentials import Context
from server.api.reading import Reading
from server.archive.manifests import read_promises
from server.archive.shelf import Shelf
from server.queries.archive import BagFilter, find_bag, list_bags


class ArchiveServicer(archive_service_pb2_grpc.ArchiveServicer):
    """Serves the catalogue of the archive, and the bags on its shelf."""

    def __init__(self, reading: Reading, shelf: Shelf) -> None:
        self._reading = reading
        self._shelf = shelf

    async def List(  # noqa: D102  (the protocol's names and comments)
        self, request: pb.ListBagsRequest, context: Context
    ) -> pb.ListBagsResponse:
        wanted = BagFilter(
            request.station, request.instrument, request.first_day, request.last_day, request.has_all_versions
        )
        page, token = await self._reading.query(
            lambda connection: list_bags(connection, wanted, request.page_size, request.page_token)
        )
        return pb.ListBagsResponse(bags=page, next_page_token=token)

    async def Get(self, request: pb.GetBagRequest, context: Context) -> pb.GetBagResponse:  # noqa: D102
        bag = await self._find(request, request.bag_version)
        return pb.GetBagResponse(bag=bag, files=await self._reading.call(self._list_files, bag))

    async def Read(  # noqa: D102
        self, request: pb.ReadBagRequest, context: Context
    ) -> AsyncIterator[pb.ReadBagResponse]:
        if request.bag_version < 1:
            raise InvalidRequestError(f"expected a version of 1 or more, but got {request.bag_version}")
        bag = await self._find(request, request.bag_version)
        pieces = await self._reading.call(self._open, bag, request.file, request.offset_bytes)
        while (piece := await self._reading.call(next, pieces, None)) is not None:
            yield pb.ReadBagResponse(content=piece)

    async def _find(self, request: pb.GetBagRequest | pb.ReadBagRequest, version: int) -> pb.ArchivedBag:
        if version < 0:
            raise InvalidRequestError(f"expected a version from 0 upward, but got {version}")
        return await self._reading.query(
            lambda connection: find_bag(connection, request.station, request.instrument, request.day, version)
        )

    def _list_files(self, bag: pb.ArchivedBag) -> list[pb.BagFile]:
        """The files, as the bag's manifests promise them."""
        promised = read_promises(self._shelf, bag.path, bag.manifest_sha256.hex())
        sizes = dict(self._shelf.list_files(bag.path))
        lacking = sorted(promised.keys() - sizes.keys())
        if lacking:
            raise BrokenStateError(
                f"expected {', '.join(lacking)} in the bag {bag.path}, but the archive has no such file",
                hint="run the flow scrub: it repairs a bag from its copy",
            )
        return [
            pb.BagFile(file=name, file_bytes=sizes[name], sha256=bytes.fromhex(promised[name]))
            for name in sorted(promised)
        ]

    def _open(self, bag: pb.ArchivedBag, file: str, offset_bytes: int) -> Iterator[bytes]:
        """The pieces of a file. Only what is listed is opened: a name could else lead out of the bag."""
        sizes = dict(self._shelf.list_files(bag.path))
        if file not in sizes:
            raise UnknownObservationError(
                f"expected a file of the bag {bag.path}, but got {file[:255]!r}", hint="Get tells the files of a bag"
            )
        if not 0 <= offset_bytes <= sizes[file]:
            raise InvalidRequestError(
                f"expected an offset_bytes from 0 to {sizes[file]}, the length of {file}, but got {offset_bytes}"
            )
        return self._shelf.read(bag.path, file, offset_bytes)
