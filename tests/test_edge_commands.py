"""What a station is asked, and what it answers: decided once, refused with a reason, and it stays within reach."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_agent.commands import REMEMBERED_COMMANDS, CommandBook, Decision, StationFacts
from edge_agent.remote_settings import REMOTE_KEYS, check_change, overrides_from_json, with_overrides
from edge_agent.settings import AgentSettings
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2
from fieldpost.v1.receipt_pb2 import SequenceRange

EPOCH = "e" * 32


def facts(*held: tuple[int, int], in_time: tuple[tuple[int, int], ...] = ()) -> StationFacts:
    return StationFacts(EPOCH, RangeSet(held), RangeSet(in_time), {})


def replay(*ranges: tuple[int, int], epoch: str = EPOCH, command_id: str = "1") -> command_pb2.Command:
    command = command_pb2.Command(command_id=command_id)
    command.replay.epoch = epoch
    for first, last in ranges:
        command.replay.ranges.add(first_sequence=first, last_sequence=last)
    return command


def as_pairs(ranges: Iterable[SequenceRange]) -> list[tuple[int, int]]:
    return [(each.first_sequence, each.last_sequence) for each in ranges]


def half_a_time() -> command_pb2.Command:
    command = replay((1, 2))
    command.replay.start_time.seconds = 1
    return command


def change(key: str, value: str) -> command_pb2.Command:
    return command_pb2.Command(command_id="1", set_setting=command_pb2.SetSettingCommand(key=key, value=value))


def detail_of(decision: Decision) -> str:
    assert decision.result is not None
    assert not decision.result.is_accepted
    return decision.result.detail


def test_a_replay_is_cut_to_what_the_buffer_still_has() -> None:
    decision = CommandBook().decide(replay((1, 10), (30, 40)), facts((5, 8), (35, 35)))
    assert decision.result is not None
    assert decision.result.is_accepted
    assert decision.replay_ranges == ((5, 8), (35, 35))


def test_a_replay_names_what_the_buffer_no_longer_has_and_what_the_server_refused() -> None:
    known = StationFacts(EPOCH, RangeSet([(5, 8), (35, 35)]), RangeSet(), {}, refused=RangeSet([(7, 9), (30, 30)]))
    result = CommandBook().decide(replay((1, 10), (30, 40)), known).result
    assert result is not None
    assert as_pairs(result.missing_ranges) == [(1, 4), (9, 10), (30, 34), (36, 40)]
    assert as_pairs(result.refused_ranges) == [(7, 8)], "what it no longer has is not sent to be refused once more"


def test_a_refused_replay_names_all_that_was_asked_for_as_missing() -> None:
    result = CommandBook().decide(replay((20, 30), (50, 50)), facts((1, 10))).result
    assert result is not None
    assert not result.is_accepted
    assert as_pairs(result.missing_ranges) == [(20, 30), (50, 50)]


def test_a_replay_of_another_epoch_says_nothing_about_what_is_missing() -> None:
    result = CommandBook().decide(replay((1, 2), epoch="0" * 32), facts((1, 10))).result
    assert result is not None
    assert not result.missing_ranges, "sequences of another buffer are not this one's to give up"


def test_a_replay_of_a_time_is_what_was_captured_in_it() -> None:
    decision = CommandBook().decide(replay((1, 2)), facts((1, 90), in_time=((40, 50), (80, 100))))
    assert decision.replay_ranges == ((1, 2), (40, 50), (80, 90))


@pytest.mark.parametrize(
    ("command", "detail"),
    [
        (replay((1, 2), epoch="0" * 32), "expected a replay of epoch"),
        (replay((20, 30)), "expected observations that the buffer still has, but it has none of [(20, 30)]"),
        (replay((3, 2)), "expected ranges of sequences from 1 on, first to last, but got 3..2"),
        (replay((0, 2)), "expected ranges of sequences from 1 on"),
        (replay(), "it has none of that time"),
        (half_a_time(), "expected start_time and end_time together"),
        (change("station", "other"), "expected a setting that may be changed from afar"),
        (change("status_interval_s", "soon"), "expected status_interval_s to be a number, but got 'soon'"),
        (change("retention_days", "0"), "expected retention_days to be at least 1"),
        (change("when_full", "explode"), "expected when_full to be a drop-oldest or wait"),
        (command_pb2.Command(command_id="1"), "one that this station does not know"),
    ],
)
def test_a_command_that_cannot_be_done_is_refused_with_a_reason(command: command_pb2.Command, detail: str) -> None:
    decision = CommandBook().decide(command, facts((1, 10)))
    assert detail in detail_of(decision)
    assert (decision.replay_ranges, decision.overrides, decision.model) == ((), None, None)


def test_a_command_is_decided_once_and_answered_the_same_ever_after() -> None:
    book = CommandBook()
    first = book.decide(replay((1, 2)), facts((1, 10)))
    again = book.decide(replay((1, 2)), facts())
    assert (again.result, again.replay_ranges) == (first.result, ())
    for number in range(REMEMBERED_COMMANDS):
        book.decide(replay((1, 2), command_id=f"other {number}"), facts((1, 10)))
    assert book.decide(replay((1, 2)), facts((1, 10))).replay_ranges == ((1, 2),), "the book does not grow for ever"


def test_a_model_is_answered_for_once_it_has_been_tried() -> None:
    book = CommandBook()
    command = command_pb2.Command(command_id="1", take_model=command_pb2.TakeModelCommand(package=b"model"))
    first = book.decide(command, facts())
    assert (first.result, first.model) == (None, command.take_model)
    assert book.decide(command, facts()) == Decision(None), "while it is tried it is not tried again"
    book.settle("1", command_pb2.CommandResult(command_id="1", is_accepted=True))
    result = book.decide(command, facts()).result
    assert result is not None
    assert result.is_accepted


# --- settings from afar ---

SETTINGS = AgentSettings(station="magurele", broker_urls=("mqtt://a:1",), buffer_folder=Path("buffer"))


def test_a_setting_is_changed_until_it_is_given_back_to_the_file() -> None:
    changed = check_change({}, "rate_limit_bytes_per_s", "2000")
    changed = check_change(changed, "when_full", "wait")
    settings = with_overrides(SETTINGS, changed)
    assert (settings.rate_limit_bytes_per_s, settings.when_full) == (2000, "wait")
    changed = check_change(changed, "when_full", "")
    assert with_overrides(SETTINGS, changed).when_full == "drop-oldest"
    assert with_overrides(SETTINGS, changed).rate_limit_bytes_per_s == 2000


def test_nothing_that_could_cut_a_station_off_can_be_changed_from_afar() -> None:
    assert not {"broker_urls", "ca_file", "certificate_file", "key_file", "buffer_folder", "station"} & set(REMOTE_KEYS)
    for key in ("broker_urls", "instruments", "no_such_setting"):
        with pytest.raises(InvalidRequestError, match="changed from afar"):
            check_change({}, key, "1")


def test_changed_settings_that_make_no_sense_any_more_are_left_out() -> None:
    assert with_overrides(SETTINGS, {"retention_days": "many"}) == SETTINGS
    assert overrides_from_json(b'{"retention_days": "5", "gone": "1"}') == {"retention_days": "5"}
    with pytest.raises(BrokenStateError, match="expected the changed settings"):
        overrides_from_json(b"[]")
