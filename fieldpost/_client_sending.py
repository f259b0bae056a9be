"""Sends observations for a Client: bundles on one stream, and large ones by themselves, in pieces.

What a bundle is, and how far an upload has come, is decided in _sending.py and _uploading.py.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

import grpc

from fieldpost._connection import Connection, pause_or_raise
from fieldpost._sending import BUNDLES_IN_FLIGHT, Bundler, Tally, send_request
from fieldpost._status import ended_early, no_answer
from fieldpost._uploading import Sendable, Uploading
from fieldpost.errors import OfflineError, TryAgainError
from fieldpost.v1 import ingest_service_pb2 as pb
from fieldpost.v1.ingest_service_pb2_grpc import IngestStub
from fieldpost.v1.observation_pb2 import Bundle
from fieldpost.v1.receipt_pb2 import Receipt

Done = Callable[[int], None]
"""Told so many of the instrument's bytes of one upload are held."""


class Sender:
    """One send: bundles on a stream that is opened when there is a bundle, and closed before an upload."""

    def __init__(self, connection: Connection, stub: IngestStub, tally: Tally) -> None:
        self._connection = connection
        self._stub = stub
        self._tally = tally

    def receipts(self, observations: Iterable[Sendable]) -> Iterator[Receipt]:
        """Sends while it is iterated; yields the receipts."""
        stream: _BundleStream | None = None
        try:
            for part in _parts(observations):
                self._tally.add_sent(part)
                if isinstance(part, Bundle):
                    stream = stream or _BundleStream(self._connection, self._stub)
                    yield from stream.send(part)
                    continue
                if stream is not None:
                    yield from stream.finish()
                    stream = None
                yield upload(self._connection, self._stub, part, self._tally.note_upload)
            if stream is not None:
                yield from stream.finish()
        finally:
            if stream is not None:
                stream.close()


def _parts(observations: Iterable[Sendable]) -> Iterator[Bundle | Sendable]:
    bundler = Bundler()
    for observation in observations:
        yield from bundler.add(observation)
    yield from bundler.rest()


class _BundleStream:
    def __init__(self, connection: Connection, stub: IngestStub) -> None:
        self._connection = connection
        self._requests: queue.SimpleQueue[pb.SendRequest | None] = queue.SimpleQueue()
        self._call = stub.Send(iter(self._requests.get, None))
        self._in_flight = 0

    def send(self, bundle: Bundle) -> Iterator[Receipt]:
        self._requests.put(send_request(bundle))
        self._in_flight += 1
        if self._in_flight == BUNDLES_IN_FLIGHT:
            yield self._next_receipt()

    def finish(self) -> Iterator[Receipt]:
        try:
            self._requests.put(None)
            while self._in_flight:
                yield self._next_receipt()
            self._connection.read(self._call)  # the status: OK, or why the server is not content after all
        finally:
            self.close()

    def close(self) -> None:
        self._requests.put(None)  # lets gRPC's thread, which waits for the next request, end
        self._call.cancel()

    def _next_receipt(self) -> Receipt:
        response = self._connection.read(self._call)
        if response is None:
            raise ended_early(self._connection.address)
        self._in_flight -= 1
        return response.receipt


def upload(connection: Connection, stub: IngestStub, observation: Sendable, done: Done) -> Receipt:
    """Sends one observation in pieces, and goes on where it was when the connection breaks.

    Raises:
        TryAgainError: It did not get any further for a while. Uploading the same again goes on from there.
        RejectedError: The server refuses the whole.
        OSError: The file cannot be read.
    """
    state = Uploading(observation, connection.timeout_s)
    while True:
        try:
            for done_bytes in _upload_once(connection, stub, state):
                done(done_bytes)
            if state.receipt is not None:
                return state.receipt
            raise ended_early(connection.address)
        except TryAgainError as error:
            pause_or_raise(state.patience, error)


def _upload_once(connection: Connection, stub: IngestStub, state: Uploading) -> Iterator[int]:
    """One call; yields how much is held, as the server tells it."""
    offsets: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # where to begin; None where nothing is to be sent
    failures: list[Exception] = []

    def requests() -> Iterator[pb.UploadRequest]:  # gRPC asks in a thread of its own
        try:
            yield state.start()
            offset = offsets.get()
            while offset is not None and offset < state.encoded_bytes and call.is_active():
                request, offset = state.chunk_at(offset)
                yield request
                activity.note()  # gRPC has taken the piece, and asks for the next
        except Exception as error:  # gRPC would only say that there was one
            failures.append(error)
            call.cancel()

    call = stub.Upload(requests())
    with _activity(call, connection, state.silence_max_s(connection.timeout_s)) as activity:
        is_begun = False
        try:
            while True:
                with connection.translated():
                    response = next(call, None)
                if response is None:
                    return
                activity.note()
                state.take(response)
                if not is_begun:
                    offsets.put(None if state.receipt is not None else state.held_bytes)
                    is_begun = True
                yield state.done_bytes()
        except OfflineError:
            if failures:
                raise failures[0] from None
            raise
        finally:
            offsets.put(None)
            call.cancel()


class _Activity:
    """Cancels a call in which nothing has moved for a while."""

    def __init__(self, call: grpc.Call, timeout_s: float) -> None:
        self._call = call
        self._timeout_s = timeout_s
        self._noted = threading.Condition()
        self._count = 0
        self._is_over = False
        self.is_expired = False

    def note(self) -> None:
        with self._noted:
            self._count += 1

    def end(self) -> None:
        with self._noted:
            self._is_over = True
            self._noted.notify_all()

    def watch(self) -> None:
        with self._noted:
            while not self._is_over:
                before = self._count
                self._noted.wait_for(lambda: self._is_over, self._timeout_s)
                if not self._is_over and before == self._count:
                    self.is_expired = True
                    self._call.cancel()
                    return


@contextmanager
def _activity(call: grpc.Call, connection: Connection, timeout_s: float) -> Generator[_Activity]:
    activity = _Activity(call, timeout_s)
    watcher = threading.Thread(target=activity.watch, name="fieldpost-upload", daemon=True)
    watcher.start()
    try:
        yield activity
    except OfflineError as error:
        if activity.is_expired:
            raise no_answer(connection.address, timeout_s) from error
        raise
    finally:
        activity.end()
        watcher.join()
