"""The archive: a day made a bag and brought back, next to the plain programs on the same bytes in the same run.

    python -m benchmarks.archive [--json] [--quick] [--observations N] [--rounds N] [--memory-counts N ...]

A day of a simulated CL51 (5760 telegrams of 8 KB), predicted by two model versions, lies in a real store. Archiving
is all that the archive flow does to a day: look, write, read back, compare with the store, rename, record;
predictions and products included, of which the floor knows nothing. The floor is cp, sha256sum, tar and zstd at our
level, on the same disk (archive_floor.py). Restoring is into a folder, as the floor does; and into the store, once
retention has let the day go. Rounds of both alternate; ratios are medians of bytes of the instrument per second, ours
over the floor's, by the clock. `*_one_file` sets us against the same programs on one file of all bytes, without names
and hashes of observations; `cpu` compares CPU time instead of the clock: other work on the machine disturbs it less.
Memory is the peak of a process that archives a day of so many observations of 200 bytes, and draws it
(archive_memory.py). The backfill is measured in archive_backfill.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.archive_backfill import measure_backfill
from benchmarks.archive_day import DAY, fill_day, make_telegrams, open_empty
from benchmarks.archive_floor import (
    Spent,
    archive_files,
    archive_one_file,
    restore_files,
    restore_one_file,
    spend,
    zstd_program,
)
from benchmarks.archive_memory import make_site, measure_memory
from benchmarks.report import median, print_report
from flows.archiving.archivist import Archivist
from flows.bags.reading import BagReader
from flows.restoring.restorer import Restorer
from flows.site import Site
from server.archive.bags import NANOS_PER_DAY, InstrumentDay, day_to_unix_nanos
from server.archive.retention import prune

OBSERVATIONS, QUICK_OBSERVATIONS = 5760, 576
MEMORY_COUNTS, QUICK_MEMORY_COUNTS = (1000, 10_000, 100_000, 1_000_000), (1000, 10_000)
ROUNDS, QUICK_ROUNDS = 5, 1
LATER_UNIX_NANOS = day_to_unix_nanos(DAY) + 40 * NANOS_PER_DAY


class Bench:
    """The day as the server has it, and the same bytes as files."""

    def __init__(self, folder: Path, observation_count: int) -> None:
        self.folder = folder
        self.files, self.one_file = folder / "files", folder / "one-file"
        self.files.mkdir()
        self.payload_bytes = 0
        store = open_empty(folder / "master")
        with self.one_file.open("wb") as whole:
            contents = self._keep(make_telegrams(observation_count), whole.write)
            self.payload_bytes = fill_day(store, contents, observation_count)
        store.close()
        self.bag_bytes = 0

    def _keep(self, contents: Iterator[bytes], write: Callable[[bytes], object]) -> Iterator[bytes]:
        for index, content in enumerate(contents):
            (self.files / f"{index:06d}.dat").write_bytes(content)
            write(content)
            yield content

    def run_round(self) -> dict[str, Spent]:
        """Every part once, each in folders of its own that are gone afterwards."""
        with self._room() as room:
            spent = {
                "floor_archive": spend(lambda: archive_files(self.files, room)),
                "floor_restore": spend(lambda: restore_files(room, room)),
            }
        with self._room() as room:
            spent["one_file_archive"] = spend(lambda: archive_one_file(self.one_file, room))
            archived = room / "archived"
            archived.mkdir()
            for name in ("day.zst", "sums"):
                (room / name).rename(archived / name)
            (room / "day").unlink()
            spent["one_file_restore"] = spend(lambda: restore_one_file(archived, room))
        with self._room() as room:
            return spent | self._run_ours(room)

    def _run_ours(self, room: Path) -> dict[str, Spent]:
        shutil.copytree(self.folder / "master", room / "data")
        site = make_site(room / "data")
        archivist = Archivist(site)
        restorer = Restorer(site)
        (day,) = archivist.find_days(DAY, DAY)
        spent = {"archive": spend(lambda: archivist.archive(day, time.time_ns()))}
        self.bag_bytes = _count_bytes(site, day)
        spent["restore"] = spend(lambda: restorer.restore_to_folder(day, room / "restored"))
        pruned = prune(site.store, site.shelf, hot_days=30, now_unix_nanos=LATER_UNIX_NANOS)
        spent["restore_to_store"] = spend(lambda: restorer.restore(day, keep_until_unix_nanos=LATER_UNIX_NANOS))
        if not pruned.observation_count or not _is_same(site, day, restorer):
            raise SystemExit(f"expected the day gone and back, but got {pruned}")
        site.store.close()
        return spent

    @contextmanager
    def _room(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            yield Path(name)


def _is_same(site: Site, day: InstrumentDay, restorer: Restorer) -> bool:
    """Whether what is back is what was archived: then there is nothing to archive, and nothing to restore."""
    archived = Archivist(site).archive(day, LATER_UNIX_NANOS)
    again = restorer.restore(day, keep_until_unix_nanos=LATER_UNIX_NANOS)
    return archived.status == "present" and again.observation_count == 0


def _count_bytes(site: Site, day: InstrumentDay) -> int:
    (path,) = site.shelf.list_paths(f"{day.station}/{day.instrument}")
    with site.shelf.open(path) as folder:
        assert BagReader(folder).version == 1
    return sum(size for _, size in site.shelf.list_files(path))


def measure_ratios(base: Path, observation_count: int, rounds: int) -> dict[str, object]:
    """Ours against the plain programs."""
    with tempfile.TemporaryDirectory(dir=base) as name:
        bench = Bench(Path(name), observation_count)
        load_before = os.getloadavg()[0]
        spent = [bench.run_round() for _ in range(rounds)]
    walls = {name: median([each[name].wall_s for each in spent]) for name in spent[0]}
    cpus = {name: median([each[name].cpu_s for each in spent]) for name in spent[0]}
    return {
        "archive_ratio": walls["floor_archive"] / walls["archive"],
        "restore_ratio": walls["floor_restore"] / walls["restore"],
        "compression_ratio": bench.payload_bytes / bench.bag_bytes,
        "archive_ratio_one_file": walls["one_file_archive"] / walls["archive"],
        "restore_ratio_one_file": walls["one_file_restore"] / walls["restore"],
        "restore_to_store_ratio": walls["floor_restore"] / walls["restore_to_store"],
        "cpu": {
            "archive_ratio": cpus["floor_archive"] / cpus["archive"],
            "restore_ratio": cpus["floor_restore"] / cpus["restore"],
            "restore_to_store_ratio": cpus["floor_restore"] / cpus["restore_to_store"],
        },
        "mb_per_s": {name: bench.payload_bytes / 1e6 / wall_s for name, wall_s in walls.items()},
        "cpu_s": cpus,
        "wall_s": walls,
        "observations": observation_count,
        "payload_mb": bench.payload_bytes / 1e6,
        "bag_mb": bench.bag_bytes / 1e6,
        "rounds": rounds,
        "floor_zstd": zstd_program(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--quick", action="store_true", help="a tenth of a day, one round, small days for the memory")
    parser.add_argument("--observations", type=int, help=f"telegrams of the day; default {OBSERVATIONS}")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument(
        "--memory-counts",
        type=int,
        nargs="+",
        metavar="N",
        help="observations of the days whose memory is measured; a million takes a quarter of an hour",
    )
    options = parser.parse_args()
    base = Path("benchmark-output").absolute()
    base.mkdir(exist_ok=True)
    count = options.observations or (QUICK_OBSERVATIONS if options.quick else OBSERVATIONS)
    result = measure_ratios(base, count, options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS))
    result |= measure_backfill(options)
    counts = options.memory_counts or (QUICK_MEMORY_COUNTS if options.quick else MEMORY_COUNTS)
    print_report(result | {"memory_mb": measure_memory(base, counts)}, as_json=options.json)


if __name__ == "__main__":
    main()
