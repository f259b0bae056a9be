"""The station: memory, CPU, disk and drain, next to a bare paho publisher of the same bundles in the same run.

    python -m benchmarks.edge [--json] [--backlog N] [--observations N] [--year-days N]

A real agent, a real Mosquitto, and at the other end a small process that answers every bundle with a receipt. The
telegrams are simulated CL51 ones of 8 KB, with noise: they compress as real ones do. Memory is that of the agent fed by
TCP at 200 telegrams a second, 3,000 times what an instrument sends; with the quick look, agent and model process
together count what they share once (PSS). CPU is user and system time of the whole agent, less that of a run over one
telegram. The drain is that of a backlog; its floor publishes the same bundles with bare paho to a receiver that parses
nothing.

Bytes written are those that the block device of an ext4 file system of its own counts, journal included, for telegrams
that come one by one, each synced; they are set against the bytes of the telegrams. Where no such file system can be
mounted (that needs root), there is no such figure.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.delivery import BUNDLE, START_S, make_bundles, make_telegrams, write_recording
from benchmarks.edge_disk import append_rate, card, open_year, written_bytes
from benchmarks.edge_peers import Receiver, TelegramServer, memory_mb
from benchmarks.floors import paho_to_paho
from benchmarks.report import median, parse_options, print_report
from demo.processes import Processes, find_mosquitto, free_port, program
from edge_agent.buffer import Buffer
from edge_agent.capture import Capture, observation_of
from fieldpost.v1 import observation_pb2 as pb

STATION = "bench-edge"
MEMORY_TELEGRAMS = 3000
MEMORY_RATE_PER_S = 200.0


class Bench:
    """A broker, a receiver that answers, and folders for stations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._processes = Processes(folder / "logs")
        mosquitto = find_mosquitto()
        if mosquitto is None:
            raise SystemExit("mosquitto is not installed: make mosquitto")
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            "max_queued_messages 100000\nmax_inflight_messages 1000\n"
        )
        self._processes.start("broker", [mosquitto, "-c", str(folder / "mosquitto.conf")])
        self._processes.wait_for_port("broker", self.port)

    def settings(self, name: str, *lines: str, source: str = "") -> Path:
        """Writes a station's settings file."""
        path = self.folder / f"{name}.toml"
        head = [f'station = "{STATION}"', f'broker_urls = ["mqtt://127.0.0.1:{self.port}"]', "clock_wait_s = 0"]
        path.write_text("\n".join([*head, f'buffer_folder = "{self.folder / name}"', *lines, source, ""]))
        return path

    @contextmanager
    def agent(self, name: str, config: Path, *flags: str) -> Iterator[int]:
        """Runs a station; its process id."""
        self._processes.start(name, [program("fieldpost-agent"), "run", "--config", str(config), *flags])
        try:
            yield self._processes.process_id(name)
        finally:
            self._processes.stop(name)

    def wait_for_end(self, name: str) -> None:
        """Until a station that ends by itself has ended."""
        while not self._processes.has_ended(name):
            time.sleep(0.02)

    def close(self) -> None:
        """Ends all."""
        self._processes.stop_all()


def measure_memory(bench: Bench, telegrams: Sequence[bytes], *, quick_look: str) -> dict[str, float]:
    """Resident memory of a station after it took telegrams from TCP and delivered them."""
    name = f"memory-{quick_look}"
    with TelegramServer(telegrams, MEMORY_RATE_PER_S) as instrument, Receiver(bench.port) as receiver:
        source = (
            f'[[instruments]]\nname = "cl51"\nsource = "tcp-client"\nhost = "127.0.0.1"\nport = {instrument.port}\n'
        )
        source += 'payload_format = "vaisala-cl"\n'
        config = bench.settings(name, f'quick_look = "{quick_look}"', source=source)
        with bench.agent(name, config) as process_id:
            receiver.wait_for(len(telegrams))
            time.sleep(1.0)
            return memory_mb(process_id)


