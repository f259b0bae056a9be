"""What the server may ask of a station, and what the station answers. Pure; the agent does what is decided here."""

from __future__ import annotations

from dataclasses import dataclass

from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2 as pb

REMEMBERED_COMMANDS = 256


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a command.

    Attributes:
        result: The answer.
        replay_ranges: Ranges to send again.
        is_report_wanted: Whether to publish the status now.
    """

    result: pb.CommandResult
    replay_ranges: tuple[tuple[int, int], ...] = ()
    is_report_wanted: bool = False


class CommandBook:
    """Decides each command once. What comes again gets the same answer and is not done again.

    The book is in memory: after a restart a command that comes again is done again, which for every command here costs
    duplicates and nothing else.
    """

    def __init__(self) -> None:
        self._results: dict[str, pb.CommandResult] = {}

    def decide(self, command: pb.Command, epoch: str, held: RangeSet) -> Decision:
        """Decides a command.

        Args:
            command: What is asked.
            epoch: The epoch of this station's buffer.
            held: The sequences that the buffer has.
        """
        known = self._results.get(command.command_id)
        decision = Decision(known) if known is not None else _decide(command, epoch, held)
        self._results[command.command_id] = decision.result
        if len(self._results) > REMEMBERED_COMMANDS:
            del self._results[next(iter(self._results))]
        return decision


def _decide(command: pb.Command, epoch: str, held: RangeSet) -> Decision:
    kind = command.WhichOneof("action")
    if kind == "report":
        return Decision(pb.CommandResult(command_id=command.command_id, is_accepted=True), is_report_wanted=True)
    if kind == "replay":
        return _decide_replay(command, epoch, held)
    return _refused(command, "expected a command replay or report, but got one that this station does not know")


def _decide_replay(command: pb.Command, epoch: str, held: RangeSet) -> Decision:
    if command.replay.epoch != epoch:
        return _refused(command, f"expected a replay of epoch {epoch}, but got {command.replay.epoch[:40]!r}")
    wanted = RangeSet()
    for asked in command.replay.ranges:
        if not 1 <= asked.first_sequence <= asked.last_sequence:
            text = f"{asked.first_sequence}..{asked.last_sequence}"
            return _refused(command, f"expected ranges of sequences from 1 on, first to last, but got {text}")
        wanted.add(asked.first_sequence, asked.last_sequence)
    present = RangeSet(part for first, last in wanted for part in held.common(first, last))
    if not present:
        return _refused(command, f"expected ranges that the buffer still has, but it has none of {list(wanted)[:10]}")
    return Decision(pb.CommandResult(command_id=command.command_id, is_accepted=True), tuple(present))


def _refused(command: pb.Command, detail: str) -> Decision:
    return Decision(pb.CommandResult(command_id=command.command_id, is_accepted=False, detail=detail))
