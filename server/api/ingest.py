"""The service Ingest."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fieldpost.errors import InvalidRequestError, OverloadedError
from fieldpost.v1 import ingest_service_pb2 as pb
from fieldpost.v1 import ingest_service_pb2_grpc, receipt_pb2
from server.api.access import Caller, Role, check_sender
from server.api.calls import abandon
from server.api.credentials import Context, Door
from server.ingest.core import Ingest
from server.ingest.uploads import Upload, Uploads

BUNDLES_MAX = 48
"""Bundles of one caller between arrival and receipt; beyond them it is not read from. Several commits' worth: with one
commit's, nobody reads or checks while it is written (measured: 25,000 observations a second instead of 30,000)."""
UPLOADS_MAX = 256
UPLOADS_OF_STATION_MAX = 8
"""Uploads at a time. Each keeps a file open, and costs its sender nothing while it stands still."""
SYNC_BYTES = 32 * 1024 * 1024
"""After so much of an upload the caller is told what is on the disk: the most that is sent again after a cut."""


class IngestServicer(ingest_service_pb2_grpc.IngestServicer):
    """Takes observations over gRPC."""

    def __init__(self, ingest: Ingest, uploads: Uploads, door: Door) -> None:
        self._ingest = ingest
        self._uploads = uploads
        self._door = door
        self._open_uploads: Counter[str] = Counter()

    async def Send(  # noqa: D102  (the protocol's names and comments)
        self, requests: AsyncIterator[pb.SendRequest], context: Context
    ) -> AsyncIterator[pb.SendResponse]:
        receipts: asyncio.Queue[asyncio.Future[receipt_pb2.Receipt] | None] = asyncio.Queue(BUNDLES_MAX)
        caller = await self._door.admit(context, "/fieldpost.v1.Ingest/Send")
        reader = asyncio.create_task(self._read(requests, receipts, caller))
        receipt = None
        try:
            while (receipt := await receipts.get()) is not None:
                # Shielded: what was submitted is stored although the caller has gone, and its future is the ingest's.
                yield pb.SendResponse(receipt=await asyncio.shield(receipt))
            await reader  # raises what ended it early
        finally:
            reader.cancel()
            abandon(reader)
            for left in (receipt, *(receipts.get_nowait() for _ in range(receipts.qsize()))):
                if left is not None:
                    abandon(left)

    async def _read(
        self,
        requests: AsyncIterator[pb.SendRequest],
        receipts: asyncio.Queue[asyncio.Future[receipt_pb2.Receipt] | None],
        caller: Caller,
    ) -> None:
        may_send_all = Role.OPERATOR in caller.roles
        try:
            async for request in requests:
                if not may_send_all:
                    check_sender(caller, (each.header.station for each in request.bundle.observations))
                try:
                    future = self._ingest.submit(request.bundle, timeout_s=0)
                except OverloadedError:  # wait, without stopping everyone else's calls
                    future = await asyncio.to_thread(self._ingest.submit, request.bundle)
                await receipts.put(asyncio.wrap_future(future))
        except Exception:
            await receipts.put(None)
            raise
        await receipts.put(None)

    async def Upload(  # noqa: D102
        self, requests: AsyncIterator[pb.UploadRequest], context: Context
    ) -> AsyncIterator[pb.UploadResponse]:
        caller = await self._door.admit(context, "/fieldpost.v1.Ingest/Upload")
        start = await anext(requests, None)
        if start is None or start.WhichOneof("part") != "start":
            raise InvalidRequestError("expected an upload to begin with its header, but got something else")
        check_sender(caller, [start.start.header.station])
        with self._counted(start.start.header.station):
            upload = await _whole(asyncio.to_thread(self._uploads.open, start.start.header, start.start.encoded_bytes))
            try:
                if upload.receipt is None:
                    async for held_bytes in _take(upload, requests, start.start.encoded_bytes):
                        yield pb.UploadResponse(held_bytes=held_bytes)
                    receipt = await _whole(asyncio.to_thread(upload.finish))
                else:
                    receipt = upload.receipt  # held already: nothing needs to be sent
                yield pb.UploadResponse(held_bytes=start.start.encoded_bytes, receipt=receipt)
            finally:
                await _whole(asyncio.to_thread(upload.close))

    @contextmanager
    def _counted(self, station: str) -> Iterator[None]:
        """One of the uploads that are open; raises OverloadedError where there are too many."""
        if self._open_uploads[station] >= UPLOADS_OF_STATION_MAX or self._open_uploads.total() >= UPLOADS_MAX:
            raise OverloadedError(
                f"expected at most {UPLOADS_OF_STATION_MAX} uploads of a station at a time, and {UPLOADS_MAX} of all, "
                "but one more came",
                hint="finish an upload before the next is begun, or call again in a minute",
            )
        self._open_uploads[station] += 1
        try:
            yield
        finally:
            self._open_uploads[station] -= 1
            if not self._open_uploads[station]:
                del self._open_uploads[station]


_T = TypeVar("_T")


async def _whole(step: Coroutine[Any, Any, _T]) -> _T:
    """One step on a file, waited for although the caller has gone: a second step beside it would spoil the first."""
    task = asyncio.create_task(step)
    abandon(task)  # what it raises, whoever still waits for it hears here
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _take(upload: Upload, requests: AsyncIterator[pb.UploadRequest], encoded_bytes: int) -> AsyncIterator[int]:
    """Writes the pieces; yields now and then how many bytes are on the disk, first those of an earlier try."""
    end = synced = upload.held_bytes
    yield synced
    while end < encoded_bytes and (request := await anext(requests, None)) is not None:
        if request.WhichOneof("part") != "chunk":
            raise InvalidRequestError("expected a piece of the payload, but got something else")
        await _whole(asyncio.to_thread(upload.write, request.chunk.offset_bytes, request.chunk.content))
        end += len(request.chunk.content)
        if end - synced >= SYNC_BYTES:
            synced = await _whole(asyncio.to_thread(upload.sync))
            yield synced
