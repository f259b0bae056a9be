"""The gateway on real brokers: Mosquitto, and the embedded one."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from server_support import EPOCH, make_bundle, make_observation, open_store
from small_disk import small_disk
from sqlalchemy import func, select

from fieldpost.broker_url import parse_broker_url
from fieldpost.errors import InvalidRequestError, TryAgainError
from fieldpost.names import observations_topic, receipts_topic, status_topic
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2, station_pb2
from server.ingest.core import Ingest
from server.mqtt.broker import EmbeddedBroker
from server.mqtt.gateway import MESSAGES_MAX, Gateway
from server.mqtt.refused import RefusedMessages
from server.mqtt.shards import ALL_SHARDS
from server.storage.store import Store
from server.storage.tables import observations, stations

TIMEOUT_S = 15.0
MESSAGE_BYTES_MAX = 1 << 20


class Station:
    """A station as the broker sees it: publishes, and hears its receipts."""

    def __init__(self, port: int, name: str = "lindenberg") -> None:
        self.name = name
        self._receipts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        subscribed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv311)
        self.client.on_message = lambda _client, _data, message: self._receipts.put(bytes(message.payload))
        self.client.on_connect = lambda *_: self.client.subscribe(receipts_topic(name), 1)
        self.client.on_subscribe = lambda _client, _data, mid, *_: subscribed.put(mid)
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        subscribed.get(timeout=TIMEOUT_S)

    def publish(self, content: bytes, topic: str | None = None) -> None:
        self.client.publish(topic or observations_topic(self.name), content, qos=1)

    def receipt(self) -> receipt_pb2.Receipt:
        return receipt_pb2.Receipt.FromString(self._receipts.get(timeout=TIMEOUT_S))

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(params=["mosquitto", "embedded"])
def broker_port(request: pytest.FixtureRequest, free_port: int) -> Iterator[int]:
    if request.param == "mosquitto":
        request.getfixturevalue("start_mosquitto")(free_port)
        yield free_port
    else:
        broker = EmbeddedBroker("127.0.0.1", free_port)
        yield free_port
        broker.close()


class Server:
    """Store, ingest and gateway."""

    def __init__(self, folder: Path, port: int, refused: RefusedMessages | None = None) -> None:
        self.folder = folder
        self.store: Store = open_store(folder)
        self.ingest = Ingest(self.store, payload_bytes_max=1 << 20, on_stored=lambda: None)
        self.refused = refused or RefusedMessages(folder / "refused")
        url = parse_broker_url(f"mqtt://127.0.0.1:{port}")
        self.gateway = Gateway(
            url, "test-server", self.ingest, self.store, self.refused, message_bytes_max=MESSAGE_BYTES_MAX
        )
        assert self.gateway.is_connected.wait(TIMEOUT_S)

    def count(self) -> int:
        with self.store.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(observations)) or 0)

    def close(self) -> None:
        self.gateway.close()
        self.ingest.close()
        self.store.close()


@pytest.fixture
def server(tmp_path: Path, broker_port: int) -> Iterator[Server]:
    server = Server(tmp_path, broker_port)
    yield server
    server.close()


@pytest.fixture
def station(server: Server, broker_port: int) -> Iterator[Station]:
    station = Station(broker_port)
    yield station
    station.close()


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.02)


def test_a_bundle_gets_its_receipt_after_its_commit(server: Server, station: Station) -> None:
    station.publish(make_bundle(1, 2, 3).SerializeToString())
    receipt = station.receipt()
    assert [(each.first_sequence, each.last_sequence) for each in receipt.held_ranges] == [(1, 3)]
    assert server.count() == 3


def test_every_one_of_many_bundles_gets_its_receipt(server: Server, station: Station) -> None:
    for i in range(200):
        station.publish(make_bundle(2 * i + 1, 2 * i + 2).SerializeToString())
    firsts = {station.receipt().held_ranges[0].first_sequence for _ in range(200)}
    assert firsts == {2 * i + 1 for i in range(200)}
    assert server.count() == 400


def test_random_bytes_are_kept_with_their_reason_logged_once_and_disturb_nothing(
    server: Server, station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    noise = b"\xff\x00random bytes\x9c" * 10
    for _ in range(3):
        station.publish(noise)
    station.publish(make_bundle(1).SerializeToString())
    assert station.receipt().held_ranges[0].last_sequence == 1
    assert server.refused.count == 3
    (kept,) = (server.folder / "refused").glob("*.bin")
    assert kept.read_bytes() == noise
    facts = json.loads(kept.with_suffix(".json").read_text())
    assert "expected a fieldpost.v1 message" in facts["reason"]
    assert [record.message for record in caplog.records].count("message refused") == 1


def test_observations_of_another_station_are_refused_with_a_receipt_to_the_sender(
    server: Server, station: Station
) -> None:
    bundle = pb.Bundle(observations=[make_observation(1, station="payerne")])
    station.publish(bundle.SerializeToString())
    receipt = station.receipt()
    assert (receipt.station, receipt.epoch) == ("lindenberg", EPOCH)
    assert [each.reason for each in receipt.rejections] == [receipt_pb2.REJECTION_REASON_INVALID]
    assert "lindenberg" in receipt.rejections[0].detail
    assert server.count() == 0


def test_a_wrong_checksum_is_named_in_the_receipt_and_the_rest_of_the_bundle_is_held(
    server: Server, station: Station
) -> None:
    bundle = make_bundle(1, 2)
    bundle.observations[0].header.sha256 = bytes(32)
    station.publish(bundle.SerializeToString())
    receipt = station.receipt()
    assert [(each.sequence, each.reason) for each in receipt.rejections] == [
        (1, receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH)
    ]
    assert [(each.first_sequence, each.last_sequence) for each in receipt.held_ranges] == [(2, 2)]


def test_a_message_above_the_limit_is_refused_and_disturbs_nothing(server: Server, station: Station) -> None:
    station.publish(bytes(MESSAGE_BYTES_MAX + 1))
    station.publish(make_bundle(1).SerializeToString())
    assert station.receipt().held_ranges[0].last_sequence == 1
    wait_until(lambda: server.refused.count == 1)
    (note,) = (server.folder / "refused").glob("*.json")
    assert str(MESSAGE_BYTES_MAX) in json.loads(note.read_text())["reason"]


def test_a_station_from_before_there_were_shards_is_served(server: Server, station: Station) -> None:
    station.publish(make_bundle(1).SerializeToString(), "fieldpost/v1/up/lindenberg/observations")
    assert station.receipt().held_ranges[0].last_sequence == 1


@pytest.mark.parametrize("shard", ["g", "12"])
def test_a_topic_of_an_impossible_shard_is_refused(server: Server, station: Station, shard: str) -> None:
    station.publish(make_bundle(1).SerializeToString(), f"fieldpost/v1/up/lindenberg/observations/{shard}")
    wait_until(lambda: server.refused.count == 1)
    assert server.count() == 0


def test_a_topic_of_a_station_with_an_impossible_name_is_refused(server: Server, station: Station) -> None:
    station.publish(make_bundle(1).SerializeToString(), "fieldpost/v1/up/NOT A NAME/observations/0")
    wait_until(lambda: server.refused.count == 1)
    assert server.count() == 0


def test_an_empty_bundle_is_refused_and_disturbs_nothing(server: Server, station: Station) -> None:
    station.publish(pb.Bundle().SerializeToString())
    station.publish(make_bundle(1).SerializeToString())
    assert station.receipt().held_ranges[0].last_sequence == 1
    wait_until(lambda: server.refused.count == 1)


def test_a_status_is_kept_with_its_station(server: Server, station: Station) -> None:
    status = station_pb2.StationStatus(station="lindenberg", is_online=True, last_sequence=7, backlog_count=2)
    station.publish(status.SerializeToString(), status_topic("lindenberg"))

    def kept() -> station_pb2.StationStatus | None:
        with server.store.read() as connection:
            content = connection.scalar(select(stations.c.status))
        return station_pb2.StationStatus.FromString(content) if content else None

    wait_until(lambda: kept() is not None)
    assert kept() == status


def test_a_broker_that_comes_back_is_served_again(
    tmp_path: Path, start_mosquitto: Callable[[int], Any], free_port: int
) -> None:
    broker = start_mosquitto(free_port)
    server = Server(tmp_path, free_port)
    broker.kill()
    broker.wait()
    wait_until(lambda: not server.gateway.is_connected.is_set())
    start_mosquitto(free_port)
    assert server.gateway.is_connected.wait(TIMEOUT_S)
    station = Station(free_port)
    station.publish(make_bundle(1).SerializeToString())
    assert station.receipt().held_ranges[0].last_sequence == 1
    station.close()
    server.close()


def test_the_embedded_broker_stays_on_the_loopback() -> None:
    with pytest.raises(InvalidRequestError, match="loopback"):
        EmbeddedBroker("0.0.0.0", 1883)


def test_a_taken_port_is_said_to_be_taken(free_port: int) -> None:
    broker = EmbeddedBroker("127.0.0.1", free_port)
    with pytest.raises(TryAgainError, match=str(free_port)):
        EmbeddedBroker("127.0.0.1", free_port)
    broker.close()


@pytest.mark.parametrize("url", ["", "127.0.0.1", "http://a", "mqtt://", "mqtt://a:b", "mqtt://a/b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected a broker URL mqtt://"):
        parse_broker_url(url)


def test_a_disk_without_room_for_refused_messages_disturbs_nothing(
    tmp_path: Path, start_mosquitto: Callable[[int], Any], free_port: int
) -> None:
    start_mosquitto(free_port)
    with small_disk(tmp_path / "small", 64 * 1024) as small:
        server = Server(tmp_path, free_port, RefusedMessages(small / "refused"))
        station = Station(free_port)
        station.publish(bytes(200_000))  # no message: refused by the gateway
        mixed = pb.Bundle(observations=[make_observation(1, os.urandom(200_000)), make_observation(2, epoch="e" * 32)])
        station.publish(mixed.SerializeToString())  # no identity: refused by the ingest
        station.publish(make_bundle(1).SerializeToString())
        assert station.receipt().held_ranges[0].last_sequence == 1
        assert server.refused.count == 2
        station.close()
        server.close()


def test_a_flood_of_statuses_waits_in_the_broker_and_not_in_memory(
    tmp_path: Path, start_mosquitto: Callable[[int], Any], free_port: int
) -> None:
    start_mosquitto(free_port)
    server = Server(tmp_path, free_port)
    station = Station(free_port)
    may_go = threading.Event()
    blocker = server.store.write(lambda _: may_go.wait(TIMEOUT_S))
    status = station_pb2.StationStatus(station="lindenberg", is_online=True).SerializeToString()
    for _ in range(4 * MESSAGES_MAX):
        station.client.publish(status_topic("lindenberg"), status, qos=1)
    wait_until(lambda: server.store._jobs.qsize() >= 10)
    time.sleep(0.3)  # more would come now, if nothing kept them
    assert server.store._jobs.qsize() <= MESSAGES_MAX
    may_go.set()
    blocker.result(TIMEOUT_S)
    station.publish(make_bundle(1).SerializeToString())
    assert station.receipt().held_ranges[0].last_sequence == 1
    station.close()
    server.close()


@pytest.mark.parametrize("is_granted", [True, False])
def test_a_gateway_is_connected_once_the_broker_has_granted_its_topics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_granted: bool
) -> None:
    store = open_store(tmp_path)
    ingest = Ingest(store, payload_bytes_max=1 << 20, on_stored=lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as broker:
        broker.settimeout(TIMEOUT_S)
        url = parse_broker_url(f"mqtt://127.0.0.1:{broker.getsockname()[1]}")
        refused = RefusedMessages(tmp_path / "refused")
        gateway = Gateway(url, "test-server", ingest, store, refused, message_bytes_max=MESSAGE_BYTES_MAX)
        with broker.accept()[0] as connection:
            connection.settimeout(TIMEOUT_S)
            connection.recv(4096)  # CONNECT
            connection.sendall(b"\x20\x02\x00\x00")
            subscribe = connection.recv(4096)
            assert subscribe[0] == 0x82
            assert not gateway.is_connected.wait(0.1)
            codes = bytes([1 if is_granted else 0x80] * len(ALL_SHARDS.topics()))
            connection.sendall(bytes([0x90, 2 + len(codes)]) + subscribe[2:4] + codes)
            if is_granted:
                assert gateway.is_connected.wait(TIMEOUT_S)
            else:
                wait_until(lambda: "broker refuses topics" in caplog.text)
                assert not gateway.is_connected.is_set()
            gateway.close()
    ingest.close()
    store.close()
