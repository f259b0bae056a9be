"""Gaps: what is missing is found, what comes by itself is left alone, and a station's own answers fill the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_support import EPOCH, START_NANOS, make_observation, open_store
from sqlalchemy import delete, func, insert, select, update

from edge_agent.commands import CommandBook, StationFacts
from fieldpost.errors import NotAllowedError, OfflineError
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2, receipt_pb2, station_pb2
from fieldpost.v1 import observation_pb2 as pb
from flows.gap_filling import told
from flows.gap_filling.filling import FilledEpoch, Filler, Patience
from flows.gap_filling.finding import StationGaps, find_gaps
from flows.gap_filling.gaps import Missing, choose_gap, common, portions, without
from flows.gap_filling.report import to_error, to_markdown, to_rows
from server.ingest.core import Ingest
from server.queries import gaps as queries
from server.queries.gaps import EpochLook, list_epochs, look_at, read_ranges, write_lost
from server.storage.store import Store
from server.storage.tables import epochs, observations, stations

NUMBERS = st.integers(1, 60)
SETS = st.sets(NUMBERS)
OLD_EPOCH = "f" * 32
QUICK = Patience(whole_s=5.0, quiet_s=0.02, look_s=0.005)


def numbers(ranges: RangeSet) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


# --- deciding ---


@given(SETS, SETS)
def test_what_is_in_both_and_what_is_only_in_the_first(left: set[int], right: set[int]) -> None:
    assert numbers(common(RangeSet.of(left), RangeSet.of(right))) == left & right
    assert numbers(without(RangeSet.of(left), RangeSet.of(right))) == left - right


@given(SETS, st.integers(1, 9), st.integers(1, 4))
def test_portions_are_bounded_and_together_the_whole(wanted: set[int], sequences_max: int, ranges_max: int) -> None:
    found = list(portions(RangeSet.of(wanted), sequences_max, ranges_max))
    assert [number for portion in found for number in sorted(numbers(portion))] == sorted(wanted)
    assert all(0 < len(each) <= sequences_max and len(list(each)) <= ranges_max for each in found)


@given(SETS, st.booleans(), st.integers(0, 9), st.integers(0, 9), SETS)
def test_a_gap_is_missing_and_neither_on_its_way_nor_refused(
    missing: set[int], is_current: bool, backlog_count: int, refused_count: int, young: set[int]
) -> None:
    told_of = Missing(RangeSet.of(missing), is_current, backlog_count, refused_count)
    gap = numbers(choose_gap(told_of, lambda first, last: bool(young & set(range(first, last + 1)))))
    assert gap <= missing
    if len(missing) <= backlog_count + refused_count:
        assert not gap, "the station still has them to deliver, or they were refused"
    elif is_current and not backlog_count:
        assert gap == missing, "whoever has nothing to deliver will not deliver it by itself"
    else:
        assert not gap & young


# --- finding ---


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def ingest(store: Store, sent: list[pb.Observation]) -> receipt_pb2.Receipt:
    desk = Ingest(store, payload_bytes_max=2**25, on_stored=lambda: None)
    try:
        return desk.submit(pb.Bundle(observations=sent)).result(10)
    finally:
        desk.close()


def say(store: Store, **status: object) -> None:
    """The station's last word."""
    content = station_pb2.StationStatus(station="lindenberg", **{"epoch": EPOCH, "is_online": True, **status})  # type: ignore[arg-type]
    values = {"status": content.SerializeToString(), "status_unix_nanos": START_NANOS}
    store.write(lambda connection: connection.execute(update(stations).values(**values))).result(10)


def forget(store: Store, *sequences: int) -> None:
    """As a database that was restored from a backup."""
    wanted = observations.c.sequence.in_(sequences)
    store.write(lambda connection: connection.execute(delete(observations).where(wanted))).result(10)


def find(store: Store, *, grace_s: float = 0.0, now_unix_nanos: int = START_NANOS * 2) -> list[StationGaps]:
    return find_gaps(store, station="", grace_s=grace_s, now_unix_nanos=now_unix_nanos)


def counted(store: Store) -> int:
    with store.read() as connection:
        return connection.scalar(select(func.count()).select_from(observations)) or 0


def as_receipt(sequences: set[int]) -> bytes:
    ranges = [
        receipt_pb2.SequenceRange(first_sequence=first, last_sequence=last) for first, last in RangeSet.of(sequences)
    ]
    return receipt_pb2.Receipt(held_ranges=ranges).SerializeToString()


