"""The one table from our errors to gRPC status codes, and the end of a call that raised one."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import grpc
from sqlalchemy.exc import DataError

from fieldpost.errors import (
    BrokenStateError,
    FieldpostError,
    InvalidRequestError,
    NotAllowedError,
    OverloadedError,
    RejectedError,
    TryAgainError,
    UnknownInstrumentError,
    UnknownModelError,
    UnknownObservationError,
)
from server.api.access import UnknownCallerError
from server.batching.batcher import ExpiredError

logger = logging.getLogger(__name__)

DETAILS_LENGTH_MAX = 1000
"""Details travel in a header, and a client refuses a response whose headers are above 8 KiB."""

# The first that fits, so subclasses stand before their base.
CODES: list[tuple[type[FieldpostError], grpc.StatusCode]] = [
    (UnknownCallerError, grpc.StatusCode.UNAUTHENTICATED),
    (NotAllowedError, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownInstrumentError, grpc.StatusCode.NOT_FOUND),
    (UnknownObservationError, grpc.StatusCode.NOT_FOUND),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (RejectedError, grpc.StatusCode.INVALID_ARGUMENT),
    (ExpiredError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TryAgainError, grpc.StatusCode.UNAVAILABLE),
    (BrokenStateError, grpc.StatusCode.DATA_LOSS),
]


def as_ours(error: Exception) -> Exception:
    """A value that the database cannot hold, for example a NUL for PostgreSQL, is the caller's mistake."""
    if isinstance(error, DataError):
        return InvalidRequestError("expected names and numbers that a database can hold, but got something else")
    return error


def code_for(error: Exception) -> grpc.StatusCode:
    """The status code that stands for an error; INTERNAL for one that nobody foresaw."""
    return next((code for kind, code in CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def words_for(error: FieldpostError) -> str:
    """What a caller is told of an error."""
    words = f"{error} ({error.hint})" if error.hint else str(error)
    return words if len(words) <= DETAILS_LENGTH_MAX else f"{words[:DETAILS_LENGTH_MAX]}…"


async def end_with(context: grpc.aio.ServicerContext[Any, Any], error: FieldpostError) -> NoReturn:
    """Ends the call with the status that stands for an error."""
    code = code_for(error)
    if code is grpc.StatusCode.DATA_LOSS:
        logger.error("call failed", extra={"code": code.name, "error": str(error)})
    await context.abort(code, words_for(error))
