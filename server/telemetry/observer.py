"""Hears from ingest and dispatcher what has reached the disk, and passes it on to histograms and traces.

The parts tell it instants and nothing else; it returns at once and never fails them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from fieldpost.v1 import observation_pb2 as pb
from server.telemetry.metrics import Durations
from server.telemetry.tracing import Identity, Tracer


@dataclass(frozen=True, slots=True)
class Trip:
    """What is to be remembered of an observation until its prediction is stored.

    Attributes:
        identity: Which; None where that is not known.
        capture_unix_nanos: When it was captured, corrected where the station's clock was.
        is_live: Whether it was fresh when it was stored.
        dispatch_unix_nanos: When it was given to the batcher.
    """

    identity: Identity | None
    capture_unix_nanos: int
    is_live: bool
    dispatch_unix_nanos: int


class Observer:
    """Passes on what the parts tell.

    Args:
        durations: The histograms.
        tracer: Who sends spans; None where nothing is traced.
    """

    def __init__(self, durations: Durations, tracer: Tracer | None = None) -> None:
        self._durations = durations
        self._tracer = tracer

    def note_stored(self, bundles: Iterable[Iterable[pb.Observation]], arrivals_unix_nanos: Iterable[int]) -> None:
        """Bundles are on the disk; in the writer's thread, between two commits."""
        now = time.time_ns()
        for observations, arrival in zip(bundles, arrivals_unix_nanos, strict=True):
            self._durations.note_receipt((now - arrival) / 1e9)
            if self._tracer is not None:
                self._tracer.note_stored((each.header for each in observations), arrival, now)

    def note_predicted(self, model: str, trip: Trip, answer_unix_nanos: int, failure: str) -> None:
        """A prediction is on the disk.

        Args:
            model: Name of the model version.
            trip: The observation's.
            answer_unix_nanos: When the worker's answer was there.
            failure: Why there is no value; empty where there is one.
        """
        now = time.time_ns()
        if trip.is_live:
            self._durations.note_prediction(model, (now - trip.capture_unix_nanos) / 1e9)
        if self._tracer is not None and trip.identity is not None:
            dispatch = trip.dispatch_unix_nanos
            self._tracer.note_predicted(
                trip.identity, model, dispatch=dispatch, answer=answer_unix_nanos, commit=now, failure=failure
            )

    def note_call(self, method: str, code: str, duration_s: float) -> None:
        """A gRPC call has ended."""
        self._durations.note_call(method, code, duration_s)