@pytest.fixture(scope="module")
def bare_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store(tmp_path_factory.mktemp("bare"))
    yield opened
    opened.close()


@settings(max_examples=60)
@given(SETS, SETS, SETS, st.integers(0, 70), st.integers(0, 70))
def test_missing_is_what_is_expected_less_held_pruned_and_lost(
    bare_store: Store, held: set[int], pruned: set[int], lost: set[int], told_of: int, through: int
) -> None:
    """Whether it is looked for at once, or in two looks of which the second goes on where the first ended."""
    row = {"instrument_id": 1, "measure_unix_nanos": 1, "capture_unix_nanos": 1, "payload_bytes": 1, "sha256": b""}
    row |= {"segment_id": 1, "segment_offset": 0, "stored_bytes": 1, "is_live": False}
    status = station_pb2.StationStatus(epoch=EPOCH, last_sequence=told_of).SerializeToString()
    with bare_store._engine.connect() as connection, connection.begin() as transaction:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.execute(update(stations).values(status=status))
        ranges = {"pruned_ranges": as_receipt(pruned), "lost_ranges": as_receipt(lost)}
        connection.execute(insert(epochs).values(id=1, station_id=1, epoch=EPOCH, **ranges))
        if held:
            connection.execute(insert(observations), [{**row, "epoch_id": 1, "sequence": each} for each in held])
        (facts,) = list_epochs(connection)
        look = look_at(connection, facts)
        expected = set(range(1, max(told_of, *held, *pruned, 0) + 1)) - held - pruned - lost
        assert numbers(look.missing) == expected
        first = look_at(connection, facts, sequences_max=through)
        assert look_at(connection, facts, first) == look
        transaction.rollback()


def test_the_search_cuts_until_what_is_left_is_small(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "COUNTED_TOGETHER", 16)
    monkeypatch.setattr(queries, "READ_TOGETHER", 3)
    gone = {1, 2, 17, 33, 40, 41, 64, 80, 99}
    store = open_store(tmp_path, database_url=database_url)
    try:
        ingest(store, [make_observation(each) for each in sorted(set(range(1, 101)) - gone)])
        with store.read() as connection:
            (facts,) = list_epochs(connection, "lindenberg")
            look = look_at(connection, facts)
        assert (numbers(look.missing), look.through) == (gone, 100)
        store.write(lambda connection: write_lost(connection, facts, RangeSet([(33, 33), (40, 41)]))).result(10)
        with store.read() as connection:
            (facts,) = list_epochs(connection)
            assert numbers(look_at(connection, facts, look).missing) == gone - {33, 40, 41}
    finally:
        store.close()


@pytest.fixture
def database_rows(store: Store) -> Callable[[set[int]], None]:
    def write(held: set[int]) -> None:
        ingest(store, [make_observation(each) for each in sorted(held)])

    return write


def test_a_station_of_which_nothing_is_held_lacks_all_that_it_told_of(store: Store) -> None:
    say(store, last_sequence=30)
    ((gaps),) = find(store)
    assert [(each.facts.epoch_id, numbers(each.gap)) for each in gaps.epochs] == [(None, set(range(1, 31)))]
    say(store, last_sequence=30, backlog_count=30)
    ((gaps),) = find(store)
    assert [(len(each.missing), len(each.gap)) for each in gaps.epochs] == [(30, 0)], "it will come by itself"


def test_what_may_be_on_its_way_is_left_alone_for_the_time_of_grace(store: Store) -> None:
    ingest(store, [make_observation(each) for each in (1, 4, 7)])
    say(store, last_sequence=9, backlog_count=3)  # of six, three are not on their way: nobody can tell which
    captured = START_NANOS + 7 * 15_000_000_000
    ((late),) = find(store, grace_s=100, now_unix_nanos=captured + 10**9 * 99)
    assert numbers(late.epochs[0].gap) == {2, 3}, "behind it something was captured long enough ago"
    ((later),) = find(store, grace_s=100, now_unix_nanos=captured + 10**9 * 101)
    assert numbers(later.epochs[0].gap) == {2, 3, 5, 6}, "what the station told of last is never old enough"


def test_a_database_that_was_restored_is_looked_at_anew(
    store: Store, database_rows: Callable[[set[int]], None]
) -> None:
    database_rows({1, 2, 4})
    with store.read() as connection:
        (facts,) = list_epochs(connection)
        assert look_at(connection, facts, EpochLook(9000, RangeSet())) == EpochLook(4, RangeSet([(3, 3)]))


