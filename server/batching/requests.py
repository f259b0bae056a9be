"""Who asked for what, and how they are told. Knows no queue and no worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from fieldpost.errors import FieldpostError, RejectedError, TryAgainError
from server.analyses import AnalysisResult
from server.workers.jobs import ResultBlock, StretchAnswer, WorkItem, WorkStretch


class PredictionFailedError(RejectedError):
    """The model cannot answer for this observation or stretch; asking the same again will not help."""


class ExpiredError(TryAgainError):
    """The deadline passed, or would have, before a worker was free."""


class Asker(Protocol):
    """Who asked, for one observation or many, and is told once about each; called in the event loop."""

    def take_results(self, block: ResultBlock, rows: list[int], tickets: list[int]) -> None:
        """Results came: these rows of the block, for these tickets."""

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        """There will be no result: a PredictionFailedError, an ExpiredError or another TryAgainError says why."""


class Promise:
    """Asks for one observation, with a future."""

    def __init__(self, answer: asyncio.Future[AnalysisResult]) -> None:
        self._answer = answer

    def take_results(self, block: ResultBlock, rows: list[int], tickets: list[int]) -> None:
        """The result came."""
        if not self._answer.done():
            self._answer.set_result(block.result(rows[0]))

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        """There will be none."""
        settle(self._answer, error)


class StretchPromise:
    """Asks for a stretch, with a future."""

    def __init__(self, answer: asyncio.Future[StretchAnswer]) -> None:
        self._answer = answer

    def take_answer(self, answer: StretchAnswer) -> None:
        """What became of each observation, and the state after the last."""
        if not self._answer.done():
            self._answer.set_result(answer)

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        """The stretch as a whole has no answer."""
        settle(self._answer, error)


@dataclass(slots=True)
class Request:
    """An observation, or a stretch of them, that waits for its answer.

    Attributes:
        item: The observation or the stretch.
        asker: Who asked; of a stretch a StretchPromise, and only of a stretch.
        ticket: What it is called there.
        deaths: How many workers died with it.
        too_much_count: How many batches with it found no memory.
        is_stored: Whether an instrument sent it; otherwise somebody asks at once.
        is_over: Whether the asker was told, or wants to know no more.
    """

    item: WorkItem | WorkStretch
    asker: Asker | StretchPromise
    ticket: int
    deaths: int = 0
    too_much_count: int = 0
    is_stored: bool = False
    is_over: bool = False

    def fail(self, error: FieldpostError) -> None:
        """Tells the asker, once, that there will be no answer."""
        if not self.is_over:
            self.is_over = True
            self.asker.take_failure(self.ticket, error)


def settle(future: asyncio.Future[Any] | None, error: FieldpostError | None) -> None:
    """Ends a future that is not done yet; nobody has to look at it."""
    if future is None or future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()
