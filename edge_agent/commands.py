"""What the server, or a person beside the station, may ask of it, and what the station answers. Pure.

The agent does what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.remote_settings import Overrides, check_change
from fieldpost.errors import InvalidRequestError
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2 as pb

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
    """

    epoch: str
    held: RangeSet
    in_time: RangeSet
    overrides: Overrides


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
        return Decision(_result(command), replay_ranges=tuple(_ranges_to_replay(command.replay, facts)))
    if kind == "set_setting":
        change = command.set_setting
        return Decision(_result(command), overrides=check_change(facts.overrides, change.key, change.value))
    if kind == "take_model":
        return Decision(None, model=command.take_model)
    raise InvalidRequestError(
        "expected a command replay, report, take_model or set_setting, but got one that this station does not know"
    )


def _ranges_to_replay(replay: pb.ReplayCommand, facts: StationFacts) -> RangeSet:
    if replay.epoch != facts.epoch:
        raise InvalidRequestError(f"expected a replay of epoch {facts.epoch}, but got {replay.epoch[:40]!r}")
    if replay.HasField("start_time") != replay.HasField("end_time"):
        raise InvalidRequestError("expected start_time and end_time together, but got one without the other")
    wanted = RangeSet(facts.in_time)
    for asked in replay.ranges:
        if not 1 <= asked.first_sequence <= asked.last_sequence:
            text = f"{asked.first_sequence}..{asked.last_sequence}"
            raise InvalidRequestError(f"expected ranges of sequences from 1 on, first to last, but got {text}")
        wanted.add(asked.first_sequence, asked.last_sequence)
    present = RangeSet(part for first, last in wanted for part in facts.held.common(first, last))
    if not present:
        named = f"it has none of {list(wanted)[:10]}" if wanted else "it has none of that time"
        raise InvalidRequestError(f"expected observations that the buffer still has, but {named}")
    return present


def _result(command: pb.Command, detail: str = "") -> pb.CommandResult:
    """Accepted where there is nothing to say against it."""
    return pb.CommandResult(command_id=command.command_id, is_accepted=not detail, detail=detail)
