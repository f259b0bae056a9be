"""Where a watch stands, and what it does when its connection breaks. Opens no connection, reads no clock."""

from __future__ import annotations

from fieldpost.errors import FieldpostError, TryAgainError
from fieldpost.v1 import prediction_pb2
from fieldpost.v1 import predictions_service_pb2 as pb

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 30.0


def retry_delay_s(attempt: int, chance: float) -> float:
    """How long to wait before an attempt.

    Doubles from one attempt to the next up to a ceiling. Half of it is left to chance, so that a thousand clients of
    a server that comes back do not come back in the same instant.

    Args:
        attempt: 0 for the first attempt after a failure.
        chance: A random number in [0, 1).
    """
    return float(min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(attempt, 20)) * (0.5 + 0.5 * chance))


class WatchState:
    """The place that a watch has reached.

    A watch that could not even begin is an error: a wrong address would else be a silence.

    Args:
        request: Which predictions.
        after_prediction_id: Resume after this one; None for only what is made from now on.
        resume: Whether to go on by itself after a broken connection.
    """

    def __init__(self, request: pb.WatchPredictionsRequest, after_prediction_id: int | None, *, resume: bool) -> None:
        self._query = request
        self._resume = resume
        self._has_begun = False
        self._attempt = 0
        self.after_prediction_id = after_prediction_id

    def request(self) -> pb.WatchPredictionsRequest:
        """The request that goes on where the watch stands."""
        request = pb.WatchPredictionsRequest()
        request.CopyFrom(self._query)
        if self.after_prediction_id is not None:
            request.after_prediction_id = self.after_prediction_id
        return request

    def begin(self) -> None:
        """Notes that the server has begun: only what happens from now on is resumed."""
        self._has_begun = True

    def take(self, response: pb.WatchPredictionsResponse) -> list[prediction_pb2.Prediction]:
        """What is new in a response. Nothing is handed over twice."""
        self._attempt = 0
        fresh = []
        for prediction in response.predictions:
            if self.after_prediction_id is None or prediction.prediction_id > self.after_prediction_id:
                self.after_prediction_id = prediction.prediction_id
                fresh.append(prediction)
        # Also where nothing came, or nothing that was asked for: a watch of what is made from now on has its place.
        self.after_prediction_id = max(self.after_prediction_id or 0, response.seen_prediction_id)
        return fresh

    def delay_after_s(self, error: FieldpostError, chance: float) -> float | None:
        """How long to wait after a failure before going on; None where the watch ends with the error."""
        if not (self._resume and self._has_begun) or not isinstance(error, TryAgainError):
            return None
        self._attempt += 1
        return retry_delay_s(self._attempt - 1, chance)