# --- filling ---


@dataclass
class StationHere:
    """A station's own answers over what it has, delivered through the real ingest; no network between them."""

    store: Store
    has: set[int]
    refused: set[int] = field(default_factory=set)
    epoch: str = EPOCH
    silent_times: int = 0
    """So many times what is asked for does not come."""
    asked: list[set[int]] = field(default_factory=list)
    book: CommandBook = field(default_factory=CommandBook)

    def ask(self, station: str, command: command_pb2.Command) -> command_pb2.CommandResult:
        command.command_id = str(len(self.asked))
        known = StationFacts(self.epoch, RangeSet.of(self.has), RangeSet(), {}, RangeSet.of(self.refused))
        decision = self.book.decide(command, known)
        assert decision.result is not None
        self.asked.append(numbers(RangeSet((r.first_sequence, r.last_sequence) for r in command.replay.ranges)))
        sent = numbers(RangeSet(decision.replay_ranges)) - self.refused
        if len(self.asked) > self.silent_times and sent:
            ingest(self.store, [make_observation(each) for each in sorted(sent)])
        return decision.result


def fill(store: Store, ask: Callable[..., command_pb2.CommandResult], **options: bool) -> FilledEpoch:
    ((station),) = find(store)
    (epoch,) = Filler(store, ask, QUICK, **options).fill(station)
    return epoch


@pytest.fixture
def gapped(store: Store) -> Store:
    """Twenty observations, of which 5 to 8, and 20, are gone from the database."""
    ingest(store, [make_observation(each) for each in range(1, 21)])
    say(store, last_sequence=20)
    forget(store, 5, 6, 7, 8, 20)
    return store


def test_what_the_station_still_has_comes_back(gapped: Store) -> None:
    station = StationHere(gapped, set(range(1, 21)))
    filled = fill(gapped, station.ask)
    assert (filled.came_count, len(filled.lost), len(filled.still), filled.why) == (5, 0, 0, "")
    assert (counted(gapped), station.asked, find(gapped)) == (20, [{5, 6, 7, 8, 20}], [])


def test_what_the_station_no_longer_has_is_lost_and_not_asked_for_again(gapped: Store) -> None:
    filled = fill(gapped, StationHere(gapped, set(range(7, 20))).ask)
    assert (filled.came_count, numbers(filled.lost), filled.is_gap) == (2, {5, 6, 20}, False)
    assert "nobody has 5 to 6, 20 (3 observations) any more" in to_markdown([filled])
    assert find(gapped) == []
    ingest(gapped, [make_observation(5)])
    with gapped.read() as connection:
        (facts,) = list_epochs(connection)
        assert not look_at(connection, facts).missing
        assert counted(gapped) == 18, "what is found after all is stored, whatever was said of it"


def test_a_station_that_has_none_of_it_is_believed(gapped: Store) -> None:
    filled = fill(gapped, StationHere(gapped, {1, 2}).ask)
    assert (numbers(filled.lost), filled.still) == ({5, 6, 7, 8, 20}, RangeSet())


def test_an_older_station_that_does_not_name_what_it_lacks_is_never_taken_to_have_lost_it(gapped: Store) -> None:
    station = StationHere(gapped, {7, 8})

    def ask(name: str, command: command_pb2.Command) -> command_pb2.CommandResult:
        result = station.ask(name, command)
        result.ClearField("missing_ranges")
        return result

    filled = fill(gapped, ask)
    assert (filled.came_count, len(filled.lost), numbers(filled.still)) == (2, 0, {5, 6, 20})
    assert filled.is_gap
    assert "it has none of" in filled.why


def test_what_the_server_refuses_is_no_gap(gapped: Store) -> None:
    filled = fill(gapped, StationHere(gapped, set(range(1, 21)), refused={6, 7}).ask)
    assert (filled.came_count, numbers(filled.refused), filled.is_gap) == (3, {6, 7}, False)
    say(gapped, last_sequence=20, rejected_count=2)
    assert [len(each.gap) for each in find(gapped)[0].epochs] == [0]


def test_a_station_is_asked_twice_and_then_left_alone(gapped: Store) -> None:
    station = StationHere(gapped, set(range(1, 21)), silent_times=1)
    assert fill(gapped, station.ask).came_count == 5
    forget(gapped, 5)
    mute = StationHere(gapped, set(range(1, 21)), silent_times=9)
    filled = fill(gapped, mute.ask)
    assert (mute.asked, filled.is_gap, filled.why) == ([{5}, {5}], True, "asked for, and it did not come")


