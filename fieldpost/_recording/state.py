"""What a RecordingServer holds: lists, and one condition for all of them. Answers no call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from fieldpost.v1 import archive_service_pb2, capacity_service_pb2, command_pb2, stations_service_pb2
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1.model_pb2 import Model
from fieldpost.v1.prediction_pb2 import Prediction, Variable

PAGE_SIZE = 1000

Predict: TypeAlias = Callable[[str, bytes], Iterable[Variable]]
"""(analysis, payload) to its variables; an error of fieldpost.errors is the answer instead."""
Identity: TypeAlias = tuple[str, str, int]


class RecordedBag(NamedTuple):
    """A bag, and the content of its files by name."""

    bag: archive_service_pb2.ArchivedBag
    files: dict[str, bytes]


class Recorded:
    """Everything that was sent to a server, and what it answers with.

    Attributes:
        observations: What was sent and taken, in the order of coming; no duplicates.
        predictions: What Predictions serves; add with add_prediction.
        stations: What Stations serves; append what you like.
        models: The model versions, as they were submitted; append what you like.
        contents: The ONNX files submitted, by (analysis, version).
        bags: What Archive serves; add with add_bag.
        capacity: What Capacity answers.
        predict: Answers Predict and PredictStream; None where there is no model.
        uploads: What is held of uploads that are not complete.
        held_sha256: The hash of each observation taken, by (station, epoch, sequence).
        commands: What stations were asked, as (station, command).
        refusals: Why a station refuses what it is asked, by its name; a station that is not named accepts.
        registered: The instruments that it knows, as "station/instrument"; None where it takes all.
        page_size_max: The largest page.
        changed: Notified whenever an observation or a prediction came.
    """

    def __init__(self, registered: frozenset[str] | None, page_size_max: int, predict: Predict | None) -> None:
        self.observations: list[pb.Observation] = []
        self.predictions: list[Prediction] = []
        self.stations: list[stations_service_pb2.Station] = []
        self.models: list[Model] = []
        self.contents: dict[tuple[str, int], bytes] = {}
        self.bags: list[RecordedBag] = []
        self.capacity = capacity_service_pb2.GetCapacityResponse(server="recording")
        self.predict = predict
        self.uploads: dict[Identity, bytearray] = {}
        self.held_sha256: dict[Identity, bytes] = {}
        self.commands: list[tuple[str, command_pb2.Command]] = []
        self.refusals: dict[str, str] = {}
        self.registered = registered
        self.page_size_max = page_size_max
        self.changed = threading.Condition()
        self.last_prediction_id = 0

    def notify(self) -> None:
        """Wakes those who wait for something new."""
        with self.changed:
            self.changed.notify_all()
