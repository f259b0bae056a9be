"""The client for ordinary programs: sends observations, reads and watches predictions.

It translates and calls; what to ask, how to bundle and when to try again is decided in the private modules beside it,
which it shares with AsyncClient.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, Unpack

import grpc

from fieldpost._channel import DEFAULT_TIMEOUT_S, OPTIONS, Tls
from fieldpost._commands import COMMAND_TIMEOUT_S, check_result
from fieldpost._requests import PredictionQuery, WatchQuery, list_request, next_page, watch_request
from fieldpost._sending import BUNDLES_IN_FLIGHT, Bundler, SendReport, Tally, send_request
from fieldpost._status import ended_early, error_for, error_from, no_answer, watch_ended
from fieldpost._table import PredictionTable, to_table
from fieldpost._watching import WatchState
from fieldpost.errors import FieldpostError, OfflineError
from fieldpost.v1 import command_pb2, ingest_service_pb2, predictions_service_pb2, receipt_pb2, stations_service_pb2
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1.ingest_service_pb2_grpc import IngestStub
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.predictions_service_pb2_grpc import PredictionsStub
from fieldpost.v1.stations_service_pb2_grpc import StationsStub

logger = logging.getLogger(__name__)

_Response = TypeVar("_Response")
_SendCall: TypeAlias = "grpc._CallIterator[ingest_service_pb2.SendResponse]"
_WatchCall: TypeAlias = "grpc._CallIterator[predictions_service_pb2.WatchPredictionsResponse]"


class Client:
    """A connection to a Fieldpost server. Threads may share it; close it, or use it in a `with` statement.

    Args:
        address: The server, as "host:port".
        tls: How to prove who is who; without it the connection is in the clear.
        timeout_s: How long one answer may take. A watch may be silent for ever.
    """

    def __init__(self, address: str, *, tls: Tls | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = (
            grpc.secure_channel(address, tls.credentials(), OPTIONS) if tls else grpc.insecure_channel(address, OPTIONS)
        )
        self._ingest = IngestStub(self._channel)
        self._predictions = PredictionsStub(self._channel)
        self._stations = StationsStub(self._channel)
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def close(self) -> None:
        """Ends what is under way, watches included, and the connection."""
        for watch in list(self._watches):
            watch.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, observations: Iterable[pb.Observation]) -> SendReport:
        """Sends observations, and returns when each has its answer.

        What the report counts as held is on the server's disk. Single refusals are in the report; they raise nothing.

        Args:
            observations: For example `Outbox(...).number(items)`. Those of one epoch in ascending order.

        Raises:
            TryAgainError: Not all could be sent. Send the same again, under the same epoch and sequences; what is
                held already is not stored twice.
            RejectedError: The server refuses the whole; sending it again cannot help.
        """
        tally = Tally()
        for receipt in self._send(observations, tally):
            tally.add_receipt(receipt)
        return tally.report()

    def send_each(self, observations: Iterable[pb.Observation]) -> Iterator[receipt_pb2.Receipt]:
        """Sends observations while it is iterated; yields the receipts, one a bundle, in the order of sending.

        For a series too long to wait for its end. Up to 8 bundles are on the way before the first receipt is
        awaited. Raises what `send` raises.
        """
        return self._send(observations, Tally())

    def _send(self, observations: Iterable[pb.Observation], tally: Tally) -> Iterator[receipt_pb2.Receipt]:
        requests: queue.SimpleQueue[ingest_service_pb2.SendRequest | None] = queue.SimpleQueue()
        call = self._ingest.Send(iter(requests.get, None))
        in_flight = 0
        try:
            for bundle in _bundles(observations):
                tally.add_sent(bundle)
                requests.put(send_request(bundle))
                in_flight += 1
                if in_flight == BUNDLES_IN_FLIGHT:
                    yield self._next_receipt(call)
                    in_flight -= 1
            requests.put(None)
            for _ in range(in_flight):
                yield self._next_receipt(call)
            self._read(call)  # the status: OK, or why the server is not content after all
        finally:
            requests.put(None)  # lets gRPC's thread, which waits for the next request, end
            call.cancel()

    def _next_receipt(self, call: _SendCall) -> receipt_pb2.Receipt:
        response = self._read(call)
        if response is None:
            raise ended_early(self.address)
        return response.receipt

    def _read(self, call: _SendCall) -> ingest_service_pb2.SendResponse | None:
        with _deadline(call, self._timeout_s, self.address), self._translated():
            return next(call, None)

    def predictions(self, **query: Unpack[PredictionQuery]) -> PredictionTable:
        """Reads predictions into columns; asks for as many pages as there are.

        Args:
            query: Any of station, instrument (with station), analysis, model_version (with analysis), since and
                until, as PredictionQuery says. Nothing: all.

        Raises:
            InvalidRequestError: The query makes no sense.
            TryAgainError: The server cannot be reached, or has too much to do.
        """
        return to_table(self.iter_predictions(**query))

    def iter_predictions(self, **query: Unpack[PredictionQuery]) -> Iterator[Prediction]:
        """Reads predictions one by one, by measure time; never holds more than a page of them.

        Args and errors are those of `predictions`.
        """
        return self._pages(list_request(**query))

    def _pages(self, request: predictions_service_pb2.ListPredictionsRequest) -> Iterator[Prediction]:
        while True:
            page = self._call(self._predictions.List, request)
            yield from page.predictions
            if not page.next_page_token:
                return
            request = next_page(request, page.next_page_token)

    def watch(
        self, *, after_prediction_id: int | None = None, resume: bool = True, **query: Unpack[WatchQuery]
    ) -> Watch:
        """Watches predictions as they are made; returns when the server has begun: from then on nothing is missed.

        Where the connection breaks, the watch goes on by itself after the last prediction that it had: nothing is
        missed and nothing comes twice.

        Args:
            after_prediction_id: Begin after this one, for example the last that was seen before; 0 for all that
                there is, then what is made from now on; None for only what is made from now on.
            resume: False to raise OfflineError where the connection breaks.
            query: Any of station, instrument (with station) and analysis, as WatchQuery says.

        Raises:
            InvalidRequestError: The query makes no sense.
            TryAgainError: The server cannot be reached now. Only what happens later is resumed: a wrong address is
                an error, not a silence.
        """
        state = WatchState(watch_request(**query), after_prediction_id, resume=resume)
        watch = Watch(self._predictions.Watch, state, self.address, self._timeout_s)
        self._watches.add(watch)
        return watch

    def stations(self) -> list[stations_service_pb2.Station]:
        """The stations and their instruments, as the server knows them, by name."""
        return list(self._call(self._stations.List, stations_service_pb2.ListStationsRequest()).stations)

    def command(self, station: str, command: command_pb2.Command, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Asks a station for something, and waits for its answer.

        Args:
            station: Its name.
            command: For example `Command(report=ReportCommand())`. The server fills in a command_id, and the epoch of a
                replay, where they are empty.
            timeout_s: How long the station may take. It is asked again and again, and does it once.

        Raises:
            RejectedError: The station refuses it, and says why.
            TryAgainError: The station does not answer, or the server cannot be reached.
        """
        request = stations_service_pb2.CommandStationRequest(station=station, command=command)
        check_result(station, self._call(self._stations.Command, request, timeout_s).result)

    def _call(self, method: Callable[..., _Response], request: object, timeout_s: float | None = None) -> _Response:
        with self._translated():
            return method(request, timeout=timeout_s or self._timeout_s)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise error_from(error, self.address) from error


