"""Carries out what the server, or a person beside the station, has asked for. Decides nothing: commands.py does."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_agent.buffer import Buffer
from edge_agent.commands import CommandBook, StationFacts
from edge_agent.delivery import Delivery
from edge_agent.remote_settings import OVERRIDES_FILE, Overrides
from edge_agent.storage.state_file import save_state
from fieldpost.errors import FieldpostError, InvalidRequestError
from fieldpost.payload import decode_checked
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2 as pb

logger = logging.getLogger(__name__)

TRIAL_OBSERVATIONS = 20

Answer = Callable[[pb.CommandResult], None]


class ModelTaker(Protocol):
    """What tries a model and takes it."""

    def take(self, package: bytes, signature: bytes, samples: list[bytes]) -> str:
        """Returns the model's name; raises FieldpostError where it is refused."""
        ...


@dataclass(frozen=True, slots=True)
class ModelTried:
    """A model has been taken, or refused."""

    command_id: str
    detail: str
    """Why it was refused; empty where it was taken."""


class Orders:
    """The commands of one run of the agent.

    Args:
        buffer: Where observations to replay are.
        delivery: Sends them again.
        overrides: The settings that stand over the settings file.
        apply_overrides: Makes the agent use others.
        models: Takes models; None where there is no quick look.
        put_event: Takes ModelTried, from a thread of its own.
    """

    def __init__(
        self,
        buffer: Buffer,
        delivery: Delivery,
        overrides: Overrides,
        apply_overrides: Callable[[Overrides], None],
        models: ModelTaker | None,
        put_event: Callable[[ModelTried], object],
    ) -> None:
        self._buffer = buffer
        self._delivery = delivery
        self._overrides = overrides
        self._apply_overrides = apply_overrides
        self._models = models
        self._put_event = put_event
        self._book = CommandBook()
        self._waiting: dict[str, list[Answer]] = {}

    def take(self, command: pb.Command, answer: Answer) -> bool:
        """Carries out a command; answers at once, or when a model has been tried.

        Returns:
            Whether a report is wanted now.
        """
        decision = self._book.decide(command, self._facts(command))
        if decision.overrides is not None:
            try:
                self._change_settings(decision.overrides)
            except FieldpostError as error:
                answer(pb.CommandResult(command_id=command.command_id, is_accepted=False, detail=str(error)))
                return False
        self._delivery.send_again(decision.replay_ranges)
        if decision.model is not None:
            self._try_model(command.command_id, decision.model)
        if decision.result is None:
            self._waiting.setdefault(command.command_id, []).append(answer)
        else:
            # A report is asked for by every look at the station, and tells an operator nothing.
            level = logging.DEBUG if command.HasField("report") else logging.INFO
            logger.log(level, "command", extra={"command_id": command.command_id, "detail": decision.result.detail})
            answer(decision.result)
        return decision.is_report_wanted

    def note_model_tried(self, tried: ModelTried) -> None:
        """Answers whoever asked for the model."""
        result = pb.CommandResult(command_id=tried.command_id, is_accepted=not tried.detail, detail=tried.detail)
        self._book.settle(tried.command_id, result)
        logger.info("model", extra={"command_id": tried.command_id, "detail": tried.detail})
        for answer in self._waiting.pop(tried.command_id, []):
            answer(result)

    def _facts(self, command: pb.Command) -> StationFacts:
        in_time = RangeSet()
        if command.HasField("replay") and command.replay.HasField("start_time"):
            start, end = command.replay.start_time, command.replay.end_time
            in_time = self._buffer.sequences_between(start.seconds + start.nanos / 1e9, end.seconds + end.nanos / 1e9)
        held, refused = self._buffer.held(), RangeSet()
        for first, last in self._buffer.unreadable:
            held.discard(first, last)
        for refusal in self._buffer.ledger.refusals.values():
            for first, last in refusal.sequences:
                refused.add(first, last)
        return StationFacts(self._buffer.epoch, held, in_time, self._overrides, refused)

    def _change_settings(self, overrides: Overrides) -> None:
        save_state(self._buffer.folder / OVERRIDES_FILE, json.dumps(dict(overrides), indent=1).encode())
        self._overrides = overrides
        self._apply_overrides(overrides)

    def _try_model(self, command_id: str, model: pb.TakeModelCommand) -> None:
        """In a thread of its own: a trial takes seconds, and capture goes on."""
        samples = self._recent_contents()

        def work() -> None:
            try:
                if self._models is None:
                    raise InvalidRequestError("expected a station with a quick look, but it is off here")
                self._models.take(model.package, model.signature, samples)
                detail = ""
            except Exception as error:  # whatever is wrong with a model, the station goes on
                detail = str(error) or type(error).__name__
            self._put_event(ModelTried(command_id, detail))

        threading.Thread(target=work, name="model trial", daemon=True).start()

    def _recent_contents(self) -> list[bytes]:
        last = self._buffer.last_sequence
        found = self._buffer.read(max(1, last - TRIAL_OBSERVATIONS + 1), last, max_bytes=1 << 20)
        return [decode_checked(observation) for observation in found.observations]