def measure_cpu(bench: Bench, telegrams: list[bytes]) -> float:
    """CPU-ms of a station for one observation: framed, compressed, synced in groups, sent in bundles, receipted."""

    def run(name: str, recorded: list[bytes]) -> float:
        write_recording(bench.folder / f"{name}.dat", recorded)
        source = f'[[instruments]]\nname = "cl51"\nsource = "replay"\npath = "{bench.folder / name}.dat"\n'
        with (
            Receiver(bench.port) as receiver,
            bench.agent(name, bench.settings(name, source=source), "--exit-when-delivered"),
        ):
            bench.wait_for_end(name)
            return receiver.children_cpu_s()

    start_up_s = run("cpu-one", telegrams[:1])
    return (run("cpu-all", telegrams) - start_up_s) / (len(telegrams) - 1) * 1e3


def fill_buffer(folder: Path, telegrams: Sequence[bytes], count: int) -> None:
    """A backlog of a station that was cut off."""
    buffer = Buffer(folder, STATION)
    for first in range(0, count, 256):
        captures = [
            Capture("cl51", "vaisala-cl", telegrams[i % len(telegrams)], "cl51:backlog", i, round((START_S + i) * 1e9))
            for i in range(first, min(count, first + 256))
        ]
        buffer.append([observation_of(capture) for capture in captures], START_S + first)
    buffer.close()


def measure_drain(bench: Bench, telegrams: list[bytes], count: int) -> dict[str, float]:
    """Observations per second of a backlog, from the first bundle to the last receipt; beside bare paho."""
    rates, ratios = [], []
    serialized = [bundle.SerializeToString() for bundle in make_bundles(telegrams, STATION, "0" * 32)]
    repeated = [serialized[i % len(serialized)] for i in range(count // BUNDLE)]
    for round_number in range(3):
        name = f"drain-{round_number}"
        fill_buffer(bench.folder / name, telegrams, count)
        floor = paho_to_paho(bench.port, repeated, len(repeated) * BUNDLE)
        with Receiver(bench.port) as receiver, bench.agent(name, bench.settings(name), "--exit-when-delivered"):
            receiver.wait_for(count)
            rates.append(receiver.rate_per_s())
        ratios.append(rates[-1] / floor)
        shutil.rmtree(bench.folder / name)
    return {
        "drain_per_s": median(rates),
        "drain_floor_per_s": median([rate / ratio for rate, ratio in zip(rates, ratios, strict=True)]),
        "drain_ratio": median(ratios),
    }


def main() -> None:
    """Measures and prints."""
    options = parse_options(__doc__, backlog=100_000, observations=20_000, year_days=365)
    telegrams = make_telegrams(options.observations)
    base = Path("benchmark-output").absolute()
    base.mkdir(exist_ok=True)  # on the checkout's disk: /tmp may be memory, where an fsync costs nothing
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=base) as name:
        folder = Path(name)
        bench = Bench(folder)
        try:
            alone = measure_memory(bench, telegrams[:MEMORY_TELEGRAMS], quick_look="off")
            result |= {"rss_mb": alone["rss_mb"], "rss_peak_mb": alone["peak_mb"], "private_mb": alone["private_mb"]}
            both = measure_memory(bench, telegrams[:MEMORY_TELEGRAMS], quick_look="on")
            result |= {"rss_litert_mb": both["with_children_mb"], "litert_child_rss_mb": both["children_rss_mb"]}
            result["cpu_ms_per_observation"] = measure_cpu(bench, telegrams)
            result |= measure_drain(bench, telegrams[: 64 * BUNDLE], options.backlog)
        finally:
            bench.close()
        observations = [_observation(i, content) for i, content in enumerate(telegrams[:2048])]
        result["appends_per_s"] = {
            f"groups_of_{group}": append_rate(folder / f"append-{group}", observations, group) for group in (1, 64)
        }
        result |= open_year(folder / "year", observations, options.year_days)
        with card(folder) as mounted:
            result["write_amplification"] = mounted and written_bytes(mounted, observations[:1000], group=1)
            result["write_amplification_groups_of_64"] = mounted and written_bytes(mounted, observations, group=64)
    print_report(result, as_json=options.json)


def _observation(index: int, content: bytes) -> pb.Observation:
    return observation_of(Capture("cl51", "vaisala-cl", content, "cl51:bench", index))


if __name__ == "__main__":
    main()
