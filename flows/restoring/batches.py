"""What a bag holds, some observations at a time, as the store takes them back: with their records and predictions.

Knows no store: which observations need no record is asked of a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import zstandard

from fieldpost.errors import BrokenStateError
from fieldpost.payload import PARAMETERS
from fieldpost.v1 import observation_pb2 as pb
from flows.bags.reading import BagReader, ObservationFacts
from flows.bags.reading_predictions import BagPrediction
from server.archive.bring_back import ArchivedObservation, ArchivedPrediction, Identity

BATCH_OBSERVATIONS = 512
BATCH_BYTES = 16 * 1024 * 1024
"""Of one commit, as in ingest: some tens of milliseconds, in which those who send wait."""

FindPresent = Callable[[Iterable[Identity]], set[Identity]]
"""Those of some observations that the store holds."""


class _Read(NamedTuple):
    header: pb.ObservationHeader
    content: bytes
    facts: ObservationFacts

    @property
    def identity(self) -> Identity:
        return self.header.epoch, self.header.sequence


def read_batches(
    reader: BagReader, find_present: FindPresent, *, with_predictions: bool
) -> Iterator[list[ArchivedObservation]]:
    """The observations of a bag in order of measure time, in lists of at most BATCH_OBSERVATIONS.

    Args:
        reader: The bag.
        find_present: What is held already is not packed again.
        with_predictions: Whether predictions come along.

    Raises:
        BrokenStateError: The bag's files do not belong together.
    """
    files = reader.prediction_files() if with_predictions else []
    joined = _Joined([reader.predictions_of(path) for path in files])
    compressor = zstandard.ZstdCompressor(compression_params=PARAMETERS)
    for some in _group(reader):
        present = find_present(each.identity for each in some)
        batch = []
        for header, content, facts in some:
            identity = (header.epoch, header.sequence)
            record = b"" if identity in present else to_record(header, content, compressor)
            about = (*facts, header.payload_bytes, header.sha256, record)
            batch.append(ArchivedObservation(identity, *about, joined.take(identity)))
        yield batch
    joined.check_end(reader)


def _group(reader: BagReader) -> Iterator[list[_Read]]:
    some: list[_Read] = []
    some_bytes = 0
    for each in map(_Read._make, reader.observations()):
        some.append(each)
        some_bytes += len(each.content)
        if len(some) >= BATCH_OBSERVATIONS or some_bytes >= BATCH_BYTES:
            yield some
            some, some_bytes = [], 0
    if some:
        yield some


def to_record(header: pb.ObservationHeader, content: bytes, compressor: zstandard.ZstdCompressor) -> bytes:
    """What lies in a segment: the payload is encoded as it was at the station."""
    is_packed = header.payload_encoding == pb.PAYLOAD_ENCODING_ZSTD
    payload = compressor.compress(content) if is_packed else content
    return pb.Observation(header=header, payload=payload).SerializeToString()


class _Joined:
    """The predictions of all files of a bag, each with its observation: all have the same order."""

    def __init__(self, series: list[Iterator[BagPrediction]]) -> None:
        self._series = series
        self._heads = [next(each, None) for each in series]

    def take(self, identity: Identity) -> list[ArchivedPrediction]:
        """What was predicted of the next observation."""
        taken = []
        for place, head in enumerate(self._heads):
            if head is not None and (head.epoch, head.sequence) == identity:
                taken.append(_to_archived(head))
                self._heads[place] = next(self._series[place], None)
        return taken

    def check_end(self, reader: BagReader) -> None:
        """Makes sure that none is left.

        Raises:
            BrokenStateError: A prediction is of no observation of the bag, or in another order.
        """
        for head in self._heads:
            if head is not None:
                raise BrokenStateError(
                    f"expected the predictions of {head.analysis}@{head.version} in the order of the observations, but "
                    f"that of {head.epoch}-{head.sequence} is not (bag {reader.folder})",
                    hint="the bag was not made by the archive flow; its observations are back",
                )


def _to_archived(prediction: BagPrediction) -> ArchivedPrediction:
    message = prediction.message
    return ArchivedPrediction(
        (prediction.analysis, prediction.version),
        prediction.predict_unix_nanos,
        message.SerializeToString(),
        bool(message.failure),
        prediction.is_provisional,
    )
