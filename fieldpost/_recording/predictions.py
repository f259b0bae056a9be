"""Predictions of a RecordingServer: those that the test gave it. For tests only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from fieldpost._recording.pages import page_of
from fieldpost._recording.state import PAGE_SIZE, Recorded
from fieldpost._times import from_timestamp
from fieldpost.v1 import predictions_service_pb2 as pb
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.predictions_service_pb2_grpc import PredictionsServicer

_Wanted: TypeAlias = pb.ListPredictionsRequest | pb.WatchPredictionsRequest | pb.RetryPredictionsRequest


class RecordingPredictions(PredictionsServicer):
    """Serves predictions."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def List(self, request: pb.ListPredictionsRequest, context: Any) -> pb.ListPredictionsResponse:
        """One page."""
        page, token = self._page(request, request.page_token, request.page_size, context)
        return pb.ListPredictionsResponse(predictions=page, next_page_token=token)

    def Stream(self, request: pb.StreamPredictionsRequest, context: Any) -> Iterator[pb.StreamPredictionsResponse]:
        """All pages."""
        token = request.list.page_token
        while True:
            page, token = self._page(request.list, token, 0, context)
            yield pb.StreamPredictionsResponse(predictions=page, next_page_token=token)
            if not token:
                return

    def _page(
        self, wanted: pb.ListPredictionsRequest, token: str, size: int, context: Any
    ) -> tuple[list[Prediction], str]:
        with self._recorded.changed:
            matching = [each for each in self._recorded.predictions if _matches(wanted, each)]
        return page_of(matching, _list_key, token, min(size or PAGE_SIZE, self._recorded.page_size_max), context)

    def Watch(self, request: pb.WatchPredictionsRequest, context: Any) -> Iterator[pb.WatchPredictionsResponse]:
        """What is made from now on."""
        context.add_callback(self._recorded.notify)  # a caller that went away must not hold a thread for ever
        is_resumed = request.HasField("after_prediction_id")
        seen = request.after_prediction_id if is_resumed else self._recorded.last_prediction_id
        context.send_initial_metadata(())  # tells the caller that the watch has begun
        yield pb.WatchPredictionsResponse(seen_prediction_id=seen)
        while context.is_active():
            fresh = self._wait_beyond(seen, context)
            seen = max([seen, *(each.prediction_id for each in fresh)])
            wanted = [each for each in fresh if _names_match(request, each)]
            if wanted:
                yield pb.WatchPredictionsResponse(predictions=wanted, seen_prediction_id=seen)

    def _wait_beyond(self, seen: int, context: Any) -> list[Prediction]:
        """The predictions after that number, as soon as there are any; none where the caller went away."""
        with self._recorded.changed:
            self._recorded.changed.wait_for(lambda: self._recorded.last_prediction_id > seen or not context.is_active())
            return [each for each in self._recorded.predictions if each.prediction_id > seen]

    def Retry(self, request: pb.RetryPredictionsRequest, context: Any) -> pb.RetryPredictionsResponse:
        """Forgets failures."""
        with self._recorded.changed:
            kept = [each for each in self._recorded.predictions if not (each.failure and _matches(request, each))]
            count = len(self._recorded.predictions) - len(kept)
            self._recorded.predictions[:] = kept
        return pb.RetryPredictionsResponse(retry_count=count)


def _list_key(prediction: Prediction) -> tuple[int, int]:
    return from_timestamp(prediction.measure_time), prediction.prediction_id


def _matches(request: pb.ListPredictionsRequest | pb.RetryPredictionsRequest, prediction: Prediction) -> bool:
    nanos = from_timestamp(prediction.measure_time)
    return (
        _names_match(request, prediction)
        and request.model_version in (0, prediction.model_version)
        and not (request.HasField("start_time") and nanos < from_timestamp(request.start_time))
        and not (request.HasField("end_time") and nanos >= from_timestamp(request.end_time))
    )


def _names_match(request: _Wanted, prediction: Prediction) -> bool:
    wanted = ((request.station, prediction.station), (request.instrument, prediction.instrument))
    return all(want in ("", has) for want, has in (*wanted, (request.analysis, prediction.analysis)))
