"""The one table from gRPC status codes to our errors. Knows nothing of what was asked."""

from __future__ import annotations

import grpc

from fieldpost.errors import (
    BrokenStateError,
    FieldpostError,
    InvalidRequestError,
    NotAllowedError,
    OfflineError,
    OverloadedError,
    RejectedError,
    TryAgainError,
    UnknownInstrumentError,
)

_REACH = "check that the server runs, that address and network are right, and whether it wants TLS; then try again"
_CERTIFICATE = "give the certificate and key, or the token, that the server's operator issued to you"
_OPERATOR = "the server's log says more; tell its operator"
_VERSIONS = "client and server are of different versions; install the client version of the server"

ERRORS: dict[grpc.StatusCode, tuple[type[FieldpostError], str]] = {
    grpc.StatusCode.CANCELLED: (OfflineError, "the server, or something on the way, ended the call; try again"),
    grpc.StatusCode.UNKNOWN: (BrokenStateError, _OPERATOR),
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidRequestError, "change the request; the same will be refused again"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        OfflineError,
        "try again, with a larger timeout_s where the server is far or busy",
    ),
    grpc.StatusCode.NOT_FOUND: (UnknownInstrumentError, "check the names; `fieldpost stations` lists those there are"),
    grpc.StatusCode.ALREADY_EXISTS: (RejectedError, "it is there already; nothing needs to be done"),
    grpc.StatusCode.PERMISSION_DENIED: (
        NotAllowedError,
        "ask the server's operator for the right to do this",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (OverloadedError, "try again later, or send less at once"),
    grpc.StatusCode.FAILED_PRECONDITION: (RejectedError, "bring about first what the message names"),
    grpc.StatusCode.ABORTED: (TryAgainError, "try again"),
    grpc.StatusCode.OUT_OF_RANGE: (InvalidRequestError, "change the request; the same will be refused again"),
    grpc.StatusCode.UNIMPLEMENTED: (RejectedError, _VERSIONS),
    grpc.StatusCode.INTERNAL: (BrokenStateError, _OPERATOR),
    grpc.StatusCode.UNAVAILABLE: (OfflineError, _REACH),
    grpc.StatusCode.DATA_LOSS: (BrokenStateError, _OPERATOR),
    grpc.StatusCode.UNAUTHENTICATED: (NotAllowedError, _CERTIFICATE),
}


def error_for(code: grpc.StatusCode, details: str, address: str) -> FieldpostError:
    """The error that stands for a status other than OK."""
    error_type, hint = ERRORS[code]
    name = code.name.lower().replace("_", " ")
    return error_type(
        f"expected an answer of the server at {address}, but got {name}: {details or 'no details'}", hint=hint
    )


def error_from(error: grpc.RpcError, address: str) -> FieldpostError:
    """The error that stands for one that gRPC raised: of a call of either client, sync or asyncio."""
    return error_for(error.code(), error.details() or "", address)


def ended_early(address: str) -> OfflineError:
    """The error for a stream that the server ended, with OK, before it had answered everything."""
    return OfflineError(
        f"expected a receipt for each bundle, but the server at {address} ended the stream before",
        hint="send again what has no receipt, under the same epoch and sequences; nothing is stored twice",
    )


def no_answer(address: str, timeout_s: float) -> OfflineError:
    """The error for an answer that did not come in time, on a stream, which has no deadline of gRPC's."""
    return OfflineError(
        f"expected an answer of the server at {address} within {timeout_s:g} s, but none came", hint=_REACH
    )


def watch_ended(address: str) -> OfflineError:
    """The error for a watch that the server ended with OK: it is being shut down."""
    return OfflineError(f"expected the watch to go on, but the server at {address} ended it", hint=_REACH)
