"""How the simulated stations reach the server: one MQTT connection, or one gRPC stream, for all of them.

Knows nothing of what is sent when; receipts go into a queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import grpc
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fieldpost.names import DOWN, observations_topic
from fieldpost.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from fieldpost.v1 import observation_pb2 as pb


class Link(Protocol):
    """How bundles leave; receipts come into the queue that it was made with."""

    def publish(self, station: str, bundle: bytes) -> None:
        """Sends a serialized Bundle."""

    def close(self) -> None:
        """Ends it."""


class MqttLink:
    """One MQTT connection for all stations, QoS 1."""

    def __init__(self, port: int, receipts: queue.SimpleQueue[bytes]) -> None:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, "benchmark-stations", protocol=mqtt.MQTTv311)
        client.max_inflight_messages_set(1000)
        subscribed = threading.Event()
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = lambda _client, _data, message: receipts.put(bytes(message.payload))
        client.connect("127.0.0.1", port)
        client.loop_start()
        client.subscribe(f"{DOWN}/+/receipts", 1)
        self._client = client
        if not subscribed.wait(10):
            raise TimeoutError("expected the broker to answer a subscription, but it did not in 10 s")

    def publish(self, station: str, bundle: bytes) -> None:
        """Sends a serialized Bundle."""
        self._client.publish(observations_topic(station), bundle, qos=1)

    def close(self) -> None:
        """Ends it."""
        self._client.disconnect()
        self._client.loop_stop()


class GrpcLink:
    """One stream for all stations."""

    def __init__(self, port: int, receipts: queue.SimpleQueue[bytes]) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._bundles: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        responses = ingest_service_pb2_grpc.IngestStub(self._channel).Send(self._requests())
        self._reader = threading.Thread(target=self._read, args=(responses, receipts), daemon=True)
        self._reader.start()

    def publish(self, station: str, bundle: bytes) -> None:
        """Sends a serialized Bundle."""
        self._bundles.put(bundle)

    def close(self) -> None:
        """Ends it."""
        self._bundles.put(None)
        self._reader.join(10)
        self._channel.close()

    def _requests(self) -> Iterator[ingest_service_pb2.SendRequest]:
        while (bundle := self._bundles.get()) is not None:
            yield ingest_service_pb2.SendRequest(bundle=pb.Bundle.FromString(bundle))

    def _read(self, responses: Any, receipts: queue.SimpleQueue[bytes]) -> None:
        for response in responses:
            receipts.put(response.receipt.SerializeToString())
