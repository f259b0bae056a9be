"""Sends observations for an AsyncClient: bundles on one stream, and large ones by themselves, in pieces.

What a bundle is, and how far an upload has come, is decided in _sending.py and _uploading.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
from grpc import aio

from fieldpost._async_connection import AsyncConnection, pause_or_raise
from fieldpost._sending import BUNDLES_IN_FLIGHT, Bundler, Tally, send_request
from fieldpost._status import ended_early, error_for, no_answer
from fieldpost._uploading import Sendable, Uploading
from fieldpost.errors import BrokenStateError, InvalidObservationError, TryAgainError
from fieldpost.v1 import ingest_service_pb2 as pb
from fieldpost.v1.observation_pb2 import Bundle
from fieldpost.v1.receipt_pb2 import Receipt

if TYPE_CHECKING:
    from fieldpost.v1.ingest_service_pb2_grpc import IngestAsyncStub

_Result = TypeVar("_Result")
_SendCall: TypeAlias = "aio.StreamStreamCall[pb.SendRequest, pb.SendResponse]"
_UploadCall: TypeAlias = "aio.StreamStreamCall[pb.UploadRequest, pb.UploadResponse]"

Done = Callable[[int], None]
"""Told so many of the instrument's bytes of one upload are held."""


class AsyncSender:
    """One send: bundles on a stream that is opened when there is a bundle, and closed before an upload."""

    def __init__(self, connection: AsyncConnection, stub: IngestAsyncStub, tally: Tally) -> None:
        self._connection = connection
        self._stub = stub
        self._tally = tally

    async def receipts(self, observations: AsyncIterable[Sendable] | Iterable[Sendable]) -> AsyncIterator[Receipt]:
        """Sends while it is iterated; yields the receipts."""
        stream: _BundleStream | None = None
        try:
            async for part in _parts(observations):
                self._tally.add_sent(part)
                if isinstance(part, Bundle):
                    stream = stream or _BundleStream(self._connection, self._stub)
                    async for receipt in stream.send(part):
                        yield receipt
                    continue
                if stream is not None:
                    async for receipt in stream.finish():
                        yield receipt
                    stream = None
                yield await upload(self._connection, self._stub, part, self._tally.note_upload)
            if stream is not None:
                async for receipt in stream.finish():
                    yield receipt
        finally:
            if stream is not None:
                stream.close()


async def _parts(observations: AsyncIterable[Sendable] | Iterable[Sendable]) -> AsyncIterator[Bundle | Sendable]:
    bundler = Bundler()
    if isinstance(observations, AsyncIterable):
        async for observation in observations:
            for part in bundler.add(observation):
                yield part
    else:
        for observation in observations:
            for part in bundler.add(observation):
                yield part
    for part in bundler.rest():
        yield part


class _BundleStream:
    def __init__(self, connection: AsyncConnection, stub: IngestAsyncStub) -> None:
        self._connection = connection
        self._call = stub.Send()
        self._status = _FirstStatus(self._call)
        self._in_flight = 0

    async def send(self, bundle: Bundle) -> AsyncIterator[Receipt]:
        await self._write(bundle)
        self._in_flight += 1
        if self._in_flight == BUNDLES_IN_FLIGHT:
            yield await self._next_receipt()

    async def finish(self) -> AsyncIterator[Receipt]:
        try:
            await self._connection.in_time(self._call.done_writing())
            while self._in_flight:
                yield await self._next_receipt()
            await self._connection.in_time(self._call.read())  # the status: OK, or why the server is not content
        finally:
            self.close()

    def close(self) -> None:
        self._call.cancel()

    async def _write(self, bundle: Bundle) -> None:
        try:
            await self._connection.in_time(self._call.write(send_request(bundle)))
        except (asyncio.InvalidStateError, BrokenStateError) as error:  # the call is over
            raise self._status.error(self._connection.address) from error

    async def _next_receipt(self) -> Receipt:
        response = await self._connection.in_time(self._call.read())
        if not isinstance(response, pb.SendResponse):  # aio.EOF
            raise ended_early(self._connection.address)
        self._in_flight -= 1
        return response.receipt


