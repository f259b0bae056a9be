"""A card that forgets: flipped bits, blocks of zeros, files cut short, anywhere in a real buffer.

After each damage the buffer opens by itself, gives no wrong byte, misses at most the records that were hit, and says
which; nothing that the server lacks is held for delivered; and it goes on.
"""

from __future__ import annotations

import json
import logging
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from faults.library import fast_folder
from faults.promises import NEW_NUMBER, STATION, observation, read_numbers

from edge_agent.buffer import Buffer
from edge_agent.remote_settings import overrides_from_json
from edge_agent.storage.records import scan_records
from edge_agent.storage.retention import RetentionPolicy
from edge_agent.storage.state_file import with_checksum, without_checksum
from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0
DAY_FILE_BYTES = 40_000
PER_DAY = 12
DAYS = 6
DELIVERED = [(1, 20), (25, 60)]
FLIPS = 1000


@dataclass(frozen=True, slots=True)
class Written:
    """A buffer as it was before any damage."""

    folder: Path
    files: dict[Path, bytes]
    records: dict[Path, list[tuple[int, int, int]]]  # (begin, end, sequence)
    numbers: dict[int, int]
    epoch: str


@pytest.fixture(scope="module")
def written() -> Iterator[Written]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as parent:
        folder = Path(parent) / "buffer"
        buffer = Buffer(folder, STATION, day_file_max_bytes=DAY_FILE_BYTES)
        numbers = {}
        for number in range(1, DAYS * PER_DAY + 1):
            now_unix_s = NOW + (number - 1) // PER_DAY * DAY_S
            clock = pb.CaptureClock(boot_id="ab" * 16, clock_sync=pb.CLOCK_SYNC_SYNCHRONISED, monotonic_nanos=number)
            clock.wall_time.FromNanoseconds(int(now_unix_s) * 10**9)
            one = observation(number)
            one.header.capture_clock.CopyFrom(clock)
            numbers[buffer.append([one], now_unix_s)[0]] = number
            buffer.clock_marks.note(clock)
        buffer.deliver(DELIVERED)
        buffer.refuse(61, "INVALID", "no sha256")
        buffer.close()
        (folder / "overrides.json").write_text(json.dumps({"rate_limit_bytes_per_s": "2000"}, indent=1))
        files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
        records = {path: _records(content) for path, content in files.items() if path.suffix == ".obs"}
        assert len(records) == DAYS and sum(map(len, records.values())) == DAYS * PER_DAY
        yield Written(folder, files, records, numbers, buffer.epoch)


def _records(content: bytes) -> list[tuple[int, int, int]]:
    found = scan_records(lambda offset, length: content[offset : offset + length], 0)
    return [(record.offset, record.end, record.header.sequence) for record in found]


def restore(written: Written) -> None:
    for path in [path for path in written.folder.rglob("*") if path.is_file() and path not in written.files]:
        path.unlink()
    for path, content in written.files.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def hold(written: Written, path: Path, first_byte: int, last_byte: int) -> None:
    """Opens the buffer whose bytes first_byte..last_byte of one file are damaged, and holds it to its word."""
    where = f"{path.name} {first_byte}..{last_byte}"
    hit = {number for begin, end, number in written.records.get(path, []) if begin <= last_byte and first_byte < end}
    buffer = Buffer(written.folder, STATION, day_file_max_bytes=DAY_FILE_BYTES)
    try:
        assert buffer.epoch == written.epoch, where
        found = read_numbers(buffer)
        expected = {sequence: number for sequence, number in written.numbers.items() if sequence not in hit}
        assert found == expected, where
        within = {sequence for sequence in hit if sequence <= buffer.last_sequence} - _sequences(buffer.ledger.skipped)
        assert _sequences(buffer.unreadable) == within, where
        buffer.sequences_between(NOW - DAY_S, NOW + 400 * DAY_S)
        delivered = _sequences(DELIVERED) | {61}
        settled = buffer.settled()
        assert not [s for s in found if s in settled and s not in delivered], f"{where}: never sent, and never will be"
        assert buffer.origins().get("cl51:run", 0) <= max(written.numbers.values()), f"{where}: a source would skip"
        buffer.delete_expired(NOW + 30 * DAY_S, RetentionPolicy(retention_days=100))
        (sequence,) = buffer.append([observation(NEW_NUMBER)], NOW + DAYS * DAY_S)
        assert sequence not in expected, where
        assert read_numbers(buffer) == expected | {sequence: NEW_NUMBER}, where
        buffer.load_state("overrides.json", overrides_from_json)
    finally:
        buffer.close()


