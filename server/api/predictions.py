"""The service Predictions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from fieldpost.v1 import predictions_service_pb2 as pb
from fieldpost.v1 import predictions_service_pb2_grpc
from server.api.credentials import Context
from server.api.filters import prediction_filter
from server.api.reading import Reading
from server.api.watching import watch
from server.broadcast import Broadcast
from server.queries.predictions import (
    PredictionFilter,
    last_prediction_id,
    list_after,
    list_predictions,
    retry_failures,
)

STREAM_PAGE = 1000


class PredictionsServicer(predictions_service_pb2_grpc.PredictionsServicer):
    """Serves predictions."""

    def __init__(self, reading: Reading, predicted: Broadcast) -> None:
        self._reading = reading
        self._predicted = predicted

    async def List(  # noqa: D102  (the protocol's names and comments)
        self, request: pb.ListPredictionsRequest, context: Context
    ) -> pb.ListPredictionsResponse:
        return await self._page(request, request.page_size, request.page_token)

    async def Stream(  # noqa: D102
        self, request: pb.StreamPredictionsRequest, context: Context
    ) -> AsyncIterator[pb.StreamPredictionsResponse]:
        token, is_first = request.list.page_token, True
        while token or is_first:
            page = await self._page(request.list, STREAM_PAGE, token)
            token, is_first = page.next_page_token, False
            yield pb.StreamPredictionsResponse(predictions=page.predictions, next_page_token=token)

    async def _page(self, request: pb.ListPredictionsRequest, size: int, token: str) -> pb.ListPredictionsResponse:
        wanted = prediction_filter(request)
        page, next_token = await self._reading.query(
            lambda connection: list_predictions(connection, wanted, size, token)
        )
        return pb.ListPredictionsResponse(predictions=page, next_page_token=next_token)

    async def Watch(  # noqa: D102
        self, request: pb.WatchPredictionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchPredictionsResponse]:
        wanted = PredictionFilter(request.station, request.instrument, request.analysis)
        after_id = request.after_prediction_id if request.HasField("after_prediction_id") else None
        news = watch(self._reading, self._predicted, context, partial(list_after, wanted), last_prediction_id, after_id)
        async for page, seen_id in news:
            yield pb.WatchPredictionsResponse(predictions=page, seen_prediction_id=seen_id)

    async def Retry(  # noqa: D102
        self, request: pb.RetryPredictionsRequest, context: Context
    ) -> pb.RetryPredictionsResponse:
        wanted = prediction_filter(request)
        written = self._reading.store.write(lambda connection: retry_failures(connection, wanted))
        count = await asyncio.wrap_future(written)
        return pb.RetryPredictionsResponse(retry_count=count)
