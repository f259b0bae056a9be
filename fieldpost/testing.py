"""For the tests of programs that use the SDK: a real gRPC server that keeps everything in lists.

    with RecordingServer() as server, Client(server.address) as client:
        client.send(Outbox("my-station").number([("my-instrument", b"...", None)]))
        assert server.observations[0].header.instrument == "my-instrument"

It keeps the promises of the protocol (receipts, duplicates, refusals, pages, resumed watches), but only in memory; it
predicts nothing by itself, and nothing here is fit for production. A failure is tested by really stopping it: `stop`,
and `start` on the same port, with the lists as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from fieldpost._channel import OPTIONS
from fieldpost._times import Moment, from_timestamp, to_timestamp, unix_nanos
from fieldpost.errors import InvalidObservationError
from fieldpost.names import NAME_PATTERN, check_epoch, check_name
from fieldpost.payload import decode_checked
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2, ingest_service_pb2, receipt_pb2, stations_service_pb2
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import predictions_service_pb2 as predictions_pb2
from fieldpost.v1.ingest_service_pb2_grpc import IngestServicer, add_IngestServicer_to_server
from fieldpost.v1.prediction_pb2 import Prediction, Variable
from fieldpost.v1.predictions_service_pb2_grpc import PredictionsServicer, add_PredictionsServicer_to_server
from fieldpost.v1.stations_service_pb2_grpc import StationsServicer, add_StationsServicer_to_server

PAGE_SIZE = 1000
PAGE_SIZE_MAX = 10_000
_THREADS = 32  # a watch or a send that is under way keeps one
_SERVER_OPTIONS = [*OPTIONS, ("grpc.http2.min_ping_interval_without_data_ms", 20_000)]  # the clients ping every 30 s


class RecordingServer:
    """A Fieldpost server in this process, on a free port of the loopback.

    Args:
        registered: The instruments that it knows, as "station/instrument"; None where it is to take all.
        page_size_max: The largest page of predictions, so that paging can be tested with few of them.
        credentials: For TLS; without them the server listens in the clear.

    Attributes:
        observations: What was sent and taken, in the order of coming; no duplicates.
        predictions: What Predictions serves; add with add_prediction.
        stations: What Stations serves; append what you like.
        held_sha256: The hash of each observation taken, by (station, epoch, sequence).
        commands: What stations were asked, as (station, command).
        refusals: Why a station refuses what it is asked, by its name; a station that is not named accepts.
        changed: Notified whenever an observation or a prediction came.
    """

    def __init__(
        self,
        *,
        registered: frozenset[str] | None = None,
        page_size_max: int = PAGE_SIZE_MAX,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.observations: list[pb.Observation] = []
        self.predictions: list[Prediction] = []
        self.stations: list[stations_service_pb2.Station] = []
        self.commands: list[tuple[str, command_pb2.Command]] = []
        self.refusals: dict[str, str] = {}
        self.registered = registered
        self.page_size_max = page_size_max
        self.held_sha256: dict[tuple[str, str, int], bytes] = {}
        self.changed = threading.Condition()
        self.port = 0
        self._credentials = credentials
        self._server: grpc.Server | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def address(self) -> str:
        """Where it listens, as "host:port"; the same after a restart."""
        return f"localhost:{self.port}"

    def start(self) -> None:
        """Begins to listen: on a free port the first time, later on the same again."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="recording-server")
        self._server = grpc.server(self._threads, options=_SERVER_OPTIONS)
        add_IngestServicer_to_server(_Ingest(self), self._server)
        add_PredictionsServicer_to_server(_Predictions(self), self._server)
        add_StationsServicer_to_server(_Stations(self), self._server)
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        self._server.start()

    def stop(self) -> None:
        """Breaks all connections and listens no more; the lists stay."""
        if self._server is not None and self._threads is not None:
            self._server.stop(grace=None).wait()
            self._threads.shutdown()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def add_prediction(self, prediction: Prediction) -> Prediction:
        """Numbers a prediction, serves it, and hands it to those who watch."""
        with self.changed:
            prediction.prediction_id = len(self.predictions) + 1
            self.predictions.append(prediction)
            self.changed.notify_all()
        return prediction


