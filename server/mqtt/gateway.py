"""Takes bundles from one MQTT broker to the ingest, and receipts back.

paho's callbacks only put events into a queue; one thread answers them. The order for each message is: commit, receipt,
and only then the acknowledgement to the broker. A receipt that gets lost costs a resend, never an observation.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from google.protobuf.message import DecodeError
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import Connection, update

from fieldpost.broker_url import BrokerUrl
from fieldpost.errors import OverloadedError, RejectedError
from fieldpost.names import parse_up_topic, receipts_topic
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2, receipt_pb2, station_pb2
from fieldpost.v1 import observation_pb2 as pb
from server.ingest.admission import CheckedBundle, reject, write_receipt
from server.ingest.bounded import BoundedRoom
from server.ingest.core import Ingest
from server.mqtt.refused import RefusedMessages
from server.mqtt.shards import ALL_SHARDS, ShardPart
from server.storage.store import Store
from server.storage.tables import stations

logger = logging.getLogger(__name__)

MESSAGES_MAX = 64
MESSAGES_BYTES_MAX = 128 * 1024 * 1024
"""Messages between broker and commit; beyond them the broker keeps its own."""
KEEPALIVE_S = 30


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for mqtts brokers; None for the system's authorities, or for no certificate of our own."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True)
class _Connected:
    generation: int


@dataclass(frozen=True, slots=True)
class _Subscribed:
    generation: int
    refused_count: int


@dataclass(frozen=True, slots=True)
class _Arrived:
    generation: int
    message_id: int
    topic: str
    content: bytes


@dataclass(frozen=True, slots=True)
class _Answered:
    arrived: _Arrived
    station: str
    receipt: receipt_pb2.Receipt | None


class Gateway:
    """One connection to one broker, kept up for as long as the server runs."""

    def __init__(
        self,
        url: BrokerUrl,
        client_id: str,
        ingest: Ingest,
        store: Store,
        refused: RefusedMessages,
        *,
        message_bytes_max: int,
        shards: ShardPart = ALL_SHARDS,
        tls: TlsFiles | None = None,
        on_result: Callable[[str, command_pb2.CommandResult], None] | None = None,
    ) -> None:
        self._message_bytes_max = message_bytes_max
        self._topics = shards.topics()
        self._on_result = on_result
        self._ingest = ingest
        self._store = store
        self._refused = refused
        self.url = url
        self._events: queue.SimpleQueue[_Connected | _Subscribed | _Arrived | _Answered | None] = queue.SimpleQueue()
        self._room = BoundedRoom(MESSAGES_MAX, MESSAGES_BYTES_MAX)
        self._generation = 0
        self._unacknowledged: OrderedDict[tuple[int, int], bool] = OrderedDict()
        self.is_connected = threading.Event()
        self._client = self._make_client(client_id, tls or TlsFiles())
        self._thread = threading.Thread(target=self._run, name=f"gateway {url.host}", daemon=True)
        self._thread.start()
        self._client.connect_async(url.host, url.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def publish(self, topic: str, message: bytes) -> None:
        """Publishes what may get lost."""
        self._client.publish(topic, message, qos=1)

    def close(self) -> None:
        """Disconnects; what was not acknowledged will be sent again by its station."""
        self._client.disconnect()
        self._room.open()  # paho's thread may wait in a callback
        self._client.loop_stop()
        self._events.put(None)
        self._thread.join()

    def _make_client(self, client_id: str, tls: TlsFiles) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, clean_session=True, protocol=mqtt.MQTTv311, manual_ack=True
        )
        client.reconnect_delay_set(min_delay=1, max_delay=15)
        client.max_inflight_messages_set(1000)
        if self.url.is_tls:
            client.tls_set(tls.ca_file, tls.cert_file, tls.key_file)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    # paho's thread: nothing but events.

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            logger.error("broker refused", extra={"broker": str(self.url), "reason": str(reason)})
            return
        self._generation += 1
        self._events.put(_Connected(self._generation))

    def _on_subscribe(self, _client: Any, _userdata: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        self._events.put(_Subscribed(self._generation, sum(each.is_failure for each in reasons)))

    def _on_disconnect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.is_connected.clear()
        logger.warning("broker disconnected", extra={"broker": str(self.url), "reason": str(reason)})

    def _on_message(self, _client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        self._room.enter(len(message.payload))
        self._events.put(_Arrived(self._generation, message.mid, message.topic, bytes(message.payload)))

    # The gateway's thread.

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, _Connected):
                self._subscribe()
            elif isinstance(event, _Subscribed):
                self._note_subscribed(event)
            elif isinstance(event, _Arrived):
                self._take(event)
            else:
                self._answer(event)

    def _subscribe(self) -> None:
        self._unacknowledged.clear()  # message ids of an earlier connection mean nothing now
        self._client.subscribe([(topic, 1) for topic in self._topics])

    def _note_subscribed(self, subscribed: _Subscribed) -> None:
        if subscribed.generation != self._generation or not self._client.is_connected():
            return
        if subscribed.refused_count:  # nothing would ever come under it, and nobody would know why
            facts = {"broker": str(self.url), "topic_count": subscribed.refused_count}
            logger.error("broker refuses topics: see its access list", extra=facts)
        if subscribed.refused_count == len(self._topics):
            return
        self.is_connected.set()
        logger.info("broker connected", extra={"broker": str(self.url)})

    def _take(self, arrived: _Arrived) -> None:
        self._unacknowledged[arrived.generation, arrived.message_id] = False
        station, kind = parse_up_topic(arrived.topic) or ("", "")
        reason = ""
        try:
            if len(arrived.content) > self._message_bytes_max:
                reason = f"expected at most {self._message_bytes_max} bytes, but got {len(arrived.content)}"
            elif kind == "observations":
                self._take_bundle(arrived, station, pb.Bundle.FromString(arrived.content))
                return
            elif kind == "status":
                self._take_status(arrived, station, station_pb2.StationStatus.FromString(arrived.content))
                return
            elif kind == "results" and self._on_result is not None:
                self._on_result(station, command_pb2.CommandResult.FromString(arrived.content))
            elif not kind:
                reason = "expected the topic of a station with a valid name"
        except DecodeError as error:
            reason = f"expected a fieldpost.v1 message, but got: {error}"
        if reason:
            self._refused.keep(arrived.topic, arrived.content, reason)
        self._answer(_Answered(arrived, station, None))

    def _take_bundle(self, arrived: _Arrived, station: str, bundle: pb.Bundle) -> None:
        foreign = next((each.header for each in bundle.observations if each.header.station != station), None)
        if foreign is not None:
            self._refused.keep(arrived.topic, arrived.content, f"expected observations of {station}, but got others")
            self._answer(_Answered(arrived, station, _reject_foreign(station, bundle)))
            return
        while True:
            try:
                self._ingest.submit(bundle).add_done_callback(lambda done: self._finish(arrived, station, done))
                return
            except OverloadedError:
                logger.warning("ingest is full", extra={"broker": str(self.url)})

    def _finish(self, arrived: _Arrived, station: str, done: Future[receipt_pb2.Receipt]) -> None:
        """Runs in the store's writer: passes the outcome on."""
        error = done.exception()
        if error is None:
            self._events.put(_Answered(arrived, station, done.result()))
            return
        if isinstance(error, RejectedError):
            self._refused.keep(arrived.topic, arrived.content, str(error))
        else:
            logger.error("bundle not stored", extra={"station": station, "error": str(error)})
        self._events.put(_Answered(arrived, station, None))  # no receipt: the station sends it again

    def _take_status(self, arrived: _Arrived, station: str, status: station_pb2.StationStatus) -> None:
        content, now = status.SerializeToString(), time.time_ns()

        def write(connection: Connection) -> None:
            row = update(stations).where(stations.c.name == station)
            connection.execute(row.values(status=content, status_unix_nanos=now))

        # Answered once it is written: so no more statuses than messages wait for a database that is slow.
        written = self._store.write(write)
        written.add_done_callback(lambda _: self._events.put(_Answered(arrived, station, None)))
        if not status.is_online:
            logger.info("station offline", extra={"station": station})

    def _answer(self, answered: _Answered) -> None:
        arrived = answered.arrived
        if answered.receipt is not None and arrived.generation == self._generation and self.is_connected.is_set():
            self._client.publish(receipts_topic(answered.station), answered.receipt.SerializeToString(), qos=1)
        key = (arrived.generation, arrived.message_id)
        if key in self._unacknowledged:
            self._unacknowledged[key] = True
        # MQTT wants acknowledgements in the order of arrival.
        while self._unacknowledged:
            (generation, message_id), is_answered = next(iter(self._unacknowledged.items()))
            if not is_answered:
                break
            del self._unacknowledged[generation, message_id]
            self._client.ack(message_id, 1)
        self._room.leave(len(arrived.content))


def _reject_foreign(station: str, bundle: pb.Bundle) -> receipt_pb2.Receipt:
    """The receipt for a bundle that came under another station's topic."""
    detail = f"expected observations of station {station}, under whose topic they came"
    rejections = [reject(each.header, receipt_pb2.REJECTION_REASON_INVALID, detail) for each in bundle.observations]
    epoch = bundle.observations[0].header.epoch
    return write_receipt(CheckedBundle(station, epoch, [], []), RangeSet(), rejections, 0)
