"""Stations and Capacity of a RecordingServer: what the test gave it. For tests only."""

from __future__ import annotations

from typing import Any

from fieldpost._recording.state import Recorded
from fieldpost.v1 import capacity_service_pb2, command_pb2
from fieldpost.v1 import stations_service_pb2 as pb
from fieldpost.v1.capacity_service_pb2_grpc import CapacityServicer
from fieldpost.v1.stations_service_pb2_grpc import StationsServicer


class RecordingStations(StationsServicer):
    """Serves stations, and answers for them."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def List(self, request: pb.ListStationsRequest, context: Any) -> pb.ListStationsResponse:
        """The stations, by name."""
        return pb.ListStationsResponse(stations=sorted(self._recorded.stations, key=lambda each: each.station))

    def Command(self, request: pb.CommandStationRequest, context: Any) -> pb.CommandStationResponse:
        """Notes the command; a station with a refusal refuses."""
        self._recorded.commands.append((request.station, request.command))
        detail = self._recorded.refusals.get(request.station, "")
        return pb.CommandStationResponse(
            result=command_pb2.CommandResult(
                command_id=request.command.command_id, is_accepted=not detail, detail=detail
            )
        )


class RecordingCapacity(CapacityServicer):
    """Tells what the test says."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def Get(
        self, request: capacity_service_pb2.GetCapacityRequest, context: Any
    ) -> capacity_service_pb2.GetCapacityResponse:
        """How things stand."""
        return self._recorded.capacity