def make_prediction(
    sample_times: Sequence[Moment],
    variables: Mapping[tuple[str, str], Sequence[float]],
    *,
    station: str = "station-1",
    instrument: str = "ceilometer",
    analysis: str = "boundary-layer-height",
    model_version: int = 1,
    sequence: int = 1,
) -> Prediction:
    """A prediction to serve.

    Args:
        sample_times: The instants of the samples; the first is the prediction's measure time.
        variables: One value for each sample, by (name, unit): {("atmosphere_boundary_layer_thickness", "m"): [812.0]}.
        station: Its observation's station.
        instrument: Its observation's instrument.
        analysis: The question.
        model_version: The trained answer.
        sequence: Its observation's sequence.
    """
    nanos = [unix_nanos(moment) for moment in sample_times]
    return Prediction(
        station=station,
        instrument=instrument,
        epoch="0" * 32,
        sequence=sequence,
        analysis=analysis,
        model_version=model_version,
        measure_time=to_timestamp(nanos[0]),
        capture_time=to_timestamp(nanos[-1]),
        predict_time=to_timestamp(nanos[-1]),
        sample_unix_nanos=nanos,
        variables=[Variable(name=name, unit=unit, values=values) for (name, unit), values in variables.items()],
    )


class _Ingest(IngestServicer):
    def __init__(self, server: RecordingServer) -> None:
        self._server = server

    def Send(self, request_iterator: Any, context: Any) -> Iterator[ingest_service_pb2.SendResponse]:
        for request in request_iterator:
            try:
                yield ingest_service_pb2.SendResponse(receipt=self._take(request.bundle))
            except InvalidObservationError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _take(self, bundle: pb.Bundle) -> receipt_pb2.Receipt:
        """Keeps what is new. A bundle to which no receipt can be written raises InvalidObservationError."""
        identities = {(each.header.station, each.header.epoch) for each in bundle.observations}
        if len(identities) != 1:
            raise InvalidObservationError(f"expected a bundle of one station and epoch, but got {len(identities)}")
        ((station, epoch),) = identities
        receipt = receipt_pb2.Receipt(station=check_name("station", station), epoch=check_epoch(epoch))
        held = RangeSet()
        with self._server.changed:
            for observation in bundle.observations:
                refusal, is_duplicate = self._judge(observation)
                if refusal is not None:
                    receipt.rejections.append(refusal)
                    continue
                held.add(observation.header.sequence)
                receipt.duplicate_count += is_duplicate
                if not is_duplicate:
                    self._server.observations.append(observation)
            self._server.changed.notify_all()
        receipt.held_ranges.extend(receipt_pb2.SequenceRange(first_sequence=a, last_sequence=b) for a, b in held)
        return receipt

    def _judge(self, observation: pb.Observation) -> tuple[receipt_pb2.Rejection | None, bool]:
        """Why an observation is refused, if it is; and whether it is a duplicate."""
        header = observation.header

        def refuse(reason: receipt_pb2.RejectionReason.ValueType, detail: str) -> tuple[receipt_pb2.Rejection, bool]:
            return receipt_pb2.Rejection(sequence=header.sequence, reason=reason, detail=detail), False

        if header.sequence < 1 or not NAME_PATTERN.fullmatch(header.instrument):
            detail = f"expected a name and a sequence from 1, but got {header.instrument!r} and {header.sequence}"
            return refuse(receipt_pb2.REJECTION_REASON_INVALID, detail)
        name = f"{header.station}/{header.instrument}"
        if self._server.registered is not None and name not in self._server.registered:
            return refuse(receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT, f"{name} is not registered")
        try:
            decode_checked(observation)
        except InvalidObservationError as error:
            return refuse(receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH, str(error))
        identity = (header.station, header.epoch, header.sequence)
        is_known = identity in self._server.held_sha256
        if self._server.held_sha256.setdefault(identity, header.sha256) != header.sha256:
            return refuse(receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT, "other bytes are held under this identity")
        return None, is_known


