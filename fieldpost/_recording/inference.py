"""Inference of a RecordingServer: a function of the test answers. For tests only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc

from fieldpost._recording import state
from fieldpost._recording.state import Recorded
from fieldpost._times import from_timestamp
from fieldpost.errors import InvalidObservationError, OverloadedError, RejectedError
from fieldpost.payload import decode_payload
from fieldpost.v1 import inference_service_pb2 as pb
from fieldpost.v1.inference_service_pb2_grpc import InferenceServicer
from fieldpost.v1.model_pb2 import MODEL_STATE_ACTIVE

_STATUS = {
    pb.PREDICT_FAILURE_REJECTED: grpc.StatusCode.INVALID_ARGUMENT,
    pb.PREDICT_FAILURE_OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    pb.PREDICT_FAILURE_EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class RecordingInference(InferenceServicer):
    """Predicts at once."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        """Predicts one payload."""
        predict, version = self._find(request.analysis, request.model_version, context)
        result = _result(predict, request.analysis, version, request.item)
        if result.failure:
            context.abort(_STATUS[result.failure], result.failure_detail)
        return pb.PredictResponse(result=result)

    def PredictStream(self, request_iterator: Any, context: Any) -> Iterator[pb.PredictStreamResponse]:
        """Predicts payloads as they come."""
        for request in request_iterator:
            predict, version = self._find(request.analysis, request.model_version, context)
            yield pb.PredictStreamResponse(
                results=[_result(predict, request.analysis, version, item) for item in request.items]
            )

    def _find(self, analysis: str, version: int, context: Any) -> tuple[state.Predict, int]:
        known = [each for each in self._recorded.models if each.analysis == analysis]
        fitting = [each for each in known if version in (0, each.model_version)]
        if not version:
            fitting = [each for each in fitting if each.state == MODEL_STATE_ACTIVE]
        if self._recorded.predict is None or (self._recorded.models and not fitting):
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {analysis}@{version or 'active'}")
            raise AssertionError("abort raises")
        return self._recorded.predict, fitting[0].model_version if fitting else version or 1


def _result(predict: state.Predict, analysis: str, version: int, item: pb.PredictItem) -> pb.PredictResult:
    begin_s = time.monotonic()
    result = pb.PredictResult(item_id=item.item_id, model_version=version)
    try:
        variables = list(predict(analysis, decode_payload(item.payload, item.payload_encoding, item.payload_bytes)))
    except (InvalidObservationError, RejectedError) as error:
        result.failure, result.failure_detail = pb.PREDICT_FAILURE_REJECTED, str(error)
        return result
    except OverloadedError as error:
        result.failure, result.failure_detail = pb.PREDICT_FAILURE_OVERLOADED, str(error)
        return result
    if item.timeout_s and time.monotonic() - begin_s > item.timeout_s:
        result.failure, result.failure_detail = pb.PREDICT_FAILURE_EXPIRED, f"not within {item.timeout_s:g} s"
        return result
    result.variables.extend(variables)
    measured = from_timestamp(item.measure_time) if item.HasField("measure_time") else time.time_ns()
    result.sample_unix_nanos.extend([measured] * max((len(each.values) for each in variables), default=0))
    return result
