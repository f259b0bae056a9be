"""The one table from our errors to gRPC status codes. Beside server.grpc_api, nothing on the server knows gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from fieldpost.errors import (
    BrokenStateError,
    FieldpostError,
    OverloadedError,
    RejectedError,
    TryAgainError,
    UnknownInstrumentError,
)

logger = logging.getLogger(__name__)

# The first that fits, so subclasses stand before their base.
CODES: list[tuple[type[FieldpostError], grpc.StatusCode]] = [
    (UnknownInstrumentError, grpc.StatusCode.NOT_FOUND),
    (RejectedError, grpc.StatusCode.INVALID_ARGUMENT),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TryAgainError, grpc.StatusCode.UNAVAILABLE),
    (BrokenStateError, grpc.StatusCode.DATA_LOSS),
]


def code_for(error: FieldpostError) -> grpc.StatusCode:
    """The status code that stands for an error."""
    return next((code for kind, code in CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


@asynccontextmanager
async def as_status(context: grpc.aio.ServicerContext[object, object]) -> AsyncIterator[None]:
    """Ends the call with the status that stands for an error raised inside."""
    try:
        yield
    except FieldpostError as error:
        code = code_for(error)
        if code is grpc.StatusCode.DATA_LOSS:
            logger.error("call failed", extra={"code": code.name, "error": str(error)})
        await context.abort(code, f"{error} ({error.hint})" if error.hint else str(error))