class _Predictions(PredictionsServicer):
    def __init__(self, server: RecordingServer) -> None:
        self._server = server

    def List(
        self, request: predictions_pb2.ListPredictionsRequest, context: Any
    ) -> predictions_pb2.ListPredictionsResponse:
        try:
            after = tuple(int(part) for part in request.page_token.split(":")) if request.page_token else (-(2**63), 0)
        except ValueError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected the page_token of the answer before")
        with self._server.changed:
            matching = sorted((each for each in self._server.predictions if _matches(request, each)), key=_list_key)
        rest = [each for each in matching if _list_key(each) > after]
        size = min(request.page_size or PAGE_SIZE, self._server.page_size_max)
        token = ":".join(str(part) for part in _list_key(rest[size - 1])) if len(rest) > size else ""
        return predictions_pb2.ListPredictionsResponse(predictions=rest[:size], next_page_token=token)

    def Watch(
        self, request: predictions_pb2.WatchPredictionsRequest, context: Any
    ) -> Iterator[predictions_pb2.WatchPredictionsResponse]:
        changed = self._server.changed
        context.add_callback(lambda: _notify(changed))  # a caller that went away must not hold a thread for ever
        is_resumed = request.HasField("after_prediction_id")
        seen = request.after_prediction_id if is_resumed else len(self._server.predictions)
        context.send_initial_metadata(())  # tells the caller that the watch has begun
        yield predictions_pb2.WatchPredictionsResponse(seen_prediction_id=seen)
        while context.is_active():
            fresh = self._wait_beyond(seen, context)
            seen += len(fresh)
            wanted = [each for each in fresh if _names_match(request, each)]
            if wanted:
                yield predictions_pb2.WatchPredictionsResponse(predictions=wanted, seen_prediction_id=seen)

    def _wait_beyond(self, seen: int, context: Any) -> list[Prediction]:
        """The predictions after the first `seen`, as soon as there are any; none where the caller went away."""
        with self._server.changed:
            self._server.changed.wait_for(lambda: len(self._server.predictions) > seen or not context.is_active())
            return self._server.predictions[seen:]


def _notify(changed: threading.Condition) -> None:
    with changed:
        changed.notify_all()


def _list_key(prediction: Prediction) -> tuple[int, ...]:
    return from_timestamp(prediction.measure_time), prediction.prediction_id


def _matches(request: predictions_pb2.ListPredictionsRequest, prediction: Prediction) -> bool:
    nanos = from_timestamp(prediction.measure_time)
    return (
        _names_match(request, prediction)
        and request.model_version in (0, prediction.model_version)
        and not (request.HasField("start_time") and nanos < from_timestamp(request.start_time))
        and not (request.HasField("end_time") and nanos >= from_timestamp(request.end_time))
    )


def _names_match(
    request: predictions_pb2.ListPredictionsRequest | predictions_pb2.WatchPredictionsRequest, prediction: Prediction
) -> bool:
    wanted = ((request.station, prediction.station), (request.instrument, prediction.instrument))
    return all(want in ("", has) for want, has in (*wanted, (request.analysis, prediction.analysis)))


class _Stations(StationsServicer):
    def __init__(self, server: RecordingServer) -> None:
        self._server = server

    def List(
        self, request: stations_service_pb2.ListStationsRequest, context: Any
    ) -> stations_service_pb2.ListStationsResponse:
        return stations_service_pb2.ListStationsResponse(
            stations=sorted(self._server.stations, key=lambda each: each.station)
        )

    def Command(
        self, request: stations_service_pb2.CommandStationRequest, context: Any
    ) -> stations_service_pb2.CommandStationResponse:
        self._server.commands.append((request.station, request.command))
        detail = self._server.refusals.get(request.station, "")
        return stations_service_pb2.CommandStationResponse(
            result=command_pb2.CommandResult(
                command_id=request.command.command_id, is_accepted=not detail, detail=detail
            )
        )
