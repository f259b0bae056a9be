"""Observations per second and CPU per observation, through MQTT and through gRPC, next to their floors in the same run.

    python -m benchmarks.delivery [--json] [--observations N] [--broker mosquitto|embedded]
                                  [--database both|sqlite|postgresql]

An observation is a CL51 telegram of 8 KB, simulated, with noise: it compresses as a real one does. Through MQTT: a
real agent replays recorded files (framing, CRC, compression, buffer with fdatasync, uplink), a real broker, a real
server without workers, SQLite. Through gRPC: bundles of 64 sent on one stream; once more with 8 KB of noise each, which
travels as it is; and both again with a PostgreSQL of its own on the same disk, durable as it is when installed. CPU is
user and system time of the whole process (of all of PostgreSQL's together), start-up left out where it could be (the
server and the broker are warm; the agent's start-up is measured by a run over one telegram and taken off).

Floors: mqtt, bare paho to bare paho over the same broker, nothing stored; grpc, the slower of an echo of the same
bundles and an append of the same bundles with an fdatasync each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import func, select

from benchmarks.floors import grpc_echo, paho_to_paho, segment_append, send_over_grpc
from benchmarks.report import median, print_report
from demo.plan import PlannedInstrument, PlannedStation, write_stations_file
from demo.postgres import Postgres
from demo.processes import Processes, find_mosquitto, free_port, program
from fieldpost.payload import encode_payload
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from server.storage.database import open_engine
from server.storage.tables import epochs, observations, stations

BUNDLE = 64
ROUNDS = 3
START_S = 1.75e9
INTERVAL_S = 15.0


def make_telegrams(count: int) -> list[bytes]:
    """Telegrams spread over a day; beyond 2048 the same again."""
    instrument = SimulatedCl51(seed=11)
    different = [instrument.telegram(START_S + 86_400 * i / 2048) for i in range(min(count, 2048))]
    return [different[i % len(different)] for i in range(count)]


def make_bundles(telegrams: list[bytes], station: str, epoch: str) -> list[pb.Bundle]:
    """The telegrams as a station bundles them."""
    bundles = []
    for first in range(0, len(telegrams), BUNDLE):
        bundle = pb.Bundle()
        for index, content in enumerate(telegrams[first : first + BUNDLE], first + 1):
            payload, encoding = encode_payload(content)
            header = bundle.observations.add(payload=payload).header
            header.station, header.instrument, header.epoch, header.sequence = station, "cl51", epoch, index
            header.sha256, header.payload_bytes = hashlib.sha256(content).digest(), len(content)
            header.payload_encoding, header.payload_format = encoding, "vaisala-cl"
            header.measure_time.FromNanoseconds(int((START_S + index * INTERVAL_S) * 1e9))
            header.capture_clock.wall_time.GetCurrentTime()
        bundles.append(bundle)
    return bundles


def write_recording(path: Path, telegrams: list[bytes]) -> None:
    """A logger file: a time line before each telegram."""
    with path.open("wb") as file:
        for index, content in enumerate(telegrams):
            stamp = time.strftime("-%Y-%m-%d %H:%M:%S\r\n", time.gmtime(START_S + index * INTERVAL_S))
            file.write(stamp.encode() + content + b"\r\n")


class Network:
    """A broker and a server without workers, in a folder of their own; without a name of a broker, none."""

    def __init__(self, folder: Path, broker: str | None, database_url: str) -> None:
        self.folder = folder
        self._engine = open_engine(database_url)
        self.mqtt_port, self.grpc_port = free_port(), free_port()
        self._processes = Processes(folder / "logs")
        if broker is not None:
            self._processes.start("broker", self._broker_command(broker))
            self._processes.wait_for_port("broker", self.mqtt_port)
        names = ("bench-mqtt", *(f"bench-grpc-{i}" for i in range(2 * ROUNDS + 1)))
        instruments = [PlannedInstrument("cl51", "cl51", {})]
        write_stations_file(folder / "stations.toml", [PlannedStation(name, instruments) for name in names])
        command = [program("fieldpost-server"), "run", "--data-folder", str(folder / "data"), "--workers", "0"]
        command += ["--grpc-address", f"127.0.0.1:{self.grpc_port}"]
        command += ["--stations-file", str(folder / "stations.toml")]
        brokers = [] if broker is None else [f"mqtt://127.0.0.1:{self.mqtt_port}"]
        settings = {"FIELDPOST_DATABASE_URL": database_url, "FIELDPOST_MQTT_URLS": json.dumps(brokers)}
        self._processes.start("server", command, settings)
        self._processes.wait_for_port("server", self.grpc_port)

    def process(self, name: str) -> psutil.Process:
        """The process "broker" or "server"."""
        return psutil.Process(self._processes.process_id(name))

    def _broker_command(self, kind: str) -> list[str]:
        if kind == "embedded":
            return [program("fieldpost-server"), "broker", "--address", f"127.0.0.1:{self.mqtt_port}"]
        mosquitto = find_mosquitto()
        if mosquitto is None:
            sys.exit("mosquitto is not installed: make mosquitto, or use --broker embedded")
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.mqtt_port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            "max_queued_messages 100000\nmax_inflight_messages 1000\n"
        )
        return [mosquitto, "-c", str(config)]

    def run_agent(self, name: str, config: Path) -> Iterator[None]:
        """Runs a station until all is delivered; yields now and then while it runs."""
        command = [program("fieldpost-agent"), "run", "--config", str(config), "--exit-when-delivered"]
        self._processes.start(name, command)
        while not self._processes.has_ended(name):
            yield
            time.sleep(0.02)

    def close(self) -> None:
        """Ends them."""
        self._processes.stop_all()
        self._engine.dispose()

    def held(self) -> dict[str, Counter[bytes]]:
        """How often the server's database holds each SHA-256, by station."""
        query = select(stations.c.name, observations.c.sha256).join(epochs, epochs.c.station_id == stations.c.id)
        held: dict[str, Counter[bytes]] = {}
        with self._engine.connect() as connection:
            for station, sha256 in connection.execute(query.join(observations)):
                held.setdefault(station, Counter())[sha256] += 1
        return held

    def count(self) -> int:
        """How many observations of the MQTT station are held now."""
        held = observations.join(epochs).join(stations)
        query = select(func.max(observations.c.sequence)).select_from(held)
        with self._engine.connect() as connection:
            return int(connection.scalar(query.where(stations.c.name == "bench-mqtt")) or 0)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _postgres_cpu_s(postgres: Postgres) -> float:
    server = psutil.Process(postgres.process_id)
    return sum(map(_cpu_s, [server, *server.children()]))


