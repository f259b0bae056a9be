"""The service Inference. Its answers come serialised: the core makes the bytes of many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fieldpost.v1 import inference_service_pb2 as pb
from fieldpost.v1 import inference_service_pb2_grpc
from server.api.calls import abandon
from server.api.credentials import Context
from server.prediction.inference import Flow, Inference


class InferenceServicer(inference_service_pb2_grpc.InferenceServicer):
    """Predicts."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._loop = asyncio.get_running_loop()

    async def Predict(  # type: ignore[override]  # noqa: D102  (the protocol's names and comments)
        self, request: pb.PredictRequest, context: Context
    ) -> bytes:
        return await self._inference.predict(request, lane=context.peer(), deadline_s=self._deadline_s(context))

    async def PredictStream(  # type: ignore[override]  # noqa: D102
        self, requests: AsyncIterator[pb.PredictStreamRequest], context: Context
    ) -> AsyncIterator[bytes]:
        flow = Flow(self._inference, lane=context.peer(), deadline_s=self._deadline_s(context))
        reader = asyncio.create_task(_read(requests, flow))
        try:
            while (response := await flow.answers()) is not None:
                yield response
            await reader  # raises what ended it early
        finally:
            reader.cancel()
            abandon(reader)
            flow.cancel()

    def _deadline_s(self, context: Context) -> float | None:
        left_s = context.time_remaining()
        return None if left_s is None else self._loop.time() + left_s


async def _read(requests: AsyncIterator[pb.PredictStreamRequest], flow: Flow) -> None:
    try:
        async for request in requests:
            await flow.take(request)
    finally:
        flow.end()
