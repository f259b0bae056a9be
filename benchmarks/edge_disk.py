"""What a station's buffer costs the disk: durable appends, a year to open, bytes that reach the device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.report import median
from edge_agent.buffer import Buffer
from edge_agent.storage.day_file import DayFileName
from edge_agent.storage.records import pack_record
from fieldpost.v1 import observation_pb2 as pb

TELEGRAMS_A_DAY = 5760  # one every 15 s
CARD_BYTES = 512 << 20


def append_rate(folder: Path, observations: Sequence[pb.Observation], group: int) -> float:
    """Observations per second, appended in groups that are synced each."""
    rates = []
    for round_number in range(3):
        buffer = Buffer(folder / str(round_number), "bench-edge")
        count = min(len(observations), 20 * group + 500) // group * group
        started = time.perf_counter()
        for first in range(0, count, group):
            buffer.append(list(observations[first : first + group]), time.time())
        rates.append(count / (time.perf_counter() - started))
        buffer.close()
    return median(rates)


def open_year(folder: Path, observations: Sequence[pb.Observation], days: int) -> dict[str, float]:
    """Seconds to open a buffer of a year, by a fresh process; its memory then, and that with one day in the buffer."""
    needed_bytes = days * TELEGRAMS_A_DAY * (len(observations[0].payload) + 400)
    if shutil.disk_usage(folder.parent).free < 1.5 * needed_bytes:
        return {"open_year_s": float("nan")}
    seconds, one_day_mb = _open(_write_days(folder / "one", observations, 1))
    seconds, year_mb = _open(_write_days(folder / "all", observations, days))
    size = sum(path.stat().st_size for path in (folder / "all").rglob("*"))
    return {"open_year_s": seconds, "year_rss_mb": year_mb, "one_day_rss_mb": one_day_mb, "year_gb": size / 1e9}


def _write_days(folder: Path, observations: Sequence[pb.Observation], days: int) -> Path:
    """Day files as a station writes them, without a sync each."""
    Buffer(folder, "bench-edge").close()
    epoch = (folder / "epoch").read_text().strip()
    begin = datetime.now(UTC).date() - timedelta(days=days)
    sequence = 1
    for day in range(days):
        name = DayFileName(sequence, begin + timedelta(days=day))
        offsets = bytearray()
        with (folder / "days" / str(name)).open("wb", buffering=1 << 20) as file:
            for _ in range(TELEGRAMS_A_DAY):
                observation = observations[sequence % len(observations)]
                header = observation.header
                header.station, header.epoch, header.sequence = "bench-edge", epoch, sequence
                offsets += file.tell().to_bytes(8, "little")
                file.write(pack_record(header.SerializeToString(), observation.payload))
                sequence += 1
        (folder / "days" / str(name)).with_suffix(".idx").write_bytes(offsets)
    return folder


def _open(folder: Path) -> tuple[float, float]:
    """(seconds, resident MiB) of a process that opens the buffer; the median of five."""
    program = (
        "import sys, time, pathlib; from edge_agent.buffer import Buffer; started = time.perf_counter()\n"
        "buffer = Buffer(pathlib.Path(sys.argv[1]), 'bench-edge'); took = time.perf_counter() - started\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(took, status.split('VmRSS:')[1].split()[0]); buffer.close()"
    )
    seen = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True)
        seen.append([float(word) for word in done.stdout.split()])
    return median([took for took, _ in seen]), median([kib for _, kib in seen]) / 1024


@contextmanager
def card(folder: Path) -> Iterator[Path | None]:
    """An ext4 file system of its own, with pages of 4 KiB; None where none can be mounted."""
    image, mounted = folder / "card.img", folder / "card"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(CARD_BYTES)
    commands = (["mkfs.ext4", "-q", "-b", "4096", str(image)], ["mount", "-o", "loop", str(image), str(mounted)])
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def written_bytes(mounted: Path, observations: Sequence[pb.Observation], group: int) -> float:
    """Bytes that reach the device for each byte that the instrument gave."""
    find = subprocess.run(["findmnt", "-no", "SOURCE", str(mounted)], check=True, capture_output=True, text=True)
    statistics = Path("/sys/block") / Path(find.stdout.strip()).name / "stat"

    def written() -> int:
        os.sync()
        return int(statistics.read_text().split()[6]) * 512  # sectors written

    buffer = Buffer(mounted / f"groups-of-{group}", "bench-edge")
    before = written()
    for first in range(0, len(observations), group):
        buffer.append(list(observations[first : first + group]), time.time())
    buffer.close()
    return (written() - before) / sum(observation.header.payload_bytes for observation in observations)