def _sequences(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {sequence for first, last in ranges for sequence in range(first, last + 1)}


@pytest.fixture(autouse=True)
def whole_and_quiet(written: Written) -> Iterator[None]:
    restore(written)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def places(written: Written, chance: random.Random, count: int) -> Iterator[tuple[Path, bytearray, int]]:
    """Random bytes of random files: the large ones more often, but the small ones often enough."""
    large = [path for path in written.files if path.suffix == ".obs"]
    small = [path for path in written.files if path.suffix != ".obs"]
    for index in range(count):
        path = chance.choice(large if index % 2 else small)
        content = bytearray(written.files[path])
        if content:
            yield path, content, chance.randrange(len(content))


def test_a_flipped_bit_anywhere_costs_at_most_the_record_that_it_hit(written: Written) -> None:
    chance = random.Random(1)
    for path, content, place in places(written, chance, FLIPS):
        content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        hold(written, path, place, place)
        restore(written)


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_a_block_of_zeros_anywhere_costs_at_most_the_records_in_it(written: Written, block_bytes: int) -> None:
    for path, content, place in places(written, random.Random(block_bytes), 100):
        first = place - place % block_bytes
        last = min(first + block_bytes, len(content)) - 1
        content[first : last + 1] = bytes(last + 1 - first)
        path.write_bytes(content)
        hold(written, path, first, last)
        restore(written)


def test_a_file_that_was_cut_short_costs_at_most_what_was_cut_off(written: Written) -> None:
    for path, content, place in places(written, random.Random(3), 150):
        path.write_bytes(content[:place])
        hold(written, path, place, len(content) - 1)
        restore(written)


@pytest.mark.parametrize("content", [b"{}", b'{"a":1}', b'{"epoch":"x","delivered":[[1,500]]}'])
def test_a_state_file_is_json_with_its_checksum_and_one_without_is_taken(content: bytes) -> None:
    kept = with_checksum(content)
    assert json.loads(kept).pop("crc32") and json.loads(kept) | {"crc32": ""} == json.loads(content) | {"crc32": ""}
    assert without_checksum(kept) == content == without_checksum(content)


def test_a_digit_that_flips_in_a_state_file_is_found() -> None:
    kept = with_checksum(b'{"delivered":[[1,500]]}')
    with pytest.raises(BrokenStateError, match="expected the CRC-32"):
        without_checksum(kept.replace(b"500", b"700"))


def test_any_file_may_be_gone_but_the_observations_in_it(written: Written) -> None:
    for path, content in written.files.items():
        path.unlink()
        hold(written, path, 0, len(content))
        restore(written)


def test_the_sequence_of_a_newest_record_that_was_damaged_is_not_given_to_another(written: Written) -> None:
    path = max(path for path in written.records)
    begin, end, sequence = written.records[path][-1]
    reused = 0
    for place in range(begin, end):
        content = bytearray(written.files[path])
        content[place] ^= 0x10
        path.write_bytes(content)
        for _ in range(2):  # at the next start, too
            buffer = Buffer(written.folder, STATION)
            is_reused = buffer.last_sequence < sequence
            buffer.close()
        reused += is_reused
        restore(written)
    assert reused <= 12, "only where the record's own lengths or its magic number were hit"


def test_what_comes_behind_a_damaged_newest_record_is_found_again_with_and_without_the_index(
    written: Written,
) -> None:
    path = max(path for path in written.records)
    begin, end, sequence = written.records[path][-1]
    content = bytearray(written.files[path])
    content[(begin + end) // 2] ^= 1
    path.write_bytes(content)
    for is_indexed in (True, False):
        buffer = Buffer(written.folder, STATION, day_file_max_bytes=1 << 20)
        number = NEW_NUMBER + is_indexed
        (given,) = buffer.append([observation(number)], NOW + (DAYS - 1) * DAY_S)
        assert given > sequence
        buffer.close()
        if not is_indexed:
            for index in (written.folder / "days").glob("*.idx"):
                index.unlink()
    buffer = Buffer(written.folder, STATION)
    numbers = read_numbers(buffer)
    assert sequence not in numbers and list(buffer.unreadable) == [(sequence, sequence)]
    assert list(numbers.values())[-2:] == [NEW_NUMBER + 1, NEW_NUMBER]
    assert buffer.origins()["cl51:run"] == NEW_NUMBER + 1
    buffer.close()
    restore(written)
