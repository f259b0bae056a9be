"""The most memory that archiving a day takes, by how many observations the day has, each day in a process of its own.

    python -m benchmarks.archive_memory FOLDER COUNT

The child makes the bag, reads it back and draws the day's pictures, as the archive flow does, and says what the kernel
says of it (VmHWM): once when all is imported and a day of few observations was archived, and once at its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.archive_day import DAY, fill_day, make_small, open_empty
from flows.archiving.archivist import Archivist
from flows.archiving.picture import draw_pictures
from flows.bags.day import DayReader
from flows.site import Site, open_shelves
from server.settings import Settings


def measure_memory(base: Path, counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """By count: peak memory in MB, and CPU time by observation in µs.

    Args:
        base: Where stores and bags may lie for the time being.
        counts: Observations of a day.
    """
    return {str(count): _measure(base, count) for count in counts}


def _measure(base: Path, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=base) as name:
        store = open_empty(Path(name))
        fill_day(store, make_small(count), count)
        store.close()
        command = [sys.executable, "-m", "benchmarks.archive_memory", name, str(count)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def make_site(folder: Path) -> Site:
    """The site of a data folder, its archive beside it."""
    settings = Settings(data_folder=folder, archive_folder=str(folder / "archive"))
    return Site(settings, open_empty(folder), *open_shelves(settings))


def _archive(folder: Path, count: int) -> dict[str, float]:
    site = make_site(folder)
    archivist = Archivist(site)
    (day,) = archivist.find_days(DAY, DAY)
    begin_cpu_s = time.process_time()
    archived = archivist.archive(day, time.time_ns())
    cpu_s = time.process_time() - begin_cpu_s
    bag_mb = _peak_mb()
    picture_count = sum(1 for _ in draw_pictures(DayReader(site.store, day)))
    site.store.close()
    if (archived.record.observation_count, picture_count) != (count, 1):
        raise SystemExit(f"expected {count} observations and a picture, but got {archived} and {picture_count}")
    return {"bag_mb": bag_mb, "with_picture_mb": _peak_mb(), "cpu_us_per_observation": 1e6 * cpu_s / count}


def _peak_mb() -> float:
    """Of this program alone: what getrusage says includes whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    print(json.dumps(_archive(Path(sys.argv[1]), int(sys.argv[2]))))