@contextmanager
def running(broker: str | None, database: str) -> Iterator[tuple[Network, Postgres | None]]:
    """Database, broker and server in a folder of their own."""
    base = Path("benchmark-output")
    base.mkdir(exist_ok=True)  # on the checkout's disk: /tmp may be memory, where an fsync costs nothing
    with tempfile.TemporaryDirectory(dir=base) as name, ExitStack() as parts:
        folder = Path(name).absolute()
        folder.chmod(0o755)  # PostgreSQL runs as another user
        postgres, url = None, f"sqlite:///{folder / 'fieldpost.db'}"
        if database == "postgresql":
            postgres = Postgres(folder / "pg")
            postgres.start()
            parts.callback(postgres.stop)
            url = postgres.create_database("fieldpost")
        network = Network(folder, broker, url)
        parts.callback(network.close)
        yield network, postgres


def run_agent(network: Network, telegrams: list[bytes]) -> tuple[float, float]:
    """Has an agent deliver the telegrams.

    Returns:
        Observations per second from the first to the last that the server holds; CPU seconds of the agent.
    """
    folder = network.folder
    name = f"agent-{len(telegrams)}"
    write_recording(folder / f"{name}.dat", telegrams)
    (folder / f"{name}.toml").write_text(
        f'station = "bench-mqtt"\nbroker_urls = ["mqtt://127.0.0.1:{network.mqtt_port}"]\n'
        f'buffer_folder = "{folder / name}"\n[[instruments]]\nname = "cl51"\nsource = "replay"\n'
        f'path = "{folder / f"{name}.dat"}"\nspeed_up = 0\n'
    )
    before = os.times()
    first = last = (0.0, 0)
    for _ in network.run_agent(name, folder / f"{name}.toml"):
        now = (time.perf_counter(), network.count())
        if now[1] and not first[1]:
            first = now
        if now[1] > last[1]:
            last = now
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else float("nan"), cpu_s


def measure_mqtt(network: Network, telegrams: list[bytes]) -> dict[str, Any]:
    """Through a real agent and a real broker."""
    _, idle_cpu_s = run_agent(network, telegrams[:1])
    server, broker = network.process("server"), network.process("broker")
    server_cpu_s, broker_cpu_s = _cpu_s(server), _cpu_s(broker)
    per_s, agent_cpu_s = run_agent(network, telegrams)
    server_cpu_s, broker_cpu_s = _cpu_s(server) - server_cpu_s, _cpu_s(broker) - broker_cpu_s
    bundles = [each.SerializeToString() for each in make_bundles(telegrams, "floor", "0" * 32)]
    floor = median([paho_to_paho(network.mqtt_port, bundles, len(telegrams)) for _ in range(ROUNDS)])
    milli = 1000 / len(telegrams)
    return {
        "observations_per_s": per_s,
        "floor_per_s": floor,
        "ratio_to_floor": per_s / floor,
        "agent_cpu_ms": (agent_cpu_s - idle_cpu_s) * milli,
        "broker_cpu_ms": broker_cpu_s * milli,
        "server_cpu_ms": server_cpu_s * milli,
    }


