"""The watch: what begins and what ends is told once, and a look costs what is new."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from server_support import EPOCH, START_NANOS, make_observation, open_store
from sqlalchemy import delete, insert, update
from whole_support import until

from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import station_pb2
from flows.memory_file import read_memory, write_memory
from flows.watch import watch
from flows.watching import memory as kept
from flows.watching.looks import InstrumentSeen, Rules, StationMemory, StationSeen, judge
from flows.watching.network import see_network
from flows.watching.parameters import WatchParams
from flows.watching.report import to_rows
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.queries.gaps import EpochLook
from server.queries.network import UnarchivedDay, list_unarchived_days
from server.storage.store import Store
from server.storage.tables import bags, observations, stations

RULES = Rules(silent_s=900.0, missed_intervals=20, growing_looks=3)
WELL = StationSeen("magurele", age_s=30.0, is_online=True)


def events(looks: Sequence[StationSeen]) -> list[list[str]]:
    """What is told at each of these looks, one after the other; the memory goes through its file."""
    memory, told = StationMemory(), []
    for seen in looks:
        memory, news = judge(seen, memory, RULES)
        memory = kept.from_json(json.loads(json.dumps(kept.to_json(kept.Memory({seen.name: memory}))))).stations[
            seen.name
        ]
        told.append([each.event.removeprefix("fieldpost.") for each in news])
    return told


# --- stations ---


def test_a_station_that_falls_silent_is_told_once_and_once_when_it_is_back() -> None:
    gone = [replace(WELL, age_s=age_s) for age_s in (800.0, 901.0, 5000.0)]
    assert events([WELL, *gone, WELL, WELL]) == [[], [], ["station.silent"], [], ["station.back"], []]


def test_a_station_that_was_never_there_is_missed_by_nobody() -> None:
    assert events([StationSeen("delft", age_s=None, is_online=False)]) == [[]]


def test_a_station_that_starts_anew_is_not_silent_and_its_goodbye_told_once_more_is_not_its_return() -> None:
    goodbye = StationSeen("magurele", age_s=10.0, is_online=False)
    assert events([WELL, goodbye, WELL]) == [[], [], []]
    heard_again = goodbye  # the broker keeps the last word, and tells it at each of the server's starts
    assert events([replace(goodbye, age_s=1000.0), heard_again, WELL]) == [["station.silent"], [], ["station.back"]]


@given(st.lists(st.tuples(st.floats(0, 3000), st.booleans()), max_size=20))
def test_silent_and_back_take_turns(course: list[tuple[float, bool]]) -> None:
    told = [
        event for each in events([StationSeen("m", age_s, is_online) for age_s, is_online in course]) for event in each
    ]
    assert told == [("station.silent", "station.back")[number % 2] for number in range(len(told))]


# --- instruments ---


def with_instrument(age_s: float, *, interval_s: float | None = 60.0, backlog_count: int = 0) -> StationSeen:
    return replace(WELL, backlog_count=backlog_count, instruments=(InstrumentSeen("cl31", interval_s, age_s),))


def test_an_instrument_that_measures_nothing_for_many_of_its_intervals_is_told_of() -> None:
    looks = [with_instrument(age_s) for age_s in (60.0, 1199.0, 1201.0, 9000.0, 50.0)]
    assert events(looks) == [[], [], ["station.silent"], [], ["station.back"]]


def test_an_instrument_is_not_silent_while_its_newest_may_be_on_its_way_or_its_station_is_silent() -> None:
    assert events([with_instrument(9000.0, backlog_count=5)]) == [[]]
    assert events([replace(with_instrument(9000.0), age_s=2000.0)]) == [["station.silent"]]
    assert events([with_instrument(1e6, interval_s=None)]) == [[]], "nobody knows yet what it usually does"
    assert events([with_instrument(500.0, interval_s=1.0)]) == [[]], "a pause of some minutes is none of an instrument"


# --- backlog ---


def test_a_backlog_that_grows_look_after_look_is_told_once_until_it_shrinks() -> None:
    course = [10, 200, 300, 400, 500, 450, 600, 700, 800]
    told = events([replace(WELL, backlog_count=each) for each in course])
    assert [number for number, each in enumerate(told) if each == ["backlog.growing"]] == [3, 8]


def test_a_small_backlog_that_grows_is_nothing() -> None:
    assert events([replace(WELL, backlog_count=each) for each in range(12)]) == [[]] * 12


# --- memory and table ---


def test_what_is_kept_is_read_back_and_what_cannot_be_read_is_seen_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = kept.Memory(
        {"magurele": StationMemory(True, ("cl31",), (1, 2), True)},
        {("magurele", EPOCH): EpochLook(40, RangeSet([(3, 7), (9, 9)]))},
        is_archive_behind=True,
    )
    path = tmp_path / "flows" / "watch.json"
    assert kept.from_json(read_memory(path)) == kept.Memory()
    write_memory(path, kept.to_json(memory))
    assert kept.from_json(read_memory(path)) == memory
    path.write_text('{"stations": {"magurele": {"is_')
    assert kept.from_json(read_memory(path)) == kept.Memory()
    assert "cannot be read" in caplog.text
    assert kept.from_json({"stations": {"magurele": {"of another version": 1}}}).stations["magurele"] == StationMemory()


def test_stations_with_something_wrong_stand_first() -> None:
    seen = [replace(WELL, name="a"), replace(WELL, name="b", gap_count=3), replace(WELL, name="c", age_s=7200.0)]
    memories = {"a": StationMemory(), "b": StationMemory(), "c": StationMemory(is_silent=True)}
    rows = to_rows(seen, memories)
    assert [(row["station"], row["online"], row["last seen"], row["gaps"]) for row in rows] == [
        ("b", "yes", "30 s ago", 3),
        ("c", "silent", "2 h ago", 0),
        ("a", "yes", "30 s ago", 0),
    ]


# --- looking ---


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = fill(open_store(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def either_store(tmp_path: Path, database_url: str) -> Iterator[Store]:
    """Once on SQLite, once on PostgreSQL."""
    opened = fill(open_store(tmp_path, database_url=database_url))
    yield opened
    opened.close()


def fill(opened: Store) -> Store:
    desk = Ingest(opened, payload_bytes_max=2**25, on_stored=lambda: None)
    desk.submit(pb.Bundle(observations=[make_observation(each) for each in range(1, 21)])).result(10)
    desk.close()
    return opened


def say(store: Store, age_s: float, **status: object) -> None:
    content = station_pb2.StationStatus(station="lindenberg", epoch=EPOCH, last_sequence=20, **status)  # type: ignore[arg-type]
    values = {"status": content.SerializeToString(), "status_unix_nanos": time.time_ns() - round(age_s * 1e9)}
    store.write(lambda connection: connection.execute(update(stations).values(**values))).result(10)


def test_a_look_finds_stations_paces_gaps_and_days_without_a_bag(either_store: Store) -> None:
    store = either_store
    say(store, 30.0, is_online=True, alarms=["no clock"], disk_left_days=12.5)
    gone = observations.c.sequence.in_([5, 6])
    store.write(lambda connection: connection.execute(delete(observations).where(gone))).result(10)
    day = datetime.fromtimestamp(START_NANOS / 1e9, UTC).date()
    now_unix_nanos = START_NANOS + 5 * 86_400 * 10**9
    seen = see_network(store, {}, archive_days=3, now_unix_nanos=now_unix_nanos)
    (station,) = seen.stations
    assert (station.gap_count, station.alarms, station.disk_left_days) == (2, ("no clock",), 12.5)
    (instrument,) = station.instruments
    assert (instrument.name, instrument.interval_s) == ("cl51", 15.0)
    assert instrument.age_s == pytest.approx(5 * 86_400 - 20 * 15)
    assert seen.unarchived == [UnarchivedDay("lindenberg", "cl51", day)]
    again = see_network(store, seen.epochs, archive_days=3, now_unix_nanos=now_unix_nanos)
    assert again.gaps == {"lindenberg": {EPOCH: RangeSet([(5, 6)])}}
    assert see_network(store, {}, archive_days=5, now_unix_nanos=now_unix_nanos).unarchived == [], "it has time yet"


def test_a_day_with_a_bag_is_not_behind(store: Store) -> None:
    day = date(2025, 6, 15)
    row = {"instrument_id": 1, "day": day.isoformat(), "version": 1, "path": "a", "manifest_sha256": "b"}
    row |= {"observation_count": 20, "prediction_count": 0, "archive_unix_nanos": START_NANOS, "damage": ""}
    with store.read() as connection:
        assert len(list_unarchived_days(connection, day - timedelta(days=3), day)) == 1
    store.write(lambda connection: connection.execute(insert(bags).values(**row))).result(10)
    with store.read() as connection:
        assert list_unarchived_days(connection, day - timedelta(days=3), day) == []


def test_a_program_that_is_still_sending_lacks_nothing(store: Store) -> None:
    """Of a buffer that no station speaks of, only what lacks at two looks in a row is a gap."""
    gone = observations.c.sequence == 5
    store.write(lambda connection: connection.execute(delete(observations).where(gone))).result(10)
    before = {("lindenberg", EPOCH): EpochLook(4, RangeSet())}
    seen = see_network(store, before, archive_days=3, now_unix_nanos=START_NANOS)
    assert seen.gaps == {"lindenberg": {EPOCH: RangeSet()}}
    seen = see_network(store, seen.epochs, archive_days=3, now_unix_nanos=START_NANOS)
    assert seen.gaps == {"lindenberg": {EPOCH: RangeSet([(5, 5)])}}


# --- the flow ---


def test_the_flow_tells_prefect_once(store: Store, tmp_path: Path, prefect_api: str) -> None:
    name = f"s{uuid4().hex[:8]}"  # events of other tests lie at the same Prefect server
    registered = [RegisteredStation(name=name, instruments=[RegisteredInstrument(name="i", instrument_model="cl31")])]
    store.write(lambda connection: register(connection, registered)).result(10)
    say(store, 2000.0, is_online=True)
    settings_file = tmp_path / "server.toml"
    settings_file.write_text(f'data_folder = "{tmp_path}"\n')
    params = WatchParams(settings_file=settings_file)
    watch(params)
    watch(params)
    say(store, 3.0, is_online=True, backlog_count=20)
    watch(params)
    assert told_of(name, 3) == ["fieldpost.gap.found", "fieldpost.station.back", "fieldpost.station.silent"], "once"


def told_of(station: str, count: int) -> list[str]:
    """The names of the events about a station, once so many have reached Prefect's database."""
    wanted = {"filter": {"resource": {"id": [f"fieldpost.station.{station}"]}}}
    with get_client(sync_client=True) as client:

        def found() -> list[str]:
            return [each["event"] for each in client._client.post("/events/filter", json=wanted).json()["events"]]

        until(lambda: len(found()) >= count, 20)
        return sorted(found())
