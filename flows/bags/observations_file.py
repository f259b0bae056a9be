"""The observations of a day as two files: the instrument's own bytes in a tar, and a line about each in a CSV.

Both are for plain tools (`tar --zstd -xf`, any spreadsheet) and hold all that a header says. Written and read one
observation at a time. Knows no bag and no store.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

import zstandard

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from flows.bags.durable import COPY_BYTES, FileDigest, HashedFile
from server.archive.bags import DayObservation

TAR_NAME, CSV_NAME = "observations.tar.zst", "observations.csv"
ZSTD_LEVEL = 10
"""Measured on telegrams, see docs/archive.md: 19 saves 3 % more and is ten times slower."""
COLUMNS = (
    "member",
    "epoch",
    "sequence",
    "measure_time",
    "measure_time_source",
    "capture_time",
    "capture_time_source",
    "clock_sync",
    "boot_id",
    "monotonic_nanos",
    "origin",
    "payload_format",
    "payload_encoding",
    "payload_bytes",
    "sha256",
)
_EXTENSIONS = {"vaisala-cl": "dat", "netcdf": "nc"}
_NANOS_PER_S = 10**9
_NEEDS_QUOTES = re.compile('[,"\r\n]')


def member_name(row: DayObservation, payload_format: str, epoch_characters: int) -> str:
    """The name of an observation in the tar, for example "0f3a5c71-000000004711.dat"."""
    extension = _EXTENSIONS.get(payload_format, "bin")
    return f"{row.epoch[:epoch_characters]}-{row.sequence:012d}.{extension}"


def format_instant(unix_nanos: int) -> str:
    """An instant as ISO 8601 with all nine digits, for example "2024-05-01T12:00:15.000000000Z"."""
    seconds, nanos = divmod(unix_nanos, _NANOS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


def write_observations(
    folder: Path,
    observations: Iterable[tuple[DayObservation, pb.ObservationHeader, bytes]],
    epoch_characters: int,
) -> dict[str, FileDigest]:
    """Writes both files.

    Args:
        folder: Where to.
        observations: Row, header and the instrument's bytes of each, in the order in which they are to stand.
        epoch_characters: How many characters of the epoch a member's name begins with.

    Returns:
        What was written, by file name.
    """
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    with HashedFile(folder / TAR_NAME) as packed, HashedFile(folder / CSV_NAME) as table:
        table.write(csv_line(COLUMNS))
        with (
            compressor.stream_writer(packed, closefd=False) as stream,  # type: ignore[arg-type]
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for row, header, content in observations:
                name = member_name(row, header.payload_format, epoch_characters)
                tar.addfile(_describe(name, row), io.BytesIO(content))
                table.write(csv_line(_facts(name, row, header)))
    return {TAR_NAME: packed.digest, CSV_NAME: table.digest}


def _describe(name: str, row: DayObservation) -> tarfile.TarInfo:
    """The member's entry. Nothing in it but the observation decides its bytes: no owner, no clock of ours."""
    member = tarfile.TarInfo(name)
    member.size = row.payload_bytes
    member.mtime = row.measure_unix_nanos // _NANOS_PER_S
    member.mode = 0o444
    return member


def csv_line(facts: Iterable[str | int]) -> bytes:
    """One line, quoted where it must be; the csv module writes a bare carriage return that it then cannot read."""
    texts = [str(fact) for fact in facts]
    quoted = ['"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text for text in texts]
    return (",".join(quoted) + "\n").encode()


def _measure_time_source(row: DayObservation, header: pb.ObservationHeader) -> str:
    """Who knew when it was measured: the station, the analysis that opened the payload, or nobody."""
    if header.HasField("measure_time"):
        return "station"
    return "capture_time" if row.measure_unix_nanos == row.capture_unix_nanos else "payload"


def _capture_time_source(header: pb.ObservationHeader) -> str:
    """Whose clock it was: the station's, the station's once it was right, or the server's."""
    if header.HasField("corrected_wall_time"):
        return "station, corrected"
    return "station" if header.capture_clock.wall_time.ToNanoseconds() else "server"


def _facts(name: str, row: DayObservation, header: pb.ObservationHeader) -> tuple[str | int, ...]:
    clock = header.capture_clock
    return (
        name,
        row.epoch,
        row.sequence,
        format_instant(row.measure_unix_nanos),
        _measure_time_source(row, header),
        format_instant(row.capture_unix_nanos),
        _capture_time_source(header),
        pb.ClockSync.Name(clock.clock_sync).removeprefix("CLOCK_SYNC_").lower(),
        clock.boot_id,
        clock.monotonic_nanos,
        header.origin,
        header.payload_format,
        pb.PayloadEncoding.Name(header.payload_encoding).removeprefix("PAYLOAD_ENCODING_").lower(),
        row.payload_bytes,
        row.sha256.hex(),
    )


def verify_observations(folder: Path, rows: Iterable[DayObservation]) -> int:
    """Reads both files again and compares every observation with its row.

    Returns:
        How many SHA-256 were computed from what was read, and found equal.

    Raises:
        BrokenStateError: Something in a file is not what the rows say; the message says where.
    """
    count = 0
    with (folder / CSV_NAME).open(newline="", encoding="utf-8") as table:
        lines = csv.DictReader(table)
        for row, member, line in zip_longest(rows, read_members(folder / TAR_NAME), lines):
            if row is None or member is None or line is None:
                has = {"row": row is not None, TAR_NAME: member is not None, CSV_NAME: line is not None}
                lacking = ", ".join(name for name, is_there in has.items() if not is_there)
                raise BrokenStateError(
                    f"expected every observation as a row, in {TAR_NAME} and in {CSV_NAME}, "
                    f"but number {count + 1} is not in {lacking} (folder {folder})"
                )
            _compare(folder, row, member, line)
            count += 1
    return count


def _compare(folder: Path, row: DayObservation, member: tuple[str, str], line: dict[str, str]) -> None:
    name, sha256 = member
    if sha256 != row.sha256.hex() or f"-{row.sequence:012d}." not in name:
        raise BrokenStateError(
            f"expected sequence {row.sequence} with SHA-256 {row.sha256.hex()}, but got member {name} with {sha256} "
            f"from {folder / TAR_NAME}"
        )
    expected = (name, row.epoch, str(row.sequence), format_instant(row.measure_unix_nanos), row.sha256.hex())
    got = tuple(line[key] for key in ("member", "epoch", "sequence", "measure_time", "sha256"))
    if got != expected:
        raise BrokenStateError(f"expected the line {expected}, but got {got} in {folder / CSV_NAME}")


def read_members(path: Path) -> Iterator[tuple[str, str]]:
    """Name and SHA-256 of each member of a tar, in order, to the last byte of the file.

    Raises:
        BrokenStateError: The tar or its compression is damaged.
    """
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is None:
                        raise BrokenStateError(f"expected files alone, but {member.name} is something else in {path}")
                    yield member.name, hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
            while stream.read(COPY_BYTES):
                pass  # the checksum of the whole stream comes last
    except (tarfile.TarError, zstandard.ZstdError) as error:
        raise BrokenStateError(f"expected a readable tar, but {path} is damaged: {error}") from error