async def upload(connection: AsyncConnection, stub: IngestAsyncStub, observation: Sendable, done: Done) -> Receipt:
    """Sends one observation in pieces, and goes on where it was when the connection breaks.

    Raises:
        TryAgainError: It did not get any further for a while. Uploading the same again goes on from there.
        RejectedError: The server refuses the whole.
        OSError: The file cannot be read.
    """
    state = Uploading(observation, connection.timeout_s)
    while True:
        try:
            await _upload_once(connection, stub, state, done)
            if state.receipt is not None:
                return state.receipt
            raise ended_early(connection.address)
        except TryAgainError as error:
            await pause_or_raise(state.patience, error)


async def _upload_once(connection: AsyncConnection, stub: IngestAsyncStub, state: Uploading, done: Done) -> None:
    call = stub.Upload()
    timeout_s = state.silence_max_s(connection.timeout_s)
    status = _FirstStatus(call)
    writer: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(timeout_s) as limit:  # moved on whenever something moves
            try:
                with connection.translated():
                    await call.write(state.start())
                    while isinstance(response := await call.read(), pb.UploadResponse):
                        _move(limit, timeout_s)
                        state.take(response)
                        done(state.done_bytes())
                        if writer is None and state.receipt is None:
                            writer = asyncio.create_task(_write_rest(call, state, limit, timeout_s))
            except (asyncio.InvalidStateError, BrokenStateError) as error:
                raise status.error(connection.address) from error
    except TimeoutError as error:
        raise no_answer(connection.address, timeout_s) from error
    finally:
        call.cancel()
        if writer is not None:
            writer.cancel()
            (failure,) = await asyncio.gather(writer, return_exceptions=True)
            # Why the caller's own file could not be read; what gRPC says of a call that has ended is known already.
            if isinstance(failure, Exception) and not isinstance(failure, grpc.RpcError | asyncio.InvalidStateError):
                raise failure


async def _write_rest(call: _UploadCall, state: Uploading, limit: asyncio.Timeout, timeout_s: float) -> None:
    try:
        offset = state.held_bytes
        while offset < state.encoded_bytes:
            request, offset = await asyncio.to_thread(state.chunk_at, offset)
            await call.write(request)
            _move(limit, timeout_s)
        await call.done_writing()
    except (OSError, InvalidObservationError):  # the file, not the call
        call.cancel()
        raise


def _move(limit: asyncio.Timeout, timeout_s: float) -> None:
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time() + timeout_s)


class _FirstStatus:
    """The status that a call ended with, as it was first.

    Where a write fails because the call has just ended, grpc.aio puts INTERNAL in the place of the status that came
    from the server (https://github.com/grpc/grpc/issues/36066), and whether to try again could not be told any more.
    Where the connection broke, it may put INTERNAL there before any status has come, and none comes after it.
    """

    def __init__(self, call: _SendCall | _UploadCall) -> None:
        self._code: grpc.StatusCode | None = None  # None where there was none, or none that can be trusted
        self._details = ""
        call.add_done_callback(self._keep)

    def error(self, address: str) -> Exception:
        """The error that stands for it."""
        if self._code in (None, grpc.StatusCode.OK):
            return ended_early(address)
        return error_for(self._code, self._details, address)

    def _keep(self, call: Any) -> None:
        code = _result_now(call.code())
        if self._code is None and code is not grpc.StatusCode.INTERNAL:
            self._code, self._details = code, _result_now(call.details()) or ""


def _result_now(coroutine: Coroutine[Any, None, _Result]) -> _Result | None:
    """The result of a coroutine that has nothing to wait for; None where it has."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: _Result = stop.value
        return result
    coroutine.close()
    return None
