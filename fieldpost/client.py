"""The client for ordinary programs: sends observations, reads and watches them and their predictions, predicts at once.

It translates and calls; what to ask, how to bundle and when to try again is decided in the private modules beside it,
which it shares with AsyncClient.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, Unpack

from fieldpost._answers import Answer
from fieldpost._archive_calls import Archive
from fieldpost._channel import DEFAULT_TIMEOUT_S, Tls
from fieldpost._client_predicting import Predictor
from fieldpost._client_sending import Sender, upload
from fieldpost._client_watching import ObservationWatch, PredictionWatch
from fieldpost._commands import COMMAND_TIMEOUT_S, check_result
from fieldpost._connection import Connection
from fieldpost._models import Models
from fieldpost._observation_requests import (
    ObservationQuery,
    WatchObservationsQuery,
    WhichObservation,
    content_pages,
    observation_filter,
    read_request,
)
from fieldpost._predict_desk import predict_item, target
from fieldpost._reading import Reading, held_content
from fieldpost._requests import (
    PredictionQuery,
    RetryQuery,
    WatchQuery,
    list_request,
    prediction_pages,
    retry_request,
    watch_request,
)
from fieldpost._sending import Progress, SendReport, Tally
from fieldpost._table import PredictionTable, to_table
from fieldpost._times import Moment
from fieldpost._uploading import Sendable
from fieldpost._watching import OBSERVATIONS, PREDICTIONS, WatchState
from fieldpost.errors import UnknownObservationError
from fieldpost.v1 import capacity_service_pb2, command_pb2, observations_service_pb2, receipt_pb2, stations_service_pb2
from fieldpost.v1.archive_service_pb2_grpc import ArchiveStub
from fieldpost.v1.capacity_service_pb2_grpc import CapacityStub
from fieldpost.v1.inference_service_pb2_grpc import InferenceStub
from fieldpost.v1.ingest_service_pb2_grpc import IngestStub
from fieldpost.v1.models_service_pb2_grpc import ModelsStub
from fieldpost.v1.observations_service_pb2 import HeldObservation
from fieldpost.v1.observations_service_pb2_grpc import ObservationsStub
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.predictions_service_pb2_grpc import PredictionsStub
from fieldpost.v1.stations_service_pb2_grpc import StationsStub


class Client:
    """A connection to a Fieldpost server. Threads may share it; close it, or use it in a `with` statement.

    Args:
        address: The server, as "host:port".
        tls: How to prove who is who; without it the connection is in the clear.
        token: What the server's operator gave you, where it asks for one; only with tls.
        timeout_s: How long one answer may take. A watch may be silent for ever.

    Attributes:
        address: The server.
        models: The calls about models: submit, list, get, shadow, activate, roll_back, retire, restrict.
        archive: The calls about the archive: list, iter, get, files, fetch.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None = None,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.address = address
        self._connection = Connection(address, tls, token, timeout_s)
        channel = self._connection.channel
        self._ingest = IngestStub(channel)
        self._observations = ObservationsStub(channel)
        self._predictions = PredictionsStub(channel)
        self._stations = StationsStub(channel)
        self._capacity = CapacityStub(channel)
        self._predictor = Predictor(self._connection, InferenceStub(channel))
        self.models = Models(self._connection, ModelsStub(channel))
        self.archive = Archive(self._connection, ArchiveStub(channel))
        self._watches: weakref.WeakSet[PredictionWatch | ObservationWatch] = weakref.WeakSet()

    def close(self) -> None:
        """Ends what is under way, watches included, and the connection."""
        for watch in list(self._watches):
            watch.close()
        self._predictor.close()
        self._connection.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, observations: Iterable[Sendable], *, progress: Progress | None = None) -> SendReport:
        """Sends observations, and returns when each has its answer.

        What the report counts as held is on the server's disk. Single refusals are in the report; they raise nothing.
        One of 8 MiB and more goes by itself, in pieces, and goes on where it was when the connection breaks.

        Args:
            observations: For example `Outbox(...).number(items)`. Those of one epoch in ascending order.
            progress: Told now and then how many of the instruments' bytes have their answer.

        Raises:
            TryAgainError: Not all could be sent. Send the same again, under the same epoch and sequences; what is
                held already is not stored twice.
            RejectedError: The server refuses the whole; sending it again cannot help.
        """
        tally = Tally(progress)
        for receipt in Sender(self._connection, self._ingest, tally).receipts(observations):
            tally.add_receipt(receipt)
        return tally.report()

    def send_each(self, observations: Iterable[Sendable]) -> Iterator[receipt_pb2.Receipt]:
        """Sends observations while it is iterated; yields the receipts, one a bundle, in the order of sending.

        For a series too long to wait for its end. Up to 8 bundles are on the way before the first receipt is
        awaited. Raises what `send` raises.
        """
        return Sender(self._connection, self._ingest, Tally()).receipts(observations)

    def upload(self, observation: Sendable, *, progress: Progress | None = None) -> SendReport:
        """Sends one observation in pieces, of any size; never whole in memory where it lies in a file.

        Where the connection breaks it goes on by itself, and gives up only where it got no further for timeout_s.

        Args:
            observation: For example `Outbox(...).file("ct", "volume.raw")`.
            progress: Told how many of the instrument's bytes are on the server's disk.

        Raises:
            TryAgainError: It did not get any further. Upload the same again, under the same epoch and sequence: it
                goes on from there.
            RejectedError: The server refuses the whole; sending it again cannot help.
            OSError: The file cannot be read.
        """
        tally = Tally(progress)
        tally.add_sent(observation)
        tally.add_receipt(upload(self._connection, self._ingest, observation, tally.note_upload))
        return tally.report()

    def observations(self, **query: Unpack[ObservationQuery]) -> list[HeldObservation]:
        """Lists what is known of observations that the server holds, by measure time; without their payloads.

        Args:
            query: Any of station, instrument (with station), since and until, as ObservationQuery says. Nothing: all.

        Raises:
            InvalidRequestError: The query makes no sense.
            TryAgainError: The server cannot be reached, or has too much to do.
        """
        return list(self.iter_observations(**query))

    def iter_observations(self, **query: Unpack[ObservationQuery]) -> Iterator[HeldObservation]:
        """The same one by one; never holds more than a page of them."""
        return self._observation_pages(observation_filter(**query))

    def _observation_pages(self, wanted: observations_service_pb2.ObservationFilter) -> Iterator[HeldObservation]:
        request = observations_service_pb2.ListObservationsRequest(filter=wanted)
        while True:
            page = self._connection.call(self._observations.List, request)
            yield from page.observations
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def iter_contents(self, **query: Unpack[ObservationQuery]) -> Iterator[tuple[HeldObservation, bytes]]:
        """Reads observations with the instrument's bytes, by measure time: unpacked, their SHA-256 checked.

        Where the connection breaks it goes on where it was. Args are those of `observations`.

        Raises:
            BrokenStateError: What came is not what the header says.
            TryAgainError: The server cannot be reached, or nothing came for timeout_s after a break.
        """
        return self._contents(observation_filter(**query))

    def _contents(self, wanted: observations_service_pb2.ObservationFilter) -> Iterator[tuple[HeldObservation, bytes]]:
        pages = content_pages(wanted, self._connection.timeout_s)
        for held in self._connection.resumed(self._observations.Stream, pages):
            content = held_content(held)
            yield held, self.read(held) if content is None else content

    def read(self, which: WhichObservation) -> bytes:
        """Reads the instrument's bytes of an observation: unpacked, their SHA-256 checked.

        Where the connection breaks it goes on where it was.

        Args:
            which: An observation_id, an observation as it was listed or watched, or a header.

        Raises:
            UnknownObservationError: The server holds no such observation.
            BrokenStateError: What came is not what the header says.
            TryAgainError: The server cannot be reached, or nothing came for timeout_s after a break.
        """
        return b"".join(self.iter_read(which))

    def iter_read(self, which: WhichObservation) -> Iterator[bytes]:
        """The same in pieces, for what does not fit into memory; the SHA-256 is checked before the last piece."""
        reading = Reading(read_request(which), self._connection.timeout_s)
        return self._connection.resumed(self._observations.Read, reading, UnknownObservationError)

    def watch_observations(
        self, *, after_observation_id: int | None = None, resume: bool = True, **query: Unpack[WatchObservationsQuery]
    ) -> ObservationWatch:
        """Watches observations as they are stored; returns when the server has begun, as `watch` does.

        Args:
            after_observation_id: Begin after this one; 0 for all that there is, then what is stored from now on; None
                for only what is stored from now on.
            resume: False to raise OfflineError where the connection breaks.
            query: Any of station and instrument (with station).

        Raises:
            InvalidRequestError: The query makes no sense.
            TryAgainError: The server cannot be reached now.
        """
        wanted = observation_filter(**query)
        request = observations_service_pb2.WatchObservationsRequest(filter=wanted)
        state = WatchState(OBSERVATIONS, request, after_observation_id, resume=resume)
        watch = ObservationWatch(self._observations.Watch, state, self.address, self._connection.timeout_s)
        self._watches.add(watch)
        return watch

    def predictions(self, **query: Unpack[PredictionQuery]) -> PredictionTable:
        """Reads predictions into columns.

        Args:
            query: Any of station, instrument (with station), analysis, model_version (with analysis), since and
                until, as PredictionQuery says. Nothing: all.

        Raises:
            InvalidRequestError: The query makes no sense.
            TryAgainError: The server cannot be reached, or has too much to do.
        """
        return to_table(self.iter_predictions(**query))

    def iter_predictions(self, **query: Unpack[PredictionQuery]) -> Iterator[Prediction]:
        """Reads predictions one by one, by measure time; never holds more than a page of them.

        Where the connection breaks it goes on where it was. Args and errors are those of `predictions`.
        """
        pages = prediction_pages(list_request(**query), self._connection.timeout_s)
        return self._connection.resumed(self._predictions.Stream, pages)

    def watch(
        self, *, after_prediction_id: int | None = None, resume: bool = True, **query: Unpack[WatchQuery]
    ) -> PredictionWatch:
        """Watches predictions as they are made; returns when the server has begun: from then on nothing is missed.

        Where the connection breaks, the watch goes on by itself after the last prediction that it had: nothing is
        missed and nothing comes twice.

        Args:
            after_prediction_id: Begin after this one, for example the last that was seen before; 0 for all that
                there is, then what is made from now on; None for only what is made from now on.
            resume: False to raise OfflineError where the connection breaks.
            query: Any of station, instrument (with station) and analysis, as WatchQuery says.

        Raises:
            InvalidRequestError: The query makes no sense.
            TryAgainError: The server cannot be reached now. Only what happens later is resumed: a wrong address is
                an error, not a silence.
        """
        state = WatchState(PREDICTIONS, watch_request(**query), after_prediction_id, resume=resume)
        watch = PredictionWatch(self._predictions.Watch, state, self.address, self._connection.timeout_s)
        self._watches.add(watch)
        return watch

    def retry_predictions(self, analysis: str, **query: Unpack[RetryQuery]) -> int:
        """Forgets failures, so that their observations are predicted again; returns how many.

        Args:
            analysis: The analysis.
            query: Any of station, instrument (with station), model_version, since and until.

        Raises:
            InvalidRequestError: The query makes no sense.
            NotAllowedError: Only operators may.
            TryAgainError: The server cannot be reached, or has too much to do.
        """
        return self._connection.call(self._predictions.Retry, retry_request(analysis, **query)).retry_count

    def predict(
        self,
        analysis: str,
        payload: bytes,
        *,
        version: int | None = None,
        instrument_model: str | None = None,
        measure_time: Moment | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Predicts a payload at once; nothing of it is stored.

        Threads that ask at the same time share messages, which makes them fast; nothing waits for company. Where the
        connection breaks, the payload is asked for once more, as far as there is time.

        Args:
            analysis: The question, for example "boundary-layer-height".
            payload: What the instrument handed over.
            version: The model version; None for the active one.
            instrument_model: Which instrument model wrote it; may be left out where the analysis knows one only.
            measure_time: When it was measured; None for now.
            timeout_s: What is not answered by then is not computed any more; the client's where left out.

        Raises:
            InvalidRequestError: The model refuses the payload.
            UnknownModelError: There is no such analysis or version.
            TryAgainError: The server cannot be reached, has too much to do, or did not answer in time.
        """
        item = predict_item(payload, instrument_model, measure_time)
        return self._predictor.predict(target(analysis, version), item, timeout_s or self._connection.timeout_s)

    def predict_each(
        self,
        analysis: str,
        payloads: Iterable[bytes],
        *,
        version: int | None = None,
        instrument_model: str | None = None,
        measure_time: Moment | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Answer]:
        """Predicts payloads while it is iterated; yields the answers in the order of the payloads.

        Many travel in one message, and up to 512 are on the way at once. A payload that the model refuses has an
        answer with its `failure`; where the server has too much to do, it is asked again. Args and other errors are
        those of `predict`; timeout_s is that of each payload.
        """
        asks = target(analysis, version)
        return self._predictor.predict_each(
            asks, payloads, instrument_model, measure_time, timeout_s or self._connection.timeout_s
        )

    def capacity(self) -> capacity_service_pb2.GetCapacityResponse:
        """What the server has to compute with, and how busy it is: workers, queues, ingest, machine."""
        return self._connection.call(self._capacity.Get, capacity_service_pb2.GetCapacityRequest())

    def stations(self) -> list[stations_service_pb2.Station]:
        """The stations and their instruments, as the server knows them, by name."""
        request = stations_service_pb2.ListStationsRequest()
        return list(self._connection.call(self._stations.List, request).stations)

    def ask(
        self, station: str, command: command_pb2.Command, *, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> command_pb2.CommandResult:
        """Asks a station for something; returns its answer, a refusal too: that may say more than the reason.

        Args and other errors are those of `command`.
        """
        request = stations_service_pb2.CommandStationRequest(station=station, command=command)
        return self._connection.call(self._stations.Command, request, timeout_s=timeout_s).result

    def command(self, station: str, command: command_pb2.Command, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Asks a station for something, and waits until it has accepted.

        Args:
            station: Its name.
            command: For example `Command(report=ReportCommand())`. The server fills in a command_id, and the epoch of a
                replay, where they are empty.
            timeout_s: How long the station may take. It is asked again and again, and does it once.

        Raises:
            RejectedError: The station refuses it, and says why.
            TryAgainError: The station does not answer, or the server cannot be reached.
        """
        check_result(station, self.ask(station, command, timeout_s=timeout_s))
