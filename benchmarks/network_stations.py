"""A thousand simulated instruments at fifty stations in one process: files in, bundles out, receipts awaited.

Each station decides with the real rules of a station (edge_agent.session): what is sent when, how much may be under
way, when it is sent again. What is left out are its disk and a connection of its own: all stations share one, since
fifty agents would take the two cores that the server is measured on. Files are made and compressed beforehand, as
stations have processors of their own.
"""

from __future__ import annotations

import hashlib
import queue
import random
import resource
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.network_links import GrpcLink, Link, MqttLink
from edge_agent.session import Session, SessionLimits
from edge_agent.session_events import Appended, Connected, Event, MarkRefused, Published, TimePassed, receipt_event
from edge_agent.wire import bundle_bytes
from fieldpost.payload import encode_payload
from fieldpost.ranges import RangeSet
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2

SKIES = 16
TELEGRAMS_PER_SKY = 64
LOOK_EVERY_S = 0.25
"""How often stations look whether something is to be sent again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        files: How many.
        stations: They take turns in handing over a file.
        instruments: At each station; they take turns too.
        files_per_s: How fast files are handed over; 0 for all at once.
        epoch: Of every station's buffer.
        over: "mqtt" or "grpc".
        port: Of the broker, or of the server.
        timeout_s: Ends then, whatever is under way.
    """

    files: int
    stations: int
    instruments: int
    files_per_s: float
    epoch: str
    over: str
    port: int
    timeout_s: float

    def place(self, index: int) -> tuple[str, str, int]:
        """(station, instrument, sequence) of a file."""
        number, turn = index % self.stations, index // self.stations
        return station_name(number), instrument_name(turn % self.instruments), turn + 1

    def index(self, station: str, sequence: int) -> int:
        """Which file it is."""
        return (sequence - 1) * self.stations + int(station.removeprefix("station-"))

    def after_s(self, index: int) -> float:
        """When the file is handed over, from the start."""
        return index / self.files_per_s if self.files_per_s else 0.0


@dataclass(frozen=True, slots=True)
class StationsReport:
    """What the stations say at the end.

    Attributes:
        settled_s: From the start to the last receipt.
        refused_count: Files that the server did not take.
        sent_again_count: Observations that were published more than once.
        unsettled_count: Files without a receipt at the end.
        latest_s: How late a file was handed over at most, because this process was busy.
        cpu_s: Of this process, from the start.
    """

    settled_s: float
    refused_count: int
    sent_again_count: int
    unsettled_count: int
    latest_s: float
    cpu_s: float


def station_name(number: int) -> str:
    """Of the station with this number."""
    return f"station-{number:03d}"


def instrument_name(number: int) -> str:
    """Of the instrument with this number at its station."""
    return f"cl51-{number:02d}"


def run_stations(pipe: Connection, plan: Plan) -> None:
    """A process of its own: says that it is ready, waits for the start (in Unix seconds), and reports at the end."""
    stations = _Stations(plan)
    try:
        pipe.send(True)
        pipe.send(stations.run(pipe.recv()))
    finally:
        stations.close()


@dataclass(frozen=True, slots=True)
class _File:
    """A file as a station keeps it."""

    sha256: bytes
    content_bytes: int
    payload: bytes
    encoding: pb.PayloadEncoding.ValueType


def _make_files() -> list[_File]:
    files = []
    for seed in range(SKIES):
        instrument = SimulatedCl51(seed=100 + seed)
        for turn in range(TELEGRAMS_PER_SKY):
            content = instrument.telegram(1.75e9 + 86_400 * turn / TELEGRAMS_PER_SKY)
            payload, encoding = encode_payload(content)
            files.append(_File(hashlib.sha256(content).digest(), len(content), payload, encoding))
    return files


