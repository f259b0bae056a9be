"""What the server, or a person beside the station, may ask of it, and what the station answers. Pure.

The agent does what is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_agent.remote_settings import Overrides, check_change
from fieldpost.errors import InvalidRequestError
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2 as pb
from fieldpost.v1 import receipt_pb2

REMEMBERED_COMMANDS = 256


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a command.

    Attributes:
        result: The answer; None where it is only known once the work is done.
        replay_ranges: Ranges to send again.
        is_report_wanted: Whether to publish the status now.
        model: A model to try.
        overrides: The settings that stand over the settings file from now on; None for no change.
    """

    result: pb.CommandResult | None
    replay_ranges: tuple[tuple[int, int], ...] = ()
    is_report_wanted: bool = False
    model: pb.TakeModelCommand | None = None
    overrides: Overrides | None = None


@dataclass(frozen=True, slots=True)
class StationFacts:
    """What a decision rests on.

    Attributes:
        epoch: The epoch of this station's buffer.
        held: The sequences that the buffer has.
        in_time: Those of them that were captured in the time that the command names.
        overrides: The settings that stand over the settings file now.
        refused: Those of the sequences that the server refused.
    """

    epoch: str
    held: RangeSet
    in_time: RangeSet
    overrides: Overrides
    refused: RangeSet = field(default_factory=RangeSet)


class CommandBook:
    """Decides each command once. What comes again gets the same answer and is not done again.

    The book is in memory. After a restart a command that comes again is done again: a replay costs duplicates, a
    setting is set to what it is, and a model that is in use is not tried again.
    """

    def __init__(self) -> None:
        self._results: dict[str, pb.CommandResult | None] = {}

    def decide(self, command: pb.Command, facts: StationFacts) -> Decision:
        """Decides a command."""
        if command.command_id in self._results:
            return Decision(self._results[command.command_id])
        try:
            decision = _decide(command, facts)
        except InvalidRequestError as error:
            decision = Decision(_result(command, str(error)))
        self.settle(command.command_id, decision.result)
        return decision

    def settle(self, command_id: str, result: pb.CommandResult | None) -> None:
        """Remembers the answer to a command."""
        self._results[command_id] = result
        if len(self._results) > REMEMBERED_COMMANDS:
            del self._results[next(iter(self._results))]


def _decide(command: pb.Command, facts: StationFacts) -> Decision:
    kind = command.WhichOneof("action")
    if kind == "report":
        return Decision(_result(command), is_report_wanted=True)
    if kind == "replay":
        return _decide_replay(command, facts)
    if kind == "set_setting":
        change = command.set_setting
        return Decision(_result(command), overrides=check_change(facts.overrides, change.key, change.value))
    if kind == "take_model":
        return Decision(None, model=command.take_model)
    raise InvalidRequestError(
        "expected a command replay, report, take_model or set_setting, but got one that this station does not know"
    )


def _decide_replay(command: pb.Command, facts: StationFacts) -> Decision:
    replay = command.replay
    if replay.epoch != facts.epoch:
        raise InvalidRequestError(f"expected a replay of epoch {facts.epoch}, but got {replay.epoch[:40]!r}")
    if replay.HasField("start_time") != replay.HasField("end_time"):
        raise InvalidRequestError("expected start_time and end_time together, but got one without the other")
    named = RangeSet()
    for asked in replay.ranges:
        if not 1 <= asked.first_sequence <= asked.last_sequence:
            text = f"{asked.first_sequence}..{asked.last_sequence}"
            raise InvalidRequestError(f"expected ranges of sequences from 1 on, first to last, but got {text}")
        named.add(asked.first_sequence, asked.last_sequence)
    present = RangeSet(part for first, last in named for part in facts.held.common(first, last))
    result = _result(command)
    result.missing_ranges.extend(_to_messages(part for first, last in named for part in facts.held.gaps(first, last)))
    result.refused_ranges.extend(
        _to_messages(part for first, last in present for part in facts.refused.common(first, last))
    )
    for first, last in facts.in_time:
        for part in facts.held.common(first, last):
            present.add(*part)
    if not present:
        text = f"it has none of {list(named)[:10]}" if named else "it has none of that time"
        result.is_accepted = False
        result.detail = f"expected observations that the buffer still has, but {text}"
    return Decision(result, replay_ranges=tuple(present))


def _to_messages(ranges: Iterable[tuple[int, int]]) -> list[receipt_pb2.SequenceRange]:
    return [receipt_pb2.SequenceRange(first_sequence=first, last_sequence=last) for first, last in ranges]


def _result(command: pb.Command, detail: str = "") -> pb.CommandResult:
    """Accepted where there is nothing to say against it."""
    return pb.CommandResult(command_id=command.command_id, is_accepted=not detail, detail=detail)