def measure_grpc(
    network: Network, postgres: Postgres | None, telegrams: list[bytes], first_station: int
) -> dict[str, Any]:
    """On one stream, in rounds that alternate with the floors; each round is a station of its own."""
    address = f"127.0.0.1:{network.grpc_port}"
    server = network.process("server")
    rates, echoes, appends, cpu_s, postgres_cpu_s = [], [], [], [], []
    for i in range(first_station, first_station + ROUNDS):
        bundles = make_bundles(telegrams, f"bench-grpc-{i}", f"{i:032x}")
        echoes.append(grpc_echo(bundles, len(telegrams)))
        (network.folder / f"floor-{i}").mkdir()
        appends.append(segment_append(network.folder / f"floor-{i}", bundles, len(telegrams)))
        before = _cpu_s(server), _postgres_cpu_s(postgres) if postgres else 0.0
        rate, held = send_over_grpc(address, bundles, len(telegrams))
        cpu_s.append(_cpu_s(server) - before[0])
        postgres_cpu_s.append(_postgres_cpu_s(postgres) - before[1] if postgres else 0.0)
        rates.append(rate)
        if held != len(telegrams):
            sys.exit(f"expected receipts for {len(telegrams)} observations, but got {held}")
    floors = [min(pair) for pair in zip(echoes, appends, strict=True)]
    return {
        "observations_per_s": median(rates),
        "floor_per_s": median(floors),
        "ratio_to_floor": median([rate / floor for rate, floor in zip(rates, floors, strict=True)]),
        "echo_per_s": median(echoes),
        "append_per_s": median(appends),
        "agent_cpu_ms": None,
        "broker_cpu_ms": None,
        "server_cpu_ms": median(cpu_s) * 1000 / len(telegrams),
        "postgres_cpu_ms": median(postgres_cpu_s) * 1000 / len(telegrams) if postgres else None,
    }


def count_losses(network: Network, telegrams: list[bytes], noise: list[bytes], *, with_mqtt: bool) -> tuple[int, int]:
    """How many of what was sent the server does not hold, byte for byte; how many it holds more than once."""
    held = network.held()
    sent, sent_noise = (Counter(hashlib.sha256(each).digest() for each in contents) for contents in (telegrams, noise))
    expected = {f"bench-grpc-{i}": sent if i < ROUNDS else sent_noise for i in range(2 * ROUNDS)}
    if with_mqtt:
        expected["bench-mqtt"] = sent + Counter([hashlib.sha256(telegrams[0]).digest()])  # the run over one
    lost = sum((expected[station] - held.get(station, Counter())).total() for station in expected)
    extra = sum((held.get(station, Counter()) - expected[station]).total() for station in expected)
    return lost, extra


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--observations", type=int, default=20_000, help="default 20000")
    parser.add_argument("--broker", choices=["mosquitto", "embedded"], default="mosquitto")
    parser.add_argument("--database", choices=["both", "sqlite", "postgresql"], default="both")
    options = parser.parse_args()
    telegrams = make_telegrams(options.observations)
    noise = [random.Random(i).randbytes(8192) for i in range(options.observations)]
    figures: dict[str, Any] = {}
    lost = duplicates = 0
    for database in ("sqlite", "postgresql") if options.database == "both" else (options.database,):
        broker, suffix = (options.broker, "") if database == "sqlite" else (None, "_postgresql")
        with running(broker, database) as (network, postgres):
            warm = make_bundles(telegrams[: 4 * BUNDLE], f"bench-grpc-{2 * ROUNDS}", "f" * 32)
            send_over_grpc(f"127.0.0.1:{network.grpc_port}", warm, len(warm) * BUNDLE)
            figures[f"grpc{suffix}"] = measure_grpc(network, postgres, telegrams, 0)
            figures[f"grpc_incompressible{suffix}"] = measure_grpc(network, postgres, noise, ROUNDS)
            if broker is not None:
                figures["mqtt"] = measure_mqtt(network, telegrams)
            missing, extra = count_losses(network, telegrams, noise, with_mqtt=broker is not None)
        lost, duplicates = lost + missing, duplicates + extra
    size = sum(map(len, telegrams)) / len(telegrams)
    packed = sum(len(encode_payload(each)[0]) for each in telegrams[:256]) / len(telegrams[:256])
    result = {
        "observations": len(telegrams),
        "observation_bytes": size,
        "encoded_bytes": packed,
        "broker": options.broker,
        **figures,
        "lost": lost,
        "duplicates_stored": duplicates,
    }
    print_report(result, as_json=options.json)


if __name__ == "__main__":
    main()
