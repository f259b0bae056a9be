"""The service Stations."""

from __future__ import annotations

from fieldpost.v1 import command_pb2, stations_service_pb2_grpc
from fieldpost.v1 import stations_service_pb2 as pb
from server.api.credentials import Context
from server.api.reading import Reading
from server.ingest.core import Ingest
from server.mqtt.command_desk import CommandDesk
from server.queries.stations import last_status, list_stations

COMMAND_TIMEOUT_S = 60.0


class StationsServicer(stations_service_pb2_grpc.StationsServicer):
    """Serves stations."""

    def __init__(self, reading: Reading, ingest: Ingest, desk: CommandDesk) -> None:
        self._reading = reading
        self._ingest = ingest
        self._desk = desk

    async def List(  # noqa: D102  (the protocol's names and comments)
        self, request: pb.ListStationsRequest, context: Context
    ) -> pb.ListStationsResponse:
        found = await self._reading.query(lambda connection: list_stations(connection, self._ingest.counts))
        return pb.ListStationsResponse(stations=found)

    async def Command(  # noqa: D102
        self, request: pb.CommandStationRequest, context: Context
    ) -> pb.CommandStationResponse:
        command = await self._completed(request.station, request.command)
        result = await self._desk.ask(request.station, command, _time_left_s(context))
        return pb.CommandStationResponse(result=result)

    async def _completed(self, station: str, command: command_pb2.Command) -> command_pb2.Command:
        status = await self._reading.query(lambda connection: last_status(connection, station))
        if command.HasField("replay") and not command.replay.epoch:
            command.replay.epoch = status.epoch
        return command


def _time_left_s(context: Context) -> float:
    """How long the caller still waits, less what an answer needs on its way."""
    left_s = context.time_remaining()
    return COMMAND_TIMEOUT_S if left_s is None else max(0.1, left_s - 0.5)
