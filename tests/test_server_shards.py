"""Several server processes share the stations: each takes a fixed part of the topics, one PostgreSQL has everything."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from server_support import make_bundle
from sqlalchemy import select

from demo.plan import PlannedInstrument, PlannedStation, write_stations_file
from demo.processes import Processes, free_port
from fieldpost.errors import InvalidRequestError
from fieldpost.names import SHARDS, find_shard, observations_topic, parse_up_topic, receipts_topic
from fieldpost.ranges import RangeSet
from fieldpost.v1 import receipt_pb2
from server.mqtt.shards import ShardPart, parse_shard_part
from server.storage.database import open_engine
from server.storage.tables import epochs, observations, stations

ROUNDS = 60
IN_FLIGHT = 3
TIMEOUT_S = 60.0


def test_the_parts_take_each_shard_once_and_what_has_no_shard_once() -> None:
    for count in range(1, 17):
        topics = Counter(topic for index in range(count) for topic in ShardPart(index, count).topics())
        levels = ["+"] if count == 1 else list(SHARDS)
        once = [f"fieldpost/v1/up/+/observations/{level}" for level in levels]
        once += ["fieldpost/v1/up/+/observations", "fieldpost/v1/up/+/status"]
        assert topics == Counter(once) + Counter({"fieldpost/v1/up/+/results": count})


@pytest.mark.parametrize("text", ["", "1", "2/2", "0/0", "0/17", "-1/2", "0/2/3", "a/b", "0 / 2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected mqtt_shards as INDEX/COUNT"):
        parse_shard_part(text)


def test_a_station_keeps_its_shard_for_ever_and_stations_spread_over_all() -> None:
    assert [find_shard(name) for name in ("lindenberg", "payerne", "0-20000-0-06610")] == ["1", "5", "9"]
    stations_by_shard = Counter(find_shard(f"station-{i}") for i in range(1600))
    assert sorted(stations_by_shard) == list(SHARDS)
    assert max(stations_by_shard.values()) < 1.2 * min(stations_by_shard.values())
    assert parse_up_topic(observations_topic("payerne")) == ("payerne", "observations")


class Sender:
    """A station: publishes bundles in order, each again until a receipt promises it, over a broker of its own."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.epoch = f"{random.Random(name).getrandbits(128):032x}"
        self._held = RangeSet()
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv311)
        self._client.on_connect = lambda *_: self._client.subscribe(receipts_topic(name), 1)
        self._client.on_message = self._on_receipt
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _on_receipt(self, _client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        receipt = receipt_pb2.Receipt.FromString(message.payload)
        with self._changed:
            for each in receipt.held_ranges:
                self._held.add(each.first_sequence, each.last_sequence)
            self._changed.notify_all()

    def _run(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while (first := self.missing()) is not None and time.monotonic() < deadline:
            for sequence in range(first, min(first + IN_FLIGHT, ROUNDS + 1)):
                bundle = make_bundle(sequence, station=self.name, epoch=self.epoch)
                self._client.publish(observations_topic(self.name), bundle.SerializeToString(), qos=1)
            with self._changed:
                self._changed.wait_for(lambda first=first: self._held.first_missing(first) >= first + IN_FLIGHT, 0.5)  # type: ignore[misc]

    def missing(self) -> int | None:
        """The first sequence without a receipt; None where there is none."""
        missing = self._held.first_missing(1)
        return missing if missing <= ROUNDS else None

    def wait(self) -> None:
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()


class Servers:
    """Two real server processes without workers, on one PostgreSQL and two brokers."""

    def __init__(self, folder: Path, database_url: str, broker_ports: list[int], names: list[str]) -> None:
        self._folder = folder
        self._database_url = database_url
        self._broker_ports = broker_ports
        self._ports = [free_port() for _ in range(2)]
        write_stations_file(
            folder / "stations.toml", [PlannedStation(name, [PlannedInstrument("cl51", "cl51", {})]) for name in names]
        )
        self.processes = Processes(folder / "logs")

    def start(self, index: int) -> None:
        command = ["run", "--data-folder", str(self._folder / f"data-{index}"), "--workers", "0"]
        command += ["--grpc-address", f"127.0.0.1:{self._ports[index]}"]
        command += ["--stations-file", str(self._folder / "stations.toml")]
        for port in self._broker_ports:
            command += ["--mqtt-url", f"mqtt://127.0.0.1:{port}"]
        settings = {
            "FIELDPOST_DATABASE_URL": self._database_url,
            "FIELDPOST_SEGMENTS_FOLDER": str(self._folder / "segments"),
            "FIELDPOST_MQTT_SHARDS": f"{index}/2",
        }
        self.processes.start(f"server-{index}", [sys.executable, "-m", "server", *command], settings)
        self.processes.wait_for_port(f"server-{index}", self._ports[index])


@pytest.fixture
def servers(
    tmp_path: Path, postgres_url: str, start_mosquitto: Callable[[int], Any]
) -> Iterator[tuple[Servers, list[int]]]:
    ports = [free_port(), free_port()]
    for port in ports:
        start_mosquitto(port)
    servers = Servers(tmp_path, postgres_url, ports, NAMES)
    yield servers, ports
    servers.processes.stop_all()


NAMES = [f"station-{i}" for i in range(6)]


@pytest.mark.mosquitto
def test_a_killed_server_of_two_on_one_database_comes_back_and_everything_is_stored_once(
    servers: tuple[Servers, list[int]], postgres_url: str
) -> None:
    running, ports = servers
    assert {int(find_shard(name), 16) % 2 for name in NAMES} == {0, 1}
    for index in range(2):
        running.start(index)
    senders = [Sender(name, ports[i % 2]) for i, name in enumerate(NAMES)]
    killed = [each for each in senders if int(find_shard(each.name), 16) % 2 == 1]
    spared = [each for each in senders if each not in killed]
    wait_until(lambda: all((each.missing() or ROUNDS) > 5 for each in killed))
    os.kill(running.processes.process_id("server-1"), signal.SIGKILL)
    running.processes.stop("server-1")
    wait_until(lambda: all(each.missing() is None for each in spared))  # the other goes on alone
    assert all(each.missing() is not None for each in killed), "nobody else takes its stations"
    running.start(1)
    for each in senders:
        each.wait()
    assert [each.missing() for each in senders] == [None] * len(senders)
    engine = open_engine(postgres_url)
    query = select(stations.c.name, observations.c.sequence).join(epochs, epochs.c.station_id == stations.c.id)
    with engine.connect() as connection:
        stored = Counter(map(tuple, connection.execute(query.join(observations))))
    engine.dispose()
    assert stored == Counter((name, sequence) for name in NAMES for sequence in range(1, ROUNDS + 1))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.01)
