"""Where a watch stands, and what it does when its connection breaks. Opens no connection, reads no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from fieldpost._resuming import Patience
from fieldpost.v1 import observations_service_pb2, prediction_pb2, predictions_service_pb2

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Numbering(Generic[_Request, _Response, _Item]):
    """How what is watched is numbered.

    Attributes:
        resume_at: Puts the number to resume after into a request.
        items: What a response holds.
        number: The number of an item.
        seen: Up to which number a response has told of everything.
    """

    resume_at: Callable[[_Request, int], None]
    items: Callable[[_Response], Iterable[_Item]]
    number: Callable[[_Item], int]
    seen: Callable[[_Response], int]


def _after_prediction(request: predictions_service_pb2.WatchPredictionsRequest, number: int) -> None:
    request.after_prediction_id = number


def _after_observation(request: observations_service_pb2.WatchObservationsRequest, number: int) -> None:
    request.after_observation_id = number


PREDICTIONS: Numbering[
    predictions_service_pb2.WatchPredictionsRequest,
    predictions_service_pb2.WatchPredictionsResponse,
    prediction_pb2.Prediction,
] = Numbering(
    _after_prediction,
    lambda response: response.predictions,
    lambda prediction: prediction.prediction_id,
    lambda response: response.seen_prediction_id,
)
OBSERVATIONS: Numbering[
    observations_service_pb2.WatchObservationsRequest,
    observations_service_pb2.WatchObservationsResponse,
    observations_service_pb2.HeldObservation,
] = Numbering(
    _after_observation,
    lambda response: response.observations,
    lambda observation: observation.observation_id,
    lambda response: response.seen_observation_id,
)


class WatchState(Generic[_Request, _Response, _Item]):
    """The place that a watch has reached.

    Args:
        numbering: What is watched.
        query: Which of them, without a place.
        after_id: Resume after this one; None for only what comes from now on.
        resume: Whether to go on by itself after a broken connection.
    """

    def __init__(
        self, numbering: Numbering[_Request, _Response, _Item], query: _Request, after_id: int | None, *, resume: bool
    ) -> None:
        self.numbering = numbering
        self.patience = Patience(None if resume else 0)
        self.after_id = after_id
        self._query = query

    def request(self) -> _Request:
        """The request that goes on where the watch stands."""
        request: _Request = type(self._query)()
        request.CopyFrom(self._query)
        if self.after_id is not None:
            self.numbering.resume_at(request, self.after_id)
        return request

    def take(self, response: _Response) -> list[_Item]:
        """What is new in a response. Nothing is handed over twice."""
        self.patience.progress()
        fresh = []
        for item in self.numbering.items(response):
            number = self.numbering.number(item)
            if self.after_id is None or number > self.after_id:
                self.after_id = number
                fresh.append(item)
        # Also where nothing came, or nothing that was asked for: a watch of what is made from now on has its place.
        self.after_id = max(self.after_id or 0, self.numbering.seen(response))
        return fresh
