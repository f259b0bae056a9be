"""The connection of a Client: calls, streams that are taken up again, and deadlines. Knows no service by name."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import grpc

from fieldpost._channel import OPTIONS, Tls, channel_credentials
from fieldpost._resuming import Patience, Resumable
from fieldpost._status import ended_early, error_from, no_answer
from fieldpost._unknown import as_unknown
from fieldpost.errors import FieldpostError, OfflineError, TryAgainError, UnknownInstrumentError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")

Requests: TypeAlias = "queue.SimpleQueue[_Request | None]"


class Connection:
    """A channel to the server, and what all calls over it share.

    Args:
        address: The server, as "host:port".
        tls: How to prove who is who; None for a connection in the clear.
        token: Sent with every call.
        timeout_s: How long one answer may take.
    """

    def __init__(self, address: str, tls: Tls | None, token: str | None, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        credentials = channel_credentials(tls, token)
        self.channel = (
            grpc.insecure_channel(address, OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, OPTIONS)
        )

    def call(
        self,
        method: Callable[..., _Response],
        request: object,
        *,
        timeout_s: float | None = None,
        unknown: type[FieldpostError] = UnknownInstrumentError,
    ) -> _Response:
        """Asks for one answer."""
        with self.translated(unknown):
            return method(request, timeout=timeout_s or self.timeout_s)

    def read(
        self,
        call: grpc._CallIterator[_Response],
        *,
        unknown: type[FieldpostError] = UnknownInstrumentError,
    ) -> _Response | None:
        """The next answer of a stream; None at its end."""
        with deadline(call, self.timeout_s, self.address), self.translated(unknown):
            return next(call, None)

    def resumed(
        self,
        open_call: Callable[[_Request], grpc._CallIterator[_Response]],
        state: Resumable[_Request, _Response, _Item],
        unknown: type[FieldpostError] = UnknownInstrumentError,
    ) -> Iterator[_Item]:
        """All items of a stream, which is taken up where it broke off."""
        while True:
            call = open_call(state.request())
            failure: FieldpostError = ended_early(self.address)
            try:
                while (response := self.read(call, unknown=unknown)) is not None:
                    state.patience.progress()
                    yield from state.take(response)
                if state.is_complete(has_ended_well=True):
                    return
            except TryAgainError as error:
                if state.is_complete(has_ended_well=False):
                    return
                failure = error
            finally:
                call.cancel()
            pause_or_raise(state.patience, failure)

    @contextmanager
    def translated(self, unknown: type[FieldpostError] = UnknownInstrumentError) -> Generator[None]:
        """Turns what gRPC raises into our errors."""
        try:
            yield
        except grpc.RpcError as error:
            raise as_unknown(error_from(error, self.address), unknown) from error


def pause_or_raise(patience: Patience, failure: FieldpostError) -> None:
    """Waits until a stream may be taken up again; raises where it may not."""
    delay_s = patience.delay_after_s(failure, random.random(), time.monotonic())
    if delay_s is None:
        raise failure
    time.sleep(delay_s)


@contextmanager
def deadline(call: grpc.Call, timeout_s: float, address: str) -> Generator[None]:
    """Cancels the call where the block takes longer: gRPC has deadlines for whole streams only."""
    is_expired = threading.Event()

    def expire() -> None:
        is_expired.set()
        call.cancel()

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except OfflineError as error:
        if is_expired.is_set():
            raise no_answer(address, timeout_s) from error
        raise
    finally:
        timer.cancel()
