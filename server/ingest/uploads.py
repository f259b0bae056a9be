"""Observations too large for a message: they come in pieces, go on after a cut, and end as a segment of their own.

The spool begins with the observation's serialized header, so that the complete file is the serialized Observation and
no copy is made. Nothing of a payload is ever whole in memory. Knows no gRPC.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from sqlalchemy import Connection, select

from fieldpost.errors import InvalidObservationError, InvalidRequestError, TryAgainError
from fieldpost.names import check_epoch, check_name
from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.ingest import upload_spool
from server.ingest.admission import CheckedBundle, check_header, judge, reject, write_receipt
from server.ingest.core import Ingest
from server.ingest.streamed_payload import check_stream, find_contradiction
from server.ingest.upload_spool import Spool
from server.storage.segments import Place
from server.storage.store import Store
from server.storage.tables import epochs, instruments, observations, stations

logger = logging.getLogger(__name__)

FORGET_AFTER_S = 7 * 86_400
COMMIT_TIMEOUT_S = 120.0
_HEADER_TAG, _PAYLOAD_TAG = b"\x0a", b"\x12"
"""Fields 1 and 2 of fieldpost.v1.Observation, each with its length before its bytes."""


class Uploads:
    """The uploads of one server.

    Args:
        folder: Where they are spooled; best on the same file system as the segments.
        store: Where they end.
        ingest: Who admits them and has their rows written.
        payload_bytes_max: Larger observations are refused; below 2 GiB, which is as far as protobuf counts.
    """

    def __init__(self, folder: Path, store: Store, ingest: Ingest, *, payload_bytes_max: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._store = store
        self._ingest = ingest
        self._payload_bytes_max = payload_bytes_max

    def open(self, header: pb.ObservationHeader, encoded_bytes: int) -> Upload:
        """Begins an upload, or goes on with an earlier one of the same observation.

        Args:
            header: As it would stand in a bundle.
            encoded_bytes: Length of the encoded payload.

        Raises:
            InvalidObservationError: The header has no identity to write a receipt for.
            OverloadedError: Somebody is at this observation right now.
            TryAgainError: The disk or the database refuses.
        """
        station, epoch = check_name("station", header.station), check_epoch(header.epoch)
        bundle = CheckedBundle(station, epoch, [pb.Observation(header=header)], [])
        path = self._folder / f"{_identity(header)}{upload_spool.SUFFIX}"
        receipt = self._find_receipt(bundle, encoded_bytes)
        if receipt is not None:
            upload_spool.remove_unless_open(path)  # what an earlier try may have left
            return Upload(self, bundle, None, encoded_bytes, receipt)
        spool = Spool(path, _encode_prefix(header, encoded_bytes), encoded_bytes)
        return Upload(self, bundle, spool, encoded_bytes, None)

    def forget_old(self) -> None:
        """Removes what nobody went on with for seven days."""
        count = upload_spool.forget_old(self._folder, FORGET_AFTER_S)
        if count:
            logger.warning("forgotten uploads removed", extra={"upload_count": count, "age_s": FORGET_AFTER_S})

    def _find_receipt(self, bundle: CheckedBundle, encoded_bytes: int) -> receipt_pb2.Receipt | None:
        """The receipt that needs no payload: the observation is held already, or refused whatever comes."""
        header = bundle.sound[0].header
        rejection = check_header(header, encoded_bytes, self._payload_bytes_max)
        contradiction = find_contradiction(header, encoded_bytes)
        if rejection is None and contradiction:
            rejection = reject(header, receipt_pb2.REJECTION_REASON_INVALID, contradiction)
        if rejection is None:
            with self._store.read() as connection:
                judgement = judge(
                    header,
                    is_registered=_is_registered(connection, header),
                    held_sha256=_find_held(connection, header),
                    is_pruned=_is_pruned(connection, header),
                )
            if judgement.is_new:
                return None
            rejection = judgement.rejection
        if rejection is not None:
            return write_receipt(bundle, RangeSet(), [rejection], 0)
        return write_receipt(bundle, RangeSet.of([header.sequence]), [], 1)

    def store_file(self, path: Path, bundle: CheckedBundle) -> receipt_pb2.Receipt:
        """Makes a complete and checked file a segment, and has its row written; the file stays.

        Raises:
            TryAgainError: The disk, the object store or the database refuses.
        """
        with upload_spool.disk_errors(self._folder):
            length = path.stat().st_size
            name = self._store.segments.adopt(path)
        try:
            written = self._ingest.submit_record(bundle.sound[0].header, Place(name, 0, length))
            receipt = written.result(COMMIT_TIMEOUT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not take the observation within {COMMIT_TIMEOUT_S:g} s",
                hint="call again: if it is taken by then, the receipt comes at once",
            ) from error
        if receipt.duplicate_count or receipt.rejections:  # it came another way meanwhile: no row names the segment
            with upload_spool.disk_errors(self._folder):
                self._store.segment_reader.remove(name)
        return receipt


class Upload:
    """One upload. Blocking, for one thread at a time; close() it in any case: what is on the disk stays there.

    Attributes:
        receipt: Set right after open() where nothing need be sent; and after finish().
    """

    def __init__(
        self,
        uploads: Uploads,
        bundle: CheckedBundle,
        spool: Spool | None,
        encoded_bytes: int,
        receipt: receipt_pb2.Receipt | None,
    ) -> None:
        self._uploads = uploads
        self._bundle = bundle
        self._spool = spool
        self._encoded_bytes = encoded_bytes
        self.receipt = receipt

    @property
    def held_bytes(self) -> int:
        """So much of the encoded payload is on the disk: the sender goes on from there."""
        return self._spool.held_bytes if self._spool else 0

    def write(self, offset: int, content: bytes) -> None:
        """Takes the next piece.

        Raises:
            InvalidRequestError: It does not begin where the one before ended, or reaches past the payload's end.
            TryAgainError: The disk refuses; what is held stays.
        """
        self._open_spool().write(offset, content)

    def sync(self) -> int:
        """Has everything written on the disk; returns held_bytes.

        Raises:
            TryAgainError: The disk refuses.
        """
        return self._open_spool().sync()

    def finish(self) -> receipt_pb2.Receipt:
        """Checks length and SHA-256, makes the file a segment, and has it committed.

        Returns:
            The receipt, once what it promises is on the disk. Where the bytes are not what the header says, it rejects
            them, and the next try begins at the first byte.

        Raises:
            InvalidRequestError: Bytes are missing; those that came are kept.
            TryAgainError: The disk, the object store or the database refuses; all bytes are kept.
        """
        spool = self._open_spool()
        held = spool.sync()
        if held != self._encoded_bytes:
            raise InvalidRequestError(
                f"expected {self._encoded_bytes} bytes of payload, but got {held} before the end",
                hint="call again with the same header, and send the rest",
            )
        header = self._bundle.sound[0].header
        try:
            with spool.read_content() as file:
                check_stream(file, header)
        except InvalidObservationError as error:
            rejection = reject(header, receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH, str(error))
            self.receipt = write_receipt(self._bundle, RangeSet(), [rejection], 0)
        else:
            self.receipt = self._uploads.store_file(spool.path, self._bundle)
        spool.remove()
        return self.receipt

    def _open_spool(self) -> Spool:
        if self._spool is None or self.receipt is not None:
            raise InvalidRequestError("expected nothing more of this observation: its receipt is given")
        return self._spool

    def close(self) -> None:
        """Lets go of the file; what is on the disk stays, for the next try."""
        if self._spool is not None:
            self._spool.close()


def _is_registered(connection: Connection, header: pb.ObservationHeader) -> bool:
    query = select(instruments.c.id).join(stations)
    here = (stations.c.name == header.station, instruments.c.name == header.instrument)
    return connection.scalar(query.where(*here)) is not None


def _find_held(connection: Connection, header: pb.ObservationHeader) -> bytes | None:
    query = select(observations.c.sha256).join(epochs, epochs.c.id == observations.c.epoch_id).join(stations)
    here = (stations.c.name == header.station, epochs.c.epoch == header.epoch)
    found: bytes | None = connection.scalar(query.where(*here, observations.c.sequence == header.sequence))
    return found


def _is_pruned(connection: Connection, header: pb.ObservationHeader) -> bool:
    query = select(epochs.c.pruned_ranges).join(stations)
    content = connection.scalar(query.where(stations.c.name == header.station, epochs.c.epoch == header.epoch))
    ranges = receipt_pb2.Receipt.FromString(content or b"").held_ranges
    return any(each.first_sequence <= header.sequence <= each.last_sequence for each in ranges)


def _identity(header: pb.ObservationHeader) -> str:
    """The name of an observation's file: the same at every try, and one that any file system takes."""
    facts = f"{header.station} {header.epoch} {header.sequence} {header.sha256.hex()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def _encode_prefix(header: pb.ObservationHeader, encoded_bytes: int) -> bytes:
    """What a serialized Observation begins with, up to the first byte of its payload."""
    content = header.SerializeToString(deterministic=True)
    return _HEADER_TAG + _varint(len(content)) + content + _PAYLOAD_TAG + _varint(encoded_bytes)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
