"""The service Capacity."""

from __future__ import annotations

from fieldpost.v1 import capacity_service_pb2 as pb
from fieldpost.v1 import capacity_service_pb2_grpc
from server.api.credentials import Context
from server.operation.capacity import CapacityDesk


class CapacityServicer(capacity_service_pb2_grpc.CapacityServicer):
    """Tells of capacity."""

    def __init__(self, desk: CapacityDesk) -> None:
        self._desk = desk

    async def Get(  # noqa: D102  (the protocol's name and comment)
        self, request: pb.GetCapacityRequest, context: Context
    ) -> pb.GetCapacityResponse:
        return self._desk.gather()
