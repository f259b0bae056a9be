"""The service Models."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import model_pb2, models_service_pb2_grpc
from fieldpost.v1 import models_service_pb2 as pb
from server.api.credentials import Context, Door
from server.models.card import ModelState, Restriction
from server.models.desk import ModelDesk
from server.workers.jobs import ModelKey

STATES = {
    model_pb2.MODEL_STATE_READY: ModelState.READY,
    model_pb2.MODEL_STATE_SHADOW: ModelState.SHADOW,
    model_pb2.MODEL_STATE_ACTIVE: ModelState.ACTIVE,
    model_pb2.MODEL_STATE_RETIRED: ModelState.RETIRED,
}


class ModelsServicer(models_service_pb2_grpc.ModelsServicer):
    """Keeps model versions."""

    def __init__(self, desk: ModelDesk, door: Door, *, model_bytes_max: int) -> None:
        self._desk = desk
        self._door = door
        self._model_bytes_max = model_bytes_max

    async def Submit(  # noqa: D102  (the protocol's names and comments)
        self, requests: AsyncIterator[pb.SubmitModelRequest], context: Context
    ) -> pb.SubmitModelResponse:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "submission":
            raise InvalidRequestError("expected the manifest in the first message, but got something else")
        content = bytearray()
        async for request in requests:
            if request.WhichOneof("part") != "content":
                raise InvalidRequestError("expected a piece of the model, but got something else")
            content += request.content
            if len(content) > self._model_bytes_max:
                raise InvalidRequestError(
                    f"expected a model of at most {self._model_bytes_max} bytes, but got more",
                    hint="the server's setting model_bytes_max says how large one may be",
                )
        actor = await self._actor(context)
        model, is_known = await self._desk.submit(first.submission, bytes(content), actor=actor)
        return pb.SubmitModelResponse(model=model, is_known=is_known)

    async def List(  # noqa: D102
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=await self._desk.list(request.analysis))

    async def Get(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: D102
        return pb.GetModelResponse(model=await self._desk.get(ModelKey(request.analysis, request.model_version)))

    async def SetState(  # noqa: D102
        self, request: pb.SetModelStateRequest, context: Context
    ) -> pb.SetModelStateResponse:
        state = STATES.get(request.state)
        if state is None:
            raise InvalidRequestError(f"expected ready, shadow, active or retired as state, but got {request.state}")
        key = ModelKey(request.analysis, request.model_version)
        actor = await self._actor(context)
        return pb.SetModelStateResponse(
            model=await self._desk.set_state(key, state, actor=actor, reason=request.reason)
        )

    async def RollBack(  # noqa: D102
        self, request: pb.RollBackModelRequest, context: Context
    ) -> pb.RollBackModelResponse:
        actor = await self._actor(context)
        model = await self._desk.roll_back(request.analysis, actor=actor, reason=request.reason)
        return pb.RollBackModelResponse(model=model)

    async def Restrict(  # noqa: D102
        self, request: pb.RestrictModelRequest, context: Context
    ) -> pb.RestrictModelResponse:
        key = ModelKey(request.analysis, request.model_version)
        restriction = Restriction(tuple(request.restriction.stations), tuple(request.restriction.instruments))
        actor = await self._actor(context)
        return pb.RestrictModelResponse(model=await self._desk.restrict(key, restriction, actor=actor))

    async def _actor(self, context: Context) -> str:
        caller = await self._door.find_caller(context)
        return caller.name if caller else ""
