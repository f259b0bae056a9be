"""What the server and its workers say to each other: plain values. How they cross a pipe is in worker_wire.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldpost.payload import decode_payload
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable

STATE_BYTES_MAX = 256 * 1024
"""Of what a model version knows of an instrument: it is kept for each of thousands."""


class ModelKey(NamedTuple):
    """Names a model version."""

    analysis: str
    version: int

    def __str__(self) -> str:
        return f"{self.analysis}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """Everything that a worker needs in order to load a model version, wherever it runs.

    Attributes:
        key: Which.
        manifest: The TOML of a user's model; empty otherwise.
        content: The ONNX file of a user's model, the weights of a trained version; empty where it is built in.
        is_trained: Whether the content is weights for the code of a built-in analysis.
    """

    key: ModelKey
    manifest: str = ""
    content: bytes = field(default=b"", repr=False)
    is_trained: bool = False


class WorkItem(NamedTuple):
    """One observation on its way to a worker, its payload as it was stored."""

    payload: bytes
    payload_encoding: pb.PayloadEncoding.ValueType
    payload_bytes: int
    instrument_model: str
    measure_unix_nanos: int
    calibration: float | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None

    def decode(self) -> AnalysisInput:
        """The observation as analyses see it; raises InvalidObservationError where the payload is damaged."""
        content = decode_payload(self.payload, self.payload_encoding, self.payload_bytes)
        return AnalysisInput(
            content,
            self.instrument_model,
            self.measure_unix_nanos,
            self.calibration,
            self.latitude_deg,
            self.longitude_deg,
        )


class WorkStretch(NamedTuple):
    """Observations of one course that follow each other, on their way to a worker.

    Attributes:
        state: What the model version knows after those before them; empty at the start of a course.
        items: The observations, by measure time; one at least.
    """

    state: bytes
    items: tuple[WorkItem, ...]


class PlacedStretch(NamedTuple):
    """Where the observations of a stretch stand in a batch.

    Attributes:
        first_place: Of its first observation.
        item_count: Of its observations, which stand side by side.
        state: What was known before them.
    """

    first_place: int
    item_count: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """A batch for one model version.

    Attributes:
        job_id: Unlike that of any other job of this server process.
        key: The model version.
        items: The observations; without any, the worker only loads the model.
        timeout_s: A worker that takes longer, from when it began with the job, is taken for hung.
        stretches: Which of the observations belong together; the others are each asked about by themselves.
    """

    job_id: int
    key: ModelKey
    items: list[WorkItem]
    timeout_s: float
    stretches: list[PlacedStretch] = field(default_factory=list)


VariableNames = tuple[str, str, tuple[str, ...]]
"""Name, unit and flag meanings of a variable."""


@dataclass(frozen=True, slots=True)
class ResultBlock:
    """The results of one batch that have the same variables, as few large arrays.

    Pickling hundreds of small ones cost a sixth of the batch's computation.

    Attributes:
        places: Which items of the batch they are of.
        counts: Samples of each.
        sample_unix_nanos: (samples of all,), int64.
        variables: Name, unit and the meanings of its flags, of each.
        values: (variables, samples of all), float32.
    """

    places: list[int]
    counts: list[int]
    sample_unix_nanos: NDArray[np.int64]
    variables: tuple[VariableNames, ...]
    values: NDArray[np.float32]

    def check(self) -> None:
        """Raises ValueError where its parts do not agree."""
        sample_count = sum(self.counts)
        shapes = (self.sample_unix_nanos.shape, self.values.shape)
        if len(self.places) != len(self.counts) or min(self.counts, default=0) < 0:
            raise ValueError(f"{len(self.places)} places and {len(self.counts)} counts do not agree")
        if shapes != ((sample_count,), (len(self.variables), sample_count)):
            raise ValueError(f"{sample_count} samples of {len(self.variables)} variables and {shapes} do not agree")

    def result(self, row: int) -> AnalysisResult:
        """One of its results."""
        start = sum(self.counts[:row])
        return self._cut(slice(start, start + self.counts[row]))

    def results(self) -> Iterator[AnalysisResult]:
        """All of them, in the order of its places."""
        start = 0
        for count in self.counts:
            yield self._cut(slice(start, start + count))
            start += count

    def _cut(self, samples: slice) -> AnalysisResult:
        variables = tuple(
            AnalysisVariable(name, unit, values[samples], meanings)
            for (name, unit, meanings), values in zip(self.variables, self.values, strict=True)
        )
        return AnalysisResult(self.sample_unix_nanos[samples], variables)


@dataclass(frozen=True, slots=True)
class JobDone:
    """The answer to a job.

    Attributes:
        job_id: The job's.
        blocks: The results.
        refusals: In words why an item, told by its place, has no result.
        failure: What broke the whole batch; then there are no results.
        is_out_of_memory: The failure was lack of memory: smaller batches may do.
        duration_s: The worker's own time for this batch; loading the model is not counted.
        states: What the model version knows after each stretch of the job, in their order.
    """

    job_id: int
    blocks: list[ResultBlock] = field(default_factory=list)
    refusals: dict[int, str] = field(default_factory=dict)
    failure: str = ""
    is_out_of_memory: bool = False
    duration_s: float = 0.0
    states: list[bytes] = field(default_factory=list)

    def results(self) -> list[AnalysisResult | str]:
        """For each item, in order, its result, or in words why there is none."""
        found: dict[int, AnalysisResult | str] = dict(self.refusals)
        for block in self.blocks:
            found |= zip(block.places, block.results(), strict=True)
        return [found[place] for place in range(len(found))]


@dataclass(frozen=True, slots=True)
class StretchAnswer:
    """What became of a stretch.

    Attributes:
        results: For each observation, in order, its result, or in words why there is none.
        state: What the model version knows after the last of them.
    """

    results: list[AnalysisResult | str]
    state: bytes


def pack_results(
    job_id: int, results: Sequence[AnalysisResult | str], duration_s: float = 0.0, states: Sequence[bytes] = ()
) -> JobDone:
    """The answer to a job, from the results of its items in order, and what is known after its stretches."""
    refusals = {place: each for place, each in enumerate(results) if isinstance(each, str)}
    alike: dict[tuple[VariableNames, ...], list[tuple[int, AnalysisResult]]] = {}
    for place, each in enumerate(results):
        if not isinstance(each, str):
            names = tuple([(variable.name, variable.unit, variable.flag_meanings) for variable in each.variables])
            alike.setdefault(names, []).append((place, each))
    blocks = []
    for names, members in alike.items():
        instants = [each.sample_unix_nanos for _, each in members]
        # all arrays in one call: a call for each variable cost three times as much
        values = [each.variables[i].values for i in range(len(names)) for _, each in members]
        sample_unix_nanos = np.concatenate(instants, dtype=np.int64)
        blocks.append(
            ResultBlock(
                places=[place for place, _ in members],
                counts=[len(each) for each in instants],
                sample_unix_nanos=sample_unix_nanos,
                variables=names,
                values=(np.concatenate(values, dtype=np.float32) if values else np.empty(0, np.float32)).reshape(
                    len(names), len(sample_unix_nanos)
                ),
            )
        )
    return JobDone(job_id, blocks, refusals, duration_s=duration_s, states=list(states))
