"""For the tests of programs that use the SDK: a real gRPC server that keeps everything in lists.

    with RecordingServer() as server, Client(server.address) as client:
        client.send(Outbox("my-station").number([("my-instrument", b"...", None)]))
        assert server.observations[0].header.instrument == "my-instrument"

It keeps the promises of the protocol (receipts, duplicates, refusals, uploads, pages, resumed watches, states of
models, bags of an archive), but only in memory; what it predicts at once is said by a function that the test gives,
models are kept and never run, and nothing here is fit for production. A failure is tested by really stopping it:
`stop`, and `start` on the same port, with the lists as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from types import TracebackType
from typing import Self

import grpc

from fieldpost._channel import OPTIONS
from fieldpost._recording.archive import RecordingArchive, make_bag
from fieldpost._recording.inference import RecordingInference
from fieldpost._recording.ingest import RecordingIngest
from fieldpost._recording.models import RecordingModels
from fieldpost._recording.observations import RecordingObservations
from fieldpost._recording.predictions import RecordingPredictions
from fieldpost._recording.state import Predict, Recorded
from fieldpost._recording.stations import RecordingCapacity, RecordingStations
from fieldpost._times import Moment, to_timestamp, unix_nanos
from fieldpost.v1.archive_service_pb2 import ArchivedBag
from fieldpost.v1.archive_service_pb2_grpc import add_ArchiveServicer_to_server
from fieldpost.v1.capacity_service_pb2_grpc import add_CapacityServicer_to_server
from fieldpost.v1.inference_service_pb2_grpc import add_InferenceServicer_to_server
from fieldpost.v1.ingest_service_pb2_grpc import add_IngestServicer_to_server
from fieldpost.v1.models_service_pb2_grpc import add_ModelsServicer_to_server
from fieldpost.v1.observations_service_pb2_grpc import add_ObservationsServicer_to_server
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.prediction_pb2 import Variable as Variable  # for those who write a predict
from fieldpost.v1.predictions_service_pb2_grpc import add_PredictionsServicer_to_server
from fieldpost.v1.stations_service_pb2_grpc import add_StationsServicer_to_server

PAGE_SIZE_MAX = 10_000
_THREADS = 32  # a watch or a send that is under way keeps one
_SERVER_OPTIONS = [*OPTIONS, ("grpc.http2.min_ping_interval_without_data_ms", 20_000)]  # the clients ping every 30 s


class RecordingServer(Recorded):
    """A Fieldpost server in this process, on a free port of the loopback. Its lists are those of Recorded.

    Args:
        registered: The instruments that it knows, as "station/instrument"; None where it is to take all.
        page_size_max: The largest page, so that paging can be tested with few.
        predict: Answers what is to be predicted at once: (analysis, payload) to variables. Where it raises
            RejectedError or OverloadedError, that is the answer. None where there is no model.
        credentials: For TLS; without them the server listens in the clear.
    """

    def __init__(
        self,
        *,
        registered: frozenset[str] | None = None,
        page_size_max: int = PAGE_SIZE_MAX,
        predict: Predict | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        super().__init__(registered, page_size_max, predict)
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
        add_IngestServicer_to_server(RecordingIngest(self), self._server)
        add_ObservationsServicer_to_server(RecordingObservations(self), self._server)
        add_PredictionsServicer_to_server(RecordingPredictions(self), self._server)
        add_InferenceServicer_to_server(RecordingInference(self), self._server)
        add_ModelsServicer_to_server(RecordingModels(self), self._server)
        add_ArchiveServicer_to_server(RecordingArchive(self), self._server)
        add_StationsServicer_to_server(RecordingStations(self), self._server)
        add_CapacityServicer_to_server(RecordingCapacity(self), self._server)
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
            self.last_prediction_id += 1
            prediction.prediction_id = self.last_prediction_id
            self.predictions.append(prediction)
            self.changed.notify_all()
        return prediction

    def add_bag(
        self, station: str, instrument: str, day: date, payload: Mapping[str, bytes], *, version: int = 1
    ) -> ArchivedBag:
        """Serves a bag that holds these files; returns what is recorded of it."""
        made = make_bag(station, instrument, day, version, payload)
        self.bags.append(made)
        return made.bag


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
