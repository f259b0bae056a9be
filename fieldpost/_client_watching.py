"""The watches of a Client: iterators that go on by themselves when their connection breaks."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import grpc
from google.protobuf.message import Message

from fieldpost._connection import deadline
from fieldpost._status import error_for, error_from, watch_ended
from fieldpost._watching import WatchState
from fieldpost.errors import FieldpostError
from fieldpost.v1.observations_service_pb2 import (
    HeldObservation,
    WatchObservationsRequest,
    WatchObservationsResponse,
)
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.predictions_service_pb2 import WatchPredictionsRequest, WatchPredictionsResponse

logger = logging.getLogger(__name__)

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")


class Watch(Iterator[_Item], Generic[_Request, _Response, _Item]):
    """What is watched, each once, as it comes. `close` ends it, from any thread."""

    def __init__(
        self,
        open_call: Callable[[_Request], grpc._CallIterator[_Response]],
        state: WatchState[_Request, _Response, _Item],
        address: str,
        timeout_s: float,
    ) -> None:
        self._last_id = state.after_id
        self._open_call = open_call
        self._state = state
        self._address = address
        self._waiting: deque[_Item] = deque()
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # a call must not be opened while close() cancels the one before
        self._call = open_call(state.request())
        with deadline(self._call, timeout_s, address):
            self._begin()

    def _begin(self) -> None:
        self._call.initial_metadata()  # comes when the server has begun; also where the call has failed
        if not self._call.is_active():
            raise error_for(self._call.code(), self._call.details(), self._address)
        self._state.patience.begin()

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

    def __next__(self) -> _Item:
        while not self._waiting and not self._is_closed.is_set():
            self._receive()
        if self._is_closed.is_set():
            raise StopIteration
        item = self._waiting.popleft()
        self._last_id = self._state.numbering.number(item)
        return item

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
        delay_s = self._state.patience.delay_after_s(failure, random.random(), time.monotonic())
        if delay_s is None:
            raise failure from cause
        logger.warning("watch interrupted", extra={"server": self._address, "delay_s": delay_s, "error": str(failure)})
        self._is_closed.wait(delay_s)
        with self._lock:
            if not self._is_closed.is_set():
                self._call = self._open_call(self._state.request())


class PredictionWatch(Watch[WatchPredictionsRequest, WatchPredictionsResponse, Prediction]):
    """The predictions of a watch."""

    @property
    def last_prediction_id(self) -> int | None:
        """The last one handed out; give it as after_prediction_id to go on later. None before it."""
        return self._last_id


class ObservationWatch(Watch[WatchObservationsRequest, WatchObservationsResponse, HeldObservation]):
    """The observations of a watch."""

    @property
    def last_observation_id(self) -> int | None:
        """The last one handed out; give it as after_observation_id to go on later. None before it."""
        return self._last_id
