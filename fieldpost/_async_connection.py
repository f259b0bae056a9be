"""The connection of an AsyncClient: calls, streams that are taken up again, and deadlines. Knows no service by name."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from grpc import aio

from fieldpost._channel import OPTIONS, Tls, channel_credentials
from fieldpost._resuming import Patience, Resumable
from fieldpost._status import ended_early, error_from, no_answer
from fieldpost._unknown import as_unknown
from fieldpost.errors import FieldpostError, TryAgainError, UnknownInstrumentError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")


class AsyncConnection:
    """A channel to the server, and what all calls over it share; see Connection."""

    def __init__(self, address: str, tls: Tls | None, token: str | None, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.is_closed = False
        credentials = channel_credentials(tls, token)
        self.channel = (
            aio.insecure_channel(address, OPTIONS)
            if credentials is None
            else aio.secure_channel(address, credentials, OPTIONS)
        )

    async def call(
        self,
        method: Callable[..., Awaitable[_Response]],
        request: object,
        *,
        timeout_s: float | None = None,
        unknown: type[FieldpostError] = UnknownInstrumentError,
    ) -> _Response:
        """Asks for one answer."""
        with self.translated(unknown):
            return await method(request, timeout=timeout_s or self.timeout_s)

    async def read(
        self, call: aio.UnaryStreamCall[Any, _Response], *, unknown: type[FieldpostError] = UnknownInstrumentError
    ) -> _Response | None:
        """The next answer of a stream; None at its end."""
        response: Any = await self.in_time(call.read(), unknown=unknown)
        return None if response is aio.EOF else response

    async def in_time(
        self, step: Awaitable[_Response], *, unknown: type[FieldpostError] = UnknownInstrumentError
    ) -> _Response:
        """Awaits one step of a stream: gRPC has deadlines for whole streams only."""
        try:
            with self.translated(unknown):
                async with asyncio.timeout(self.timeout_s):
                    return await step
        except TimeoutError as error:
            raise no_answer(self.address, self.timeout_s) from error

    async def resumed(
        self,
        open_call: Callable[[_Request], aio.UnaryStreamCall[_Request, _Response]],
        state: Resumable[_Request, _Response, _Item],
        unknown: type[FieldpostError] = UnknownInstrumentError,
    ) -> AsyncIterator[_Item]:
        """All items of a stream, which is taken up where it broke off."""
        while True:
            call = open_call(state.request())
            failure: FieldpostError = ended_early(self.address)
            try:
                while (response := await self.read(call, unknown=unknown)) is not None:
                    state.patience.progress()
                    for item in state.take(response):
                        yield item
                if state.is_complete(has_ended_well=True):
                    return
            except TryAgainError as error:
                if state.is_complete(has_ended_well=False):
                    return
                failure = error
            finally:
                call.cancel()
            await pause_or_raise(state.patience, failure)

    @contextmanager
    def translated(self, unknown: type[FieldpostError] = UnknownInstrumentError) -> Generator[None]:
        """Turns what gRPC raises into our errors."""
        try:
            yield
        except grpc.RpcError as error:
            raise as_unknown(error_from(error, self.address), unknown) from error


async def pause_or_raise(patience: Patience, failure: FieldpostError) -> None:
    """Waits until a stream may be taken up again; raises where it may not."""
    delay_s = patience.delay_after_s(failure, random.random(), time.monotonic())
    if delay_s is None:
        raise failure
    await asyncio.sleep(delay_s)
