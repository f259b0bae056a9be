"""What stands around every call of every service: who may, the request's bytes, and the status of what went wrong.

A method of a service only translates, calls, and translates back. Knows none of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from inspect import isasyncgenfunction
from typing import Any

import grpc

from fieldpost.errors import FieldpostError, InvalidRequestError
from server.api.credentials import Context, Door
from server.api.status import as_ours, code_for, end_with

logger = logging.getLogger(__name__)

Parse = Callable[[bytes], Any]
Answer = Callable[[Any, Context], Awaitable[Any]]
NoteCall = Callable[[str, str, float], None]
"""(method, status, duration in s) -> None; must return at once."""


class GuardedServer:
    """Takes the place of a grpc.aio.Server where generated code adds services to it: each method gets its guard.

    Args:
        server: The real one.
        door: Who may call.
        note_call: Told of each call's method, status and duration; None for nobody.
    """

    def __init__(self, server: grpc.aio.Server, door: Door, note_call: NoteCall | None = None) -> None:
        self._server = server
        self._door = door
        self._note_call = note_call

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Generated code offers each method twice; the other way is the one that is taken."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """Adds the methods of a service; what is not named here does not exist for gRPC."""
        guarded = {
            name: _Guard(f"/{service}/{name}", handler, self._door, self._note_call).handler()
            for name, handler in methods.items()
        }
        self._server.add_registered_method_handlers(service, guarded)


class _Guard:
    """One method behind the door. Its requests come as bytes: what gRPC itself cannot parse, it calls UNKNOWN."""

    def __init__(self, method: str, handler: Any, door: Door, note_call: NoteCall | None) -> None:
        self._method = method
        self._door = door
        self._note_call = note_call
        self._parse: Parse = handler.request_deserializer
        self._is_request_stream: bool = handler.request_streaming
        self._is_response_stream: bool = handler.response_streaming
        self._serialize = partial(_serialize, handler.response_serializer)
        self._behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    def handler(self) -> Any:
        """The method for gRPC."""
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[self._is_request_stream, self._is_response_stream]
        answer = self._answer_stream if self._is_response_stream else self._answer_once
        return make(self._noted(answer), response_serializer=self._serialize)

    def _noted(self, answer: Answer) -> Answer:
        """The same call with a status, whatever becomes of it."""
        note_call, method = self._note_call, self._method

        async def noted(request: Any, context: Context) -> Any:
            began_s, code = time.perf_counter(), "OK"
            try:
                return await answer(request, context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                code = "NOT_FOUND"  # health alone ends calls by itself: those about services that it does not know
                raise
            except Exception as error:
                ours = as_ours(error)
                code = code_for(ours).name
                await _end(context, method, ours)
            finally:
                if note_call is not None:
                    note_call(method, code, time.perf_counter() - began_s)

        return noted

    async def _answer_once(self, request: Any, context: Context) -> Any:
        await self._door.admit(context, self._method)
        return await self._behaviour(self._read(request), context)

    async def _answer_stream(self, request: Any, context: Context) -> None:
        revision = self._door.revision
        await self._door.admit(context, self._method)
        if not isasyncgenfunction(self._behaviour):  # it writes by itself
            await self._behaviour(self._read(request), context)
            return
        async with aclosing(self._behaviour(self._read(request), context)) as responses:  # ends in this very task
            async for response in responses:
                self._door.look_again()
                if revision != self._door.revision:  # a stream is open for months: who lost the right loses it here
                    revision = self._door.revision
                    await self._door.admit(context, self._method)
                try:
                    await context.write(response)
                except grpc.aio.InternalError:  # gRPC could not write: whoever should read has gone
                    raise asyncio.CancelledError from None

    def _read(self, request: Any) -> Any:
        return _parse_each(self._parse, request) if self._is_request_stream else _parse(self._parse, request)


def _parse(parse: Parse, content: bytes) -> Any:
    try:
        return parse(content)
    except Exception as error:  # of the protobuf library in use, whichever it is
        raise InvalidRequestError(
            f"expected a request of this method, but got {len(content)} bytes that are none",
            hint="client and server may be of different versions",
        ) from error


def _serialize(serialize: Callable[[Any], bytes], response: Any) -> bytes:
    """A response as bytes; what makes many at once (Inference) has made the bytes already."""
    return response if isinstance(response, bytes) else serialize(response)


async def _parse_each(parse: Parse, contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for content in contents:
        yield _parse(parse, content)


def abandon(future: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more: what it raises is not worth a line in the log."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _end(context: Context, method: str, error: Exception) -> None:
    """Ends the call with a status; only what nobody foresaw is INTERNAL, and is in the log."""
    if context.done():
        raise error
    if isinstance(error, FieldpostError):
        await end_with(context, error)
    logger.error("call broke", extra={"method": method}, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "the server failed in a way that nobody foresaw; its log says how")
