"""Kills processes of a loaded network at random, and counts at both ends: nothing lost, nothing stored twice.

    PYTHONPATH=tests python -m chaos.campaign [--seconds 120] [--broker mosquitto|amqtt|both] [--seed N] [--json]

What every station was given is known here beforehand (the simulated telegrams can be made again, the dropped files are
written here), and is held against what the server's database and segments hold, byte for byte by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.network import DROPPED, INTERVAL_S, SEED, SIMULATED, START_S, Network

from fieldpost.payload import decode_checked
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb

SIMULATED_PER_S = 60.0
DROPPED_PER_S = 40.0
FILE_BYTES = 8192
DRAIN_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a campaign found. `lost`, `corrupt`, `stored_twice` and `predicted_twice` must be 0."""

    broker: str
    seconds: float
    kills: dict[str, int]
    observations: int
    lost: int
    corrupt: int
    stored_twice: int
    captured_twice: int
    unpredicted: int
    predicted_twice: int
    drain_s: float

    @property
    def is_clean(self) -> bool:
        """Whether nothing is missing, and nothing too much."""
        wrong = (self.lost, self.corrupt, self.stored_twice, self.captured_twice, self.unpredicted)
        return not any(wrong) and not self.predicted_twice


class Dropper:
    """Writes files into drop folders, as an instrument's logger does: under another name, then renamed."""

    def __init__(self, network: Network, chance: random.Random) -> None:
        self._network = network
        self._chance = chance
        self.written: dict[str, Counter[bytes]] = {station: Counter() for station in DROPPED}

    def write_up_to(self, count: int) -> None:
        """Writes files until each folder was given so many."""
        for station, written in self.written.items():
            folder = self._network.drop_folder(station)
            for index in range(written.total(), count):
                content = f"{station} {index} ".encode() + self._chance.randbytes(FILE_BYTES)
                temporary = folder / f".{index}.part"
                temporary.write_bytes(content)
                temporary.rename(folder / f"{index:08d}.bin")
                written[hashlib.sha256(content).digest()] += 1


def run_campaign(broker: str, seconds: float, seed: int, folder: Path) -> Outcome:
    """Runs one campaign in an empty folder."""
    chance = random.Random(seed)
    count = int(seconds * SIMULATED_PER_S)
    network = Network(folder, broker, count, SIMULATED_PER_S)
    kills: Counter[str] = Counter()
    try:
        network.start("broker")
        network.wait_until_listening("broker", network.mqtt_port)
        for name in network.names[1:]:
            network.start(name)
        dropper = Dropper(network, chance)
        _kill_at_random(network, chance, dropper, seconds, kills)
        dropper.write_up_to(int(seconds * DROPPED_PER_S))
        drain_s = _drain(network, count)
        expected = {SIMULATED: _simulated_digests(count), **dropper.written}
        return _hold_against(network, expected, broker, seconds, kills, drain_s)
    finally:
        network.close()


def _kill_at_random(
    network: Network, chance: random.Random, dropper: Dropper, seconds: float, kills: Counter[str]
) -> None:
    """One process after the other dies, at times two at once; each comes back after up to two seconds."""
    started = time.monotonic()
    next_kill_s = 2.0
    returns: dict[str, float] = {}
    while (now_s := time.monotonic() - started) < seconds:
        dropper.write_up_to(int(now_s * DROPPED_PER_S))
        for name in [name for name, at_s in returns.items() if at_s <= now_s]:
            del returns[name]
            network.start(name)
        if now_s >= next_kill_s:
            next_kill_s = now_s + chance.uniform(0.5, 4.0)
            name = chance.choice(network.names)
            if name not in returns and network.status(name) is None:
                network.kill(name)
                kills[name] += 1
                returns[name] = now_s + chance.uniform(0.1, 2.0)
        time.sleep(0.02)
    for name in returns:
        network.start(name)


def _drain(network: Network, simulated_count: int) -> float:
    """Returns when all is delivered and predicted, or the time for it is over; the seconds that it took."""
    started = time.monotonic()
    ended: set[str] = set()
    finishing: set[str] = set()
    while time.monotonic() - started < DRAIN_TIMEOUT_S:
        for station in (SIMULATED, *DROPPED):
            if station not in ended and network.status(station) == 0:
                ended.add(station)
        for station in DROPPED:
            if station not in finishing and not any(network.drop_folder(station).glob("*.bin")):
                # All files are taken; a last run of the agent ends by itself when all it has is delivered.
                assert network.stop(station) == 0, network.log(station)
                network.start(station, "--exit-when-delivered")
                finishing.add(station)
        if len(ended) == 1 + len(DROPPED) and _count(network, "prediction") >= simulated_count:
            break
        for name in network.names:
            if name not in ended and network.status(name):
                raise AssertionError(f"{name} ended with {network.status(name)}:\n{network.log(name)}")
        time.sleep(0.2)
    return time.monotonic() - started


def _simulated_digests(count: int) -> Counter[bytes]:
    instrument = SimulatedCl51(SEED)
    return Counter(hashlib.sha256(instrument.telegram(START_S + i * INTERVAL_S)).digest() for i in range(count))


def _count(network: Network, table: str) -> int:
    with closing(sqlite3.connect(network.folder / "server" / "fieldpost.db", timeout=30)) as connection:
        return int(connection.execute(f"select count(*) from {table}").fetchone()[0])


def _hold_against(
    network: Network,
    expected: dict[str, Counter[bytes]],
    broker: str,
    seconds: float,
    kills: Counter[str],
    drain_s: float,
) -> Outcome:
    held: dict[str, Counter[bytes]] = {station: Counter() for station in expected}
    identities: Counter[tuple[str, str, int]] = Counter()
    corrupt = 0
    with closing(sqlite3.connect(network.folder / "server" / "fieldpost.db", timeout=30)) as connection:
        rows = connection.execute(
            "select station.name, epoch.epoch, sequence, sha256, segment.name, segment_offset, stored_bytes "
            "from observation join epoch on epoch.id = epoch_id join station on station.id = epoch.station_id "
            "join segment on segment.id = segment_id"
        ).fetchall()
        pairs = connection.execute("select count(*), count(distinct observation_id) from prediction").fetchone()
    for station, epoch, sequence, sha256, segment, offset, length in rows:
        identities[station, epoch, sequence] += 1
        with (network.folder / "server" / "segments" / segment).open("rb") as file:
            file.seek(offset)
            content = decode_checked(pb.Observation.FromString(file.read(length)))
        corrupt += hashlib.sha256(content).digest() != sha256
        held[station][sha256] += 1
    simulated = expected[SIMULATED].total()
    return Outcome(
        broker=broker,
        seconds=seconds,
        kills=dict(kills),
        observations=sum(each.total() for each in expected.values()),
        lost=sum((expected[station] - held[station]).total() for station in expected),
        corrupt=corrupt,
        stored_twice=identities.total() - len(identities),
        captured_twice=sum((held[station] - expected[station]).total() for station in expected),
        unpredicted=simulated - pairs[1],
        predicted_twice=pairs[0] - pairs[1],
        drain_s=drain_s,
    )


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--broker", choices=["mosquitto", "amqtt", "both"], default="both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a campaign")
    options = parser.parse_args()
    is_clean = True
    for broker in ("mosquitto", "amqtt") if options.broker == "both" else (options.broker,):
        base = Path("benchmark-output")
        base.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base) as folder:
            outcome = run_campaign(broker, options.seconds, options.seed, Path(folder).absolute())
        is_clean = is_clean and outcome.is_clean
        print(json.dumps(asdict(outcome)) if options.json else outcome)
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
