"""The production configuration of deploy/mosquitto, in a real Mosquitto with real certificates."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import queue
import socket
import ssl
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tls_support import Start, brokers, certificates, start_broker

from fieldpost.names import SHARDS, observations_topic
from server.mqtt.shards import ShardPart

UP, DOWN = "fieldpost/v1/up", "fieldpost/v1/down"

pytestmark = pytest.mark.mosquitto


class Peer:
    """One MQTT connection with a certificate, and what came by it."""

    def __init__(self, certificates: Path, port: int, name: str | None, *, client_id: str = "") -> None:
        self.messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.connected = threading.Event()
        self.subscribed = threading.Event()
        self.disconnect_count = 0
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or f"id-of-{name}", protocol=mqtt.MQTTv311
        )
        own = (
            {} if name is None else {"certfile": certificates / f"{name}.crt", "keyfile": certificates / f"{name}.key"}
        )
        self.client.tls_set(certificates / "stations-ca.crt", **{key: str(path) for key, path in own.items()})
        self.client.on_connect = lambda *_: self.connected.set()
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = lambda client, data, message: self.messages.put((message.topic, message.payload))
        self.client.connect("localhost", port)
        self.client.loop_start()

    def _on_disconnect(self, *_: object) -> None:
        self.disconnect_count += 1

    def __enter__(self) -> Peer:
        assert self.connected.wait(10), "the broker let nobody in"
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, *topics: str) -> None:
        for topic in topics:
            self.subscribed.clear()
            self.client.subscribe(topic, qos=1)
            assert self.subscribed.wait(10)

    def publish(self, topic: str, payload: bytes) -> None:
        self.client.publish(topic, payload, qos=1).wait_for_publish(10)

    def until(self, payload: bytes) -> list[tuple[str, bytes]]:
        """All messages up to the one with this payload. A broker keeps the order of one publisher and one QoS."""
        seen = []
        while not seen or seen[-1][1] != payload:
            seen.append(self.messages.get(timeout=10))
        return seen


def test_a_station_cannot_publish_under_anothers_name(certificates: Path, start_broker: Start) -> None:
    port = start_broker()
    with Peer(certificates, port, "ingest") as ingest, Peer(certificates, port, "station-a") as station:
        ingest.subscribe(f"{UP}/#")
        for topic in (
            f"{UP}/station-b/observations/3",
            f"{UP}/station-b/observations",
            f"{UP}/observations/3",
            UP,
            f"{DOWN}/station-a/receipts",
            "elsewhere",
        ):
            station.publish(topic, b"forged")
        own = observations_topic("station-a")
        station.publish(own, b"own")
        assert ingest.until(b"own") == [(own, b"own")]


def test_a_server_that_takes_a_part_of_the_shards_hears_the_stations_of_that_part(
    certificates: Path, start_broker: Start
) -> None:
    port = start_broker()
    parts = [ShardPart(0, 2), ShardPart(1, 2)]
    part = next(part for part in parts if observations_topic("station-a")[-1] in SHARDS[part.index :: 2])
    with Peer(certificates, port, "ingest") as ingest, Peer(certificates, port, "station-a") as station:
        ingest.subscribe(*part.topics())
        for shard in SHARDS[1 - part.index :: 2]:
            station.publish(f"{UP}/station-a/observations/{shard}", b"of the other part")
        station.publish(observations_topic("station-a"), b"own")
        assert ingest.until(b"own") == [(observations_topic("station-a"), b"own")]


def test_a_station_cannot_read_what_is_meant_for_another(certificates: Path, start_broker: Start) -> None:
    port = start_broker()
    with (
        Peer(certificates, port, "ingest") as ingest,
        Peer(certificates, port, "station-a") as curious,
        Peer(certificates, port, "station-b") as other,
    ):
        curious.subscribe(f"{DOWN}/station-b/#", f"{DOWN}/#", f"{UP}/#", "#", f"{DOWN}/station-a/#")
        other.subscribe(f"{DOWN}/station-b/#")
        ingest.publish(f"{DOWN}/station-b/receipts", b"for b")
        other.publish(f"{UP}/station-b/observations", b"of b")
        assert other.until(b"for b") == [(f"{DOWN}/station-b/receipts", b"for b")]
        ingest.publish(f"{DOWN}/station-a/receipts", b"for a")
        assert set(curious.until(b"for a")) == {(f"{DOWN}/station-a/receipts", b"for a")}


def test_a_station_that_takes_anothers_client_id_does_not_throw_it_off(certificates: Path, start_broker: Start) -> None:
    port = start_broker()
    with Peer(certificates, port, "station-a") as station, Peer(certificates, port, "ingest") as ingest:
        station.subscribe(f"{DOWN}/station-a/#")
        with Peer(certificates, port, "station-b", client_id="station-a"):
            ingest.publish(f"{DOWN}/station-a/receipts", b"still here")
            assert station.until(b"still here")
        assert station.disconnect_count == 0


@pytest.mark.parametrize("name", [None, "forged"])
def test_without_a_certificate_of_the_stations_authority_nobody_gets_in(
    certificates: Path,
    start_broker: Start,
    name: str | None,
) -> None:
    port = start_broker()
    assert not is_let_in(certificates, port, name)
    assert is_let_in(certificates, port, "station-a")


def test_a_revoked_station_is_kept_out_and_the_others_are_not(certificates: Path, start_broker: Start) -> None:
    port = start_broker(with_revocation=True)
    assert not is_let_in(certificates, port, "station-lost")
    assert is_let_in(certificates, port, "station-a")


def is_let_in(certificates: Path, port: int, name: str | None) -> bool:
    """Whether the broker accepts a CONNECT, written out in bytes: TLS 1.3 refuses a client only at its first read."""
    context = ssl.create_default_context(cafile=str(certificates / "stations-ca.crt"))
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
    connect = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x"
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(connect)
            return connection.recv(4) == b"\x20\x02\x00\x00"
    except (ssl.SSLError, ConnectionError):
        return False
