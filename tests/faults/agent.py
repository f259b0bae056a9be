"""Whole agents under faults: the process with the library preloaded, and a server that holds what they send.

Knows no fault of its own: whoever starts an agent says which.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
from faults.library import environment

from fieldpost.names import receipts_topic
from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2


@dataclass(frozen=True, slots=True)
class Held:
    """One observation at the server."""

    header: pb.ObservationHeader
    content: bytes


class Server:
    """Holds what all stations send, by station and sequence, and answers each bundle with a receipt.

    Under an identity that it holds with other bytes it refuses, as the real one does.
    """

    def __init__(self, port: int) -> None:
        self.held: dict[str, dict[int, Held]] = defaultdict(dict)
        self.changed = threading.Condition()
        self._ready = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="server")
        self._client.on_connect = lambda client, *_: client.subscribe("fieldpost/v1/up/+/observations/+", 1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float = 15) -> None:
        with self.changed:
            assert self.changed.wait_for(is_so, timeout_s), "the server waited in vain"

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        with self.changed:
            bundle = pb.Bundle.FromString(message.payload)
            first = bundle.observations[0].header
            receipt = receipt_pb2.Receipt(station=first.station, epoch=first.epoch)
            for observation in bundle.observations:
                self._take(observation, receipt)
            client.publish(receipts_topic(first.station), receipt.SerializeToString(), qos=1)
            self.changed.notify_all()

    def _take(self, observation: pb.Observation, receipt: receipt_pb2.Receipt) -> None:
        header, content = observation.header, decode_checked(observation)
        held = self.held[header.station].setdefault(header.sequence, Held(header, content))
        if held.content == content:
            receipt.held_ranges.add(first_sequence=header.sequence, last_sequence=header.sequence)
        else:
            receipt.rejections.add(
                sequence=header.sequence, reason=receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT, detail="other bytes"
            )


class Agent:
    """One agent's folder, settings and process."""

    def __init__(self, folder: Path, station: str, port: int, instruments: str, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.station = station
        self.buffer_folder = folder / "buffer"
        self._log = folder / "agent.log"
        self._config = folder / "station.toml"
        values = {
            "station": station,
            "broker_urls": [f"mqtt://127.0.0.1:{port}"],
            "buffer_folder": str(self.buffer_folder),
            "resend_after_s": 0.5,
            "quick_look": "off",
        } | settings
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self._config.write_text("\n".join(lines) + "\n" + instruments)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, library: Path, *flags: str, **faults: object) -> subprocess.Popen[bytes]:
        """Starts the process; faults as in faults.c."""
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(self._config), *flags]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(library, **faults))
        return self.process

    def finish(self, library: Path, timeout_s: float = 40) -> None:
        """Runs without any fault until everything is delivered."""
        status = self.start(library, "--exit-when-delivered").wait(timeout_s)
        assert status == 0, f"ended with status {status}:\n{self.log()[-3000:]}"

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