class _Station:
    """What one station has handed over and not settled."""

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self._link = link
        self.session = Session(SessionLimits(), 0, RangeSet())
        self.refused_count = self.sent_again_count = 0
        self._records: dict[int, tuple[bytes, bytes]] = {}
        self._sent: set[int] = set()
        self.tell(Connected())

    def hand_over(self, header: pb.ObservationHeader, payload: bytes) -> None:
        """A file came from an instrument."""
        self._records[header.sequence] = (header.SerializeToString(), payload)
        self.tell(Appended(header.sequence))

    def tell(self, event: Event) -> None:
        """Has the session decide."""
        actions = self.session.handle(event, time.monotonic(), random.random())
        self.refused_count += sum(isinstance(action, MarkRefused) for action in actions)

    def send(self) -> None:
        """Publishes what may be published now."""
        while (bundle := self.session.next_bundle(time.monotonic())) is not None:
            chosen: list[tuple[int, tuple[bytes, bytes]]] = []
            size = 0
            for sequence in range(bundle.first_sequence, bundle.last_sequence + 1):
                record = self._records[sequence]
                if chosen and size + len(record[1]) > bundle.max_bytes:
                    break
                chosen.append((sequence, record))
                size += len(record[1])
            self._link.publish(self.name, bundle_bytes(record for _, record in chosen))
            self.sent_again_count += sum(sequence in self._sent for sequence, _ in chosen)
            self._sent.update(sequence for sequence, _ in chosen)
            self.tell(Published(tuple((sequence, len(record[1])) for sequence, record in chosen)))


class _Stations:
    """All of them, in one thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._files = _make_files()
        self._receipts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        link = MqttLink if plan.over == "mqtt" else GrpcLink
        self._link: Link = link(plan.port, self._receipts)
        names = [station_name(number) for number in range(plan.stations)]
        self._stations = {name: _Station(name, self._link) for name in names}

    def run(self, start_unix_s: float) -> StationsReport:
        """Hands over every file at its time, and returns when each has its receipt."""
        plan = self._plan
        time.sleep(max(0.0, start_unix_s - time.time()))
        before = _cpu_s()
        handed_over, latest_s = 0, 0.0
        look_again_s = 0.0
        now_s = time.time() - start_unix_s
        while now_s < plan.timeout_s and (handed_over < plan.files or self._unsettled()):
            touched: dict[str, _Station] = {}
            while handed_over < plan.files and plan.after_s(handed_over) <= now_s:
                station = self._hand_over(handed_over)
                touched[station.name] = station
                latest_s = max(latest_s, now_s - plan.after_s(handed_over))
                handed_over += 1
            for station in touched.values():
                station.send()
            due_s = plan.after_s(handed_over) if handed_over < plan.files else now_s + LOOK_EVERY_S
            self._take_receipts(min(due_s, now_s + LOOK_EVERY_S) + start_unix_s)
            now_s = time.time() - start_unix_s
            if now_s >= look_again_s:
                look_again_s = now_s + LOOK_EVERY_S
                for station in self._stations.values():
                    station.tell(TimePassed())
                    station.send()
        every = list(self._stations.values())
        return StationsReport(
            now_s,
            sum(each.refused_count for each in every),
            sum(each.sent_again_count for each in every),
            self._unsettled(),
            latest_s if plan.files_per_s else 0.0,
            _cpu_s() - before,
        )

    def close(self) -> None:
        """Ends the connection."""
        self._link.close()

    def _unsettled(self) -> int:
        return sum(each.session.backlog_count for each in self._stations.values())

    def _hand_over(self, index: int) -> _Station:
        plan = self._plan
        name, instrument, sequence = plan.place(index)
        file = self._files[index * 7 % len(self._files)]
        header = pb.ObservationHeader(
            station=name,
            instrument=instrument,
            epoch=plan.epoch,
            sequence=sequence,
            sha256=file.sha256,
            payload_bytes=file.content_bytes,
            payload_encoding=file.encoding,
            payload_format="vaisala-cl",
        )
        header.measure_time.GetCurrentTime()
        header.capture_clock.wall_time.CopyFrom(header.measure_time)
        header.capture_clock.clock_sync = pb.CLOCK_SYNC_SYNCHRONISED
        station = self._stations[name]
        station.hand_over(header, file.payload)
        return station

    def _take_receipts(self, until_unix_s: float) -> None:
        """Waits for the first receipt, but not longer than this, and takes all that are there."""
        try:
            content = self._receipts.get(timeout=max(0.0, until_unix_s - time.time()))
            while True:
                receipt = receipt_pb2.Receipt.FromString(content)
                station = self._stations.get(receipt.station)
                if station is not None and receipt.epoch == self._plan.epoch:
                    station.tell(receipt_event(receipt))
                    station.send()
                content = self._receipts.get_nowait()
        except queue.Empty:
            return


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
