"""A batch on its way: where each of its observations stands, whose it is, and who is told what. Knows no worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from server.batching.policy import Priority, Waiting
from server.batching.requests import Asker, PredictionFailedError, Request, StretchPromise
from server.workers.jobs import JobDone, ModelKey, PlacedStretch, ResultBlock, StretchAnswer, WorkItem, WorkStretch
from server.workers.worker_wire import answers_all


@dataclass(frozen=True, slots=True)
class SentBatch:
    """A batch on its way; without any items it only loads the model, for whom `loaded` waits.

    Attributes:
        key: The model version.
        priority: Of all in it.
        sent_s: When it was sent.
        waiting: What is in it.
        owners: Of each of its observations, what it came in.
        stretches: Where those are that belong together.
        loaded: Who waits for the model.
    """

    key: ModelKey
    priority: Priority
    sent_s: float
    waiting: list[Waiting[Request]] = field(default_factory=list)
    owners: list[Waiting[Request]] = field(default_factory=list)
    stretches: list[PlacedStretch] = field(default_factory=list)
    loaded: asyncio.Future[None] | None = None

    def lay_out(self) -> list[WorkItem]:
        """The observations, in a row; notes whose each is."""
        items: list[WorkItem] = []
        for waiting in self.waiting:
            item = waiting.value.item
            if isinstance(item, WorkStretch):
                self.stretches.append(PlacedStretch(len(items), len(item.items), item.state))
                self.owners.extend([waiting] * len(item.items))
                items.extend(item.items)
            else:
                self.owners.append(waiting)
                items.append(item)
        return items

    def check(self, done: JobDone) -> None:
        """Raises ValueError where an answer is not about each observation and each stretch, once."""
        for block in done.blocks:
            block.check()
        if not answers_all(done, len(self.owners), len(self.stretches)):
            raise ValueError(f"it is not about each of {len(self.owners)} observations, once, and each stretch")

    def hand_out(self, done: JobDone) -> None:
        """Tells everyone their own part of an answer."""
        if self.stretches:
            self._tell_of_stretches(done)
        for place, failure in done.refusals.items():
            request = self.owners[place].value
            if not isinstance(request.asker, StretchPromise):
                request.fail(PredictionFailedError(sayable(failure)))
        for block in done.blocks:
            self._tell_of_results(block)

    def _tell_of_stretches(self, done: JobDone) -> None:
        results = done.results()
        for (first_place, item_count, _), state in zip(self.stretches, done.states, strict=True):
            request = self.owners[first_place].value
            if not request.is_over and isinstance(request.asker, StretchPromise):
                request.is_over = True
                mine = results[first_place : first_place + item_count]
                said = [sayable(each) if isinstance(each, str) else each for each in mine]
                request.asker.take_answer(StretchAnswer(said, state))

    def _tell_of_results(self, block: ResultBlock) -> None:
        """Tells each asker of all its rows of a block at once."""
        told: dict[Asker, tuple[list[int], list[int]]] = {}
        for row, place in enumerate(block.places):
            request = self.owners[place].value
            if not request.is_over and not isinstance(asker := request.asker, StretchPromise):
                request.is_over = True
                rows, tickets = told.setdefault(asker, ([], []))
                rows.append(row)
                tickets.append(request.ticket)
        for asker, (rows, tickets) in told.items():
            asker.take_results(block, rows, tickets)


def sayable(text: str) -> str:
    """A failure as a message can hold it: a model may say what none can."""
    return text.encode("utf-8", "replace").decode()
