"""The observations of a day as two files: the instrument's own bytes in a tar, and a line about each in a CSV.

Both are for plain tools (`tar --zstd -xf`, any spreadsheet) and hold all that a header says. Written and read one
observation at a time. Knows no bag and no store.
"""

from __future__ import annotations

import csv
import hashlib
import re
import tarfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import zstandard
from google.protobuf.descriptor import EnumDescriptor

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from flows.bags.durable import FileDigest, HashedFile
from flows.bags.tar_members import Member, read_members
from server.archive.bags import DayObservation

TAR_NAME, CSV_NAME = "observations.tar.zst", "observations.csv"
ZSTD_LEVEL = 10
"""Measured on telegrams, see docs/archive.md: 19 saves 9 % more and costs fifteen times the time."""
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    ZSTD_LEVEL, write_checksum=True, threads=2, job_size=2 * 1024 * 1024
)
"""Two threads halve the time for 1 % more bytes; the bytes depend on neither their number nor their luck. Small jobs
take little memory, and compress as well as large ones."""
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
    "station_time",
    "corrected_time",
    "quick_look_model",
    "quick_look_height_m",
    "quick_look_quality",
    "quick_look_duration_ms",
    "sha256",
)
"""The hash stays last, so that a line of awk finds it whatever the other columns hold."""
_COMPARED = ("member", "epoch", "sequence", "measure_time", "sha256")
_EXTENSIONS = {"vaisala-cl": "dat", "netcdf": "nc"}
_NANOS_PER_S = 10**9
_NEEDS_QUOTES = re.compile('["\r\n]')


def member_name(row: DayObservation, payload_format: str, epoch_characters: int) -> str:
    """The name of an observation in the tar, for example "0f3a5c71-000000004711.dat"."""
    extension = _EXTENSIONS.get(payload_format, "bin")
    return f"{row.epoch[:epoch_characters]}-{row.sequence:012d}.{extension}"


def format_instant(unix_nanos: int) -> str:
    """An instant as ISO 8601 with all nine digits, for example "2024-05-01T12:00:15.000000000Z"."""
    seconds, nanos = divmod(unix_nanos, _NANOS_PER_S)
    return f"{_format_second(seconds)}.{nanos:09d}Z"


@lru_cache(64)  # the instants of an observation are mostly of one second
def _format_second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()[:19]


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
    compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
    with HashedFile(folder / TAR_NAME) as packed, HashedFile(folder / CSV_NAME) as table:
        table.write(csv_line(COLUMNS))
        with compressor.stream_writer(packed, closefd=False) as stream:  # type: ignore[arg-type]
            for row, header, content in observations:
                name = member_name(row, header.payload_format, epoch_characters)
                # Not through a TarFile: that copies each member three times.
                stream.write(_describe(name, row).tobuf(tarfile.PAX_FORMAT))
                stream.write(content)
                stream.write(bytes(-len(content) % tarfile.BLOCKSIZE))
                table.write(csv_line(_facts(name, row, header)))
            stream.write(bytes(2 * tarfile.BLOCKSIZE))
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
    texts = list(map(str, facts))
    line = ",".join(texts)
    if line.count(",") >= len(texts) or _NEEDS_QUOTES.search(line):
        line = ",".join('"' + text.replace('"', '""') + '"' if _is_odd(text) else text for text in texts)
    return (line + "\n").encode()


def _is_odd(text: str) -> bool:
    return "," in text or _NEEDS_QUOTES.search(text) is not None


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
    """A line of the table, from which the header can be made again field for field; empty is what was absent."""
    clock = header.capture_clock
    return (
        name,
        row.epoch,
        row.sequence,
        format_instant(row.measure_unix_nanos),
        _measure_time_source(row, header),
        format_instant(row.capture_unix_nanos),
        _capture_time_source(header),
        _word(pb.ClockSync.DESCRIPTOR, "CLOCK_SYNC_", clock.clock_sync) if header.HasField("capture_clock") else "",
        clock.boot_id,
        clock.monotonic_nanos,
        header.origin,
        header.payload_format,
        _word(pb.PayloadEncoding.DESCRIPTOR, "PAYLOAD_ENCODING_", header.payload_encoding),
        row.payload_bytes,
        format_instant(clock.wall_time.ToNanoseconds()) if clock.HasField("wall_time") else "",
        format_instant(header.corrected_wall_time.ToNanoseconds()) if header.HasField("corrected_wall_time") else "",
        *_quick_look_facts(header),
        row.sha256.hex(),
    )


def _quick_look_facts(header: pb.ObservationHeader) -> tuple[str, str, str, str]:
    """Model, height, quality and duration; the quality alone tells whether there is a quick look at all."""
    if not header.HasField("quick_look"):
        return "", "", "", ""
    look = header.quick_look
    height_m = repr(look.mixing_layer_height_m) if look.HasField("mixing_layer_height_m") else ""
    quality = _word(pb.QuickLookQuality.DESCRIPTOR, "QUICK_LOOK_QUALITY_", look.quality)
    return look.model, height_m, quality, repr(look.duration_ms)


def _word(kind: EnumDescriptor, prefix: str, number: int) -> str:
    """The name of an enumeration's value; the number where a newer station sent one that is not known here."""
    value = kind.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix).lower()


def verify_observations(folder: Path, rows: Iterable[DayObservation]) -> int:
    """Reads both files again and compares every observation with its row.

    Returns:
        How many SHA-256 were computed from what was read, and found equal.

    Raises:
        BrokenStateError: Something in a file is not what the rows say; the message says where.
    """
    count = 0
    with (folder / CSV_NAME).open(newline="", encoding="utf-8") as table:
        lines = csv.reader(table)
        columns = next(lines, [])
        places = _find_columns(columns, folder)
        for row, member, line in zip_longest(rows, read_members(folder / TAR_NAME), lines):
            if row is None or member is None or line is None:
                has = {"row": row is not None, TAR_NAME: member is not None, CSV_NAME: line is not None}
                lacking = ", ".join(name for name, is_there in has.items() if not is_there)
                raise BrokenStateError(
                    f"expected every observation as a row, in {TAR_NAME} and in {CSV_NAME}, "
                    f"but number {count + 1} is not in {lacking} (folder {folder})"
                )
            if len(line) != len(columns):
                where = f"line {lines.line_num} of {folder / CSV_NAME}"
                raise BrokenStateError(f"expected {len(columns)} columns, but got {len(line)} in {where}")
            _compare(folder, row, member, tuple([line[place] for place in places]))
            count += 1
    return count


def _find_columns(names: Sequence[str], folder: Path) -> list[int]:
    """Where in a line stands what is compared, in the order of _COMPARED."""
    if not set(_COMPARED) <= set(names):
        raise BrokenStateError(f"expected the columns {_COMPARED}, but got {tuple(names)} in {folder / CSV_NAME}")
    return [names.index(name) for name in _COMPARED]


def _compare(folder: Path, row: DayObservation, member: Member, got: tuple[str, ...]) -> None:
    name, row_sha256 = member.name, row.sha256.hex()
    sha256 = hashlib.sha256(member.content).hexdigest()
    if sha256 != row_sha256 or f"-{row.sequence:012d}." not in name:
        raise BrokenStateError(
            f"expected sequence {row.sequence} with SHA-256 {row_sha256}, but got member {name} with {sha256} "
            f"from {folder / TAR_NAME}"
        )
    expected = (name, row.epoch, str(row.sequence), format_instant(row.measure_unix_nanos), row_sha256)
    if got != expected:
        raise BrokenStateError(f"expected the line {expected}, but got {got} in {folder / CSV_NAME}")