@pytest.mark.parametrize("error", [OfflineError("no answer"), NotAllowedError("only operators may")])
def test_a_station_that_cannot_be_asked_is_named(gapped: Store, error: OfflineError | NotAllowedError) -> None:
    def ask(name: str, command: command_pb2.Command) -> command_pb2.CommandResult:
        raise error

    filled = fill(gapped, ask)
    assert (filled.why, len(filled.still), filled.is_gap) == (str(error), 5, True)
    assert (to_error([filled]) is None) == isinstance(error, OfflineError), "one passes, the other does not"


def test_a_station_that_is_offline_is_not_asked(gapped: Store) -> None:
    say(gapped, last_sequence=20, is_online=False)
    station = StationHere(gapped, set(range(1, 21)))
    filled = fill(gapped, station.ask)
    assert (station.asked, filled.why, filled.is_gap) == ([], "the station is offline", True)


def test_what_an_old_buffer_had_is_given_up_only_where_an_operator_says_so(gapped: Store) -> None:
    say(gapped, epoch=OLD_EPOCH, last_sequence=0)
    station = StationHere(gapped, set(range(1, 21)))
    filled = fill(gapped, station.ask)
    assert (station.asked, numbers(filled.still), filled.why) == (
        [],
        {5, 6, 7, 8},  # of 20, which was the last, nothing here tells
        "no station has this buffer any more",
    )
    only_looked = fill(gapped, station.ask, give_up_old_epochs=True, is_dry_run=True)
    assert (only_looked.why, numbers(only_looked.still)) == ("only looked", {5, 6, 7, 8})
    assert numbers(fill(gapped, station.ask, give_up_old_epochs=True).lost) == {5, 6, 7, 8}
    assert (find(gapped), station.asked) == ([], [])


def test_a_dry_run_asks_nobody(gapped: Store) -> None:
    station = StationHere(gapped, set(range(1, 21)))
    filled = fill(gapped, station.ask, is_dry_run=True)
    assert (station.asked, to_rows([filled])[0]["still missing"], filled.why) == ([], 5, "only looked")


def test_what_was_found_lost_before_a_run_was_ended_stays_found(gapped: Store) -> None:
    station = StationHere(gapped, {7, 8}, silent_times=1)

    class Ended(BaseException):
        pass

    def ask(name: str, command: command_pb2.Command) -> command_pb2.CommandResult:
        if station.asked:
            raise Ended
        return station.ask(name, command)

    with pytest.raises(Ended):
        fill(gapped, ask)
    with gapped.read() as connection:
        lost = read_ranges(connection.scalar(select(epochs.c.lost_ranges)))
    assert numbers(lost) == {5, 6, 20}
    filled = fill(gapped, station.ask)
    assert (station.asked, filled.came_count, counted(gapped)) == ([{5, 6, 7, 8, 20}, {7, 8}], 2, 17)


def test_lost_ranges_of_a_buffer_of_which_nothing_is_held_are_recorded(store: Store) -> None:
    say(store, last_sequence=4)
    filled = fill(store, StationHere(store, {3}).ask)
    assert (filled.came_count, numbers(filled.lost), find(store)) == (1, {1, 2, 4}, [])
    store.write(lambda connection: write_lost(connection, filled.found.facts, RangeSet([(9, 9)]))).result(10)
    with store.read() as connection:
        assert numbers(read_ranges(connection.scalar(select(epochs.c.lost_ranges)))) == {1, 2, 4, 9}


# --- telling ---


@given(st.dictionaries(st.sampled_from("ab"), SETS), st.dictionaries(st.sampled_from("ab"), SETS))
def test_a_gap_is_told_once_and_again_only_after_it_was_filled(
    first: dict[str, set[int]], second: dict[str, set[int]]
) -> None:
    gaps, later = ({epoch: RangeSet.of(each) for epoch, each in some.items()} for some in (first, second))
    known = told.from_json(told.to_json({"magurele": told.remember(gaps, gaps, {})})).get("magurele", {})
    assert not told.is_news(gaps, known)
    assert told.is_news(later, known) == any(second[epoch] - first.get(epoch, set()) for epoch in second)
    after = told.remember(later, later, known)
    assert {epoch: numbers(each) for epoch, each in after.items()} == {e: s for e, s in second.items() if s}
