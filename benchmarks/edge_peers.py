"""What stands around a station in its benchmark: an instrument on TCP, a server that answers, and a look at memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from fieldpost.names import UP, parse_up_topic, receipts_topic
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2

_CONTEXT = multiprocessing.get_context("spawn")


class TelegramServer:
    """An instrument's serial server: sends telegrams to whoever connects at a steady rate, then stays silent."""

    def __init__(self, telegrams: Sequence[bytes], rate_per_s: float) -> None:
        self._telegrams = telegrams
        self._interval_s = 1 / rate_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._client: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        self._client, _ = self._listener.accept()
        begun_s = time.monotonic()
        for index, telegram in enumerate(self._telegrams):
            time.sleep(max(0.0, begun_s + index * self._interval_s - time.monotonic()))
            self._client.sendall(telegram)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        if self._client is not None:
            self._client.close()


class Receiver:
    """A process that answers every bundle with a receipt, as a server does, and stores nothing."""

    def __init__(self, port: int) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_receive, args=(theirs, port), daemon=True)
        self._process.start()
        self._pipe.recv()  # subscribed
        self._times: list[tuple[float, int]] = []
        self._came = threading.Condition()
        self._children_before = _children_cpu_s()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                entry = self._pipe.recv()
                with self._came:
                    self._times.append(entry)
                    self._came.notify_all()

    def wait_for(self, count: int, timeout_s: float = 300.0) -> None:
        """Until so many observations have come."""
        with self._came:
            if not self._came.wait_for(lambda: sum(came for _, came in self._times) >= count, timeout_s):
                raise SystemExit(f"expected {count} observations, but only {sum(c for _, c in self._times)} came")

    def rate_per_s(self) -> float:
        """Observations per second between the first bundle and the last."""
        took_s = self._times[-1][0] - self._times[0][0]
        return sum(came for _, came in self._times[1:]) / took_s

    def children_cpu_s(self) -> float:
        """CPU of the processes that have ended since this one began."""
        return _children_cpu_s() - self._children_before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _receive(pipe: Connection, port: int) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    client.max_inflight_messages_set(1000)
    client.connect("127.0.0.1", port)

    def on_message(_client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        station, _ = parse_up_topic(message.topic) or ("", "")
        observations = pb.Bundle.FromString(bytes(message.payload)).observations
        receipt = receipt_pb2.Receipt(station=station, epoch=observations[0].header.epoch)
        first, last = observations[0].header.sequence, observations[-1].header.sequence
        receipt.held_ranges.add(first_sequence=first, last_sequence=last)
        client.publish(receipts_topic(station), receipt.SerializeToString(), qos=1)
        pipe.send((time.perf_counter(), len(observations)))

    client.on_message = on_message
    client.on_subscribe = lambda *_: pipe.send(True)
    client.subscribe(f"{UP}/+/observations/+", 1)
    client.loop_forever()


def memory_mb(process_id: int) -> dict[str, float]:
    """Memory of a process and its children, in MiB, as the kernel counts it.

    Returns:
        rss_mb, peak_mb and private_mb of the process; children_rss_mb; with_children_mb, what is shared counted once.
    """
    status = Path(f"/proc/{process_id}/status").read_text()
    children = psutil.Process(process_id).children(recursive=True)
    shares = [_pss_kib(pid) for pid in (process_id, *(child.pid for child in children))]
    return {
        "rss_mb": _kib(status, "VmRSS") / 1024,
        "peak_mb": _kib(status, "VmHWM") / 1024,
        "private_mb": _kib(status, "RssAnon") / 1024,
        "children_rss_mb": sum(child.memory_info().rss for child in children) / 2**20,
        "with_children_mb": sum(shares) / 1024,
    }


def _pss_kib(process_id: int) -> float:
    return _kib(Path(f"/proc/{process_id}/smaps_rollup").read_text(), "Pss")


def _kib(text: str, key: str) -> float:
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return float(match[1]) if match else float("nan")