class Watch(Iterator[Prediction]):
    """The predictions of a watch, each once, as they are made. `close` ends it, from any thread.

    Attributes:
        last_prediction_id: The last one handed out; give it as after_prediction_id to go on later. None before it.
    """

    def __init__(
        self,
        open_call: Callable[[predictions_service_pb2.WatchPredictionsRequest], _WatchCall],
        state: WatchState,
        address: str,
        timeout_s: float,
    ) -> None:
        self.last_prediction_id = state.after_prediction_id
        self._open_call = open_call
        self._state = state
        self._address = address
        self._waiting: deque[Prediction] = deque()
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # a call must not be opened while close() cancels the one before
        self._call = open_call(state.request())
        with _deadline(self._call, timeout_s, address):
            self._begin()

    def _begin(self) -> None:
        self._call.initial_metadata()  # comes when the server has begun; also where the call has failed
        if not self._call.is_active():
            raise error_for(self._call.code(), self._call.details(), self._address)
        self._state.begin()

    def close(self) -> None:
        """Ends the watch; whoever iterates it sees its end."""
        with self._lock:
            self._is_closed.set()
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __next__(self) -> Prediction:
        while not self._waiting and not self._is_closed.is_set():
            self._receive()
        if self._is_closed.is_set():
            raise StopIteration
        prediction = self._waiting.popleft()
        self.last_prediction_id = prediction.prediction_id
        return prediction

    def _receive(self) -> None:
        try:
            self._waiting.extend(self._state.take(next(self._call)))
        except StopIteration as error:  # a server that is shut down in order ends the stream with OK
            self._go_on(watch_ended(self._address), error)
        except grpc.RpcError as error:
            self._go_on(error_from(error, self._address), error)

    def _go_on(self, failure: FieldpostError, cause: Exception) -> None:
        if self._is_closed.is_set():
            return
        delay_s = self._state.delay_after_s(failure, random.random())
        if delay_s is None:
            raise failure from cause
        logger.warning("watch interrupted", extra={"server": self._address, "delay_s": delay_s, "error": str(failure)})
        self._is_closed.wait(delay_s)
        with self._lock:
            if not self._is_closed.is_set():
                self._call = self._open_call(self._state.request())


def _bundles(observations: Iterable[pb.Observation]) -> Iterator[pb.Bundle]:
    bundler = Bundler()
    for observation in observations:
        yield from bundler.add(observation)
    yield from bundler.rest()


@contextmanager
def _deadline(call: grpc.Call, timeout_s: float, address: str) -> Generator[None]:
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
