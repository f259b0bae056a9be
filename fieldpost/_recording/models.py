"""Models of a RecordingServer: states as the server keeps them; nothing is ever run. For tests only."""

from __future__ import annotations

import hashlib
import time
import tomllib
from typing import Any

import grpc

from fieldpost._recording.state import Recorded
from fieldpost._times import from_timestamp, to_timestamp
from fieldpost.v1 import models_service_pb2 as pb
from fieldpost.v1.model_pb2 import (
    MODEL_KIND_ONNX,
    MODEL_STATE_ACTIVE,
    MODEL_STATE_READY,
    Model,
    ModelEvent,
    ModelState,
)
from fieldpost.v1.models_service_pb2_grpc import ModelsServicer


class RecordingModels(ModelsServicer):
    """Keeps model versions."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def Submit(self, request_iterator: Any, context: Any) -> pb.SubmitModelResponse:
        """Takes a model whose manifest names an analysis."""
        submission = next(request_iterator).submission
        content = b"".join(request.content for request in request_iterator)
        try:
            manifest = tomllib.loads(submission.manifest)
            analysis = manifest["analysis"]
        except (tomllib.TOMLDecodeError, KeyError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected a manifest that names its analysis: {error}")
        digest = hashlib.sha256(content).digest()
        for model in self._recorded.models:
            if (model.sha256, model.manifest) == (digest, submission.manifest):
                return pb.SubmitModelResponse(model=model, is_known=True)
        version = 1 + max((each.model_version for each in self._of(analysis)), default=0)
        model = Model(
            analysis=analysis,
            model_version=version,
            kind=MODEL_KIND_ONNX,
            sha256=digest,
            content_bytes=len(content),
            manifest=submission.manifest,
            instrument_models=manifest.get("instrument_models", []),
            submit_time=to_timestamp(time.time_ns()),
            submitter="local",
            provenance=submission.provenance,
        )
        _become(model, MODEL_STATE_READY, "submitted")
        self._recorded.models.append(model)
        self._recorded.contents[analysis, version] = content
        return pb.SubmitModelResponse(model=model)

    def List(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """The versions, without events and comparison."""
        found = [Model.FromString(each.SerializeToString()) for each in self._of(request.analysis)]
        for model in found:
            model.ClearField("events")
            model.ClearField("comparison")
        found.sort(key=lambda each: (each.analysis, each.model_version))
        return pb.ListModelsResponse(models=found)

    def Get(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """Everything."""
        return pb.GetModelResponse(model=self._find(request.analysis, request.model_version, context))

    def SetState(self, request: pb.SetModelStateRequest, context: Any) -> pb.SetModelStateResponse:
        """Gives a version another state; the one that was active becomes ready."""
        model = self._find(request.analysis, request.model_version, context)
        self._set(model, request.state, request.reason)
        return pb.SetModelStateResponse(model=model)

    def RollBack(self, request: pb.RollBackModelRequest, context: Any) -> pb.RollBackModelResponse:
        """Makes the version active that was active before."""
        others = [each for each in self._of(request.analysis) if each.state != MODEL_STATE_ACTIVE]
        once = [each for each in others if _last_active(each)]
        if not once:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"no version of {request.analysis} was active before")
        model = max(once, key=_last_active)
        self._set(model, MODEL_STATE_ACTIVE, request.reason)
        return pb.RollBackModelResponse(model=model)

    def Restrict(self, request: pb.RestrictModelRequest, context: Any) -> pb.RestrictModelResponse:
        """Says what a version predicts for."""
        model = self._find(request.analysis, request.model_version, context)
        model.restriction.CopyFrom(request.restriction)
        return pb.RestrictModelResponse(model=model)

    def _of(self, analysis: str) -> list[Model]:
        return [each for each in self._recorded.models if analysis in ("", each.analysis)]

    def _find(self, analysis: str, version: int, context: Any) -> Model:
        for model in self._of(analysis):
            if model.model_version == version:
                return model
        context.abort(grpc.StatusCode.NOT_FOUND, f"no model {analysis}@{version}")
        raise AssertionError("abort raises")

    def _set(self, model: Model, state: ModelState.ValueType, reason: str) -> None:
        for other in self._of(model.analysis):
            if state == MODEL_STATE_ACTIVE and other.state == state and other is not model:
                _become(other, MODEL_STATE_READY, f"version {model.model_version} is active now")
        _become(model, state, reason)


def _become(model: Model, state: ModelState.ValueType, reason: str) -> None:
    model.state = state
    model.events.append(ModelEvent(event_time=to_timestamp(time.time_ns()), state=state, actor="local", reason=reason))


def _last_active(model: Model) -> int:
    return max((from_timestamp(e.event_time) for e in model.events if e.state == MODEL_STATE_ACTIVE), default=0)
