"""Ingest of a RecordingServer: receipts, duplicates, refusals, uploads that go on where they were. For tests only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from fieldpost._recording.state import Recorded
from fieldpost.errors import InvalidObservationError
from fieldpost.names import NAME_PATTERN, check_epoch, check_name
from fieldpost.payload import decode_checked
from fieldpost.ranges import RangeSet
from fieldpost.v1 import ingest_service_pb2, receipt_pb2
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1.ingest_service_pb2_grpc import IngestServicer

_UPLOAD_STEP_BYTES = 2 * 1024 * 1024  # it says how far it has come whenever it has taken so much


class RecordingIngest(IngestServicer):
    """Takes observations."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def Send(self, request_iterator: Any, context: Any) -> Iterator[ingest_service_pb2.SendResponse]:
        """Takes bundles."""
        for request in request_iterator:
            try:
                yield ingest_service_pb2.SendResponse(receipt=self._take(request.bundle))
            except InvalidObservationError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def Upload(self, request_iterator: Any, context: Any) -> Iterator[ingest_service_pb2.UploadResponse]:
        """Takes one observation in pieces."""
        start = next(request_iterator).start
        header = start.header
        identity = (header.station, header.epoch, header.sequence)
        if identity in self._recorded.held_sha256:
            yield self._finish(pb.Observation(header=header), start.encoded_bytes, context)
            return
        held = self._recorded.uploads.setdefault(identity, bytearray())
        told_bytes = len(held)
        yield ingest_service_pb2.UploadResponse(held_bytes=told_bytes)
        while len(held) < start.encoded_bytes:
            request = next(request_iterator, ingest_service_pb2.UploadRequest())
            if not request.HasField("chunk") or request.chunk.offset_bytes != len(held):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected the bytes from {len(held)} on")
            held += request.chunk.content
            if len(held) - told_bytes >= _UPLOAD_STEP_BYTES:
                told_bytes = len(held)
                yield ingest_service_pb2.UploadResponse(held_bytes=told_bytes)
        del self._recorded.uploads[identity]
        yield self._finish(pb.Observation(header=header, payload=bytes(held)), len(held), context)

    def _finish(self, observation: pb.Observation, held_bytes: int, context: Any) -> ingest_service_pb2.UploadResponse:
        try:
            receipt = self._take(pb.Bundle(observations=[observation]))
        except InvalidObservationError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return ingest_service_pb2.UploadResponse(held_bytes=held_bytes, receipt=receipt)

    def _take(self, bundle: pb.Bundle) -> receipt_pb2.Receipt:
        """Keeps what is new. A bundle to which no receipt can be written raises InvalidObservationError."""
        identities = {(each.header.station, each.header.epoch) for each in bundle.observations}
        if len(identities) != 1:
            raise InvalidObservationError(f"expected a bundle of one station and epoch, but got {len(identities)}")
        ((station, epoch),) = identities
        receipt = receipt_pb2.Receipt(station=check_name("station", station), epoch=check_epoch(epoch))
        held = RangeSet()
        with self._recorded.changed:
            for observation in bundle.observations:
                refusal, is_duplicate = self._judge(observation)
                if refusal is not None:
                    receipt.rejections.append(refusal)
                    continue
                held.add(observation.header.sequence)
                receipt.duplicate_count += is_duplicate
                if not is_duplicate:
                    self._recorded.observations.append(observation)
            self._recorded.changed.notify_all()
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
        if self._recorded.registered is not None and name not in self._recorded.registered:
            return refuse(receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT, f"{name} is not registered")
        identity = (header.station, header.epoch, header.sequence)
        is_known = identity in self._recorded.held_sha256
        try:
            if observation.payload or not is_known:  # an upload of what is held already brings no bytes
                decode_checked(observation)
        except InvalidObservationError as error:
            return refuse(receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH, str(error))
        if self._recorded.held_sha256.setdefault(identity, header.sha256) != header.sha256:
            return refuse(receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT, "other bytes are held under this identity")
        return None, is_known
