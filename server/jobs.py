"""What the server and its workers say to each other; plain values, pickled between our own processes only."""

from __future__ import annotations

from dataclasses import dataclass

from fieldpost.payload import decode_payload
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import AnalysisInput, AnalysisResult


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One observation on its way to a worker, its payload as it was stored."""

    payload: bytes
    payload_encoding: pb.PayloadEncoding.ValueType
    payload_bytes: int
    instrument_model: str
    measure_unix_nanos: int
    calibration: float | None = None

    def decode(self) -> AnalysisInput:
        """The observation as analyses see it; raises InvalidObservationError where the payload is damaged."""
        content = decode_payload(self.payload, self.payload_encoding, self.payload_bytes)
        return AnalysisInput(content, self.instrument_model, self.measure_unix_nanos, self.calibration)


@dataclass(frozen=True, slots=True)
class Job:
    """A batch for one model version."""

    job_id: int
    analysis: str
    version: int
    items: list[WorkItem]


@dataclass(frozen=True, slots=True)
class JobDone:
    """The answer to a job.

    Attributes:
        job_id: The job's.
        results: For each item its result, or in words why there is none.
        failure: What broke the whole batch; then there are no results.
    """

    job_id: int
    results: list[AnalysisResult | str]
    failure: str = ""
