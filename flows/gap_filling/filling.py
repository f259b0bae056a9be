"""Asks a station for what is missing, waits until it has come, and records what nobody has any more.

Every step may be repeated: what comes twice is dropped by the server, and what a station no longer has is recorded as
soon as it says so. It knows no Prefect, and not how a station is reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from fieldpost._commands import replay_command
from fieldpost.errors import RejectedError, TryAgainError
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2, receipt_pb2
from flows.gap_filling.finding import EpochGap, StationGaps
from flows.gap_filling.gaps import common, portions, without
from server.queries.gaps import find_missing, list_epochs, write_lost
from server.storage.store import Store

WRITE_TIMEOUT_S = 60.0
ASKED_TIMES = 2

Ask = Callable[[str, command_pb2.Command], command_pb2.CommandResult]
"""(station, command) -> its answer. TryAgainError: it does not answer; RejectedError: nobody may ask here."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for a station.

    Attributes:
        whole_s: In all.
        quiet_s: When nothing came for so long, it is asked once more, and then no more.
        look_s: Between two looks into the store.
    """

    whole_s: float
    quiet_s: float = 60.0
    look_s: float = 1.0


@dataclass(slots=True)
class FilledEpoch:
    """What became of the gap of an epoch.

    Attributes:
        found: What was missing at the beginning.
        asked: What the station was asked for.
        lost: What it no longer has; recorded as such.
        refused: What it has, and the server refused.
        still: What is missing at the end, and neither lost nor refused.
        why: Why that is so, for people; empty where nothing is.
        error: What kept it from being asked at all, where that will not pass by itself.
    """

    found: EpochGap
    asked: RangeSet
    lost: RangeSet
    refused: RangeSet
    still: RangeSet
    why: str = ""
    error: RejectedError | None = None

    @property
    def came_count(self) -> int:
        """How many of the missing are held now."""
        return len(without(without(without(self.found.missing, self.still), self.lost), self.refused))

    @property
    def is_gap(self) -> bool:
        """Whether something stays that does not come by itself."""
        return bool(common(self.still, self.found.gap))


class Filler:
    """Fills the gaps of stations; threads may share it.

    Args:
        store: Where what comes is looked for.
        ask: Asks a station.
        patience: How long is waited.
        give_up_old_epochs: Whether what is missing of buffers that no station has any more is recorded as lost.
        is_dry_run: Ask nobody, record nothing.
        on_came: Told how many observations have come since it was told last.
    """

    def __init__(
        self,
        store: Store,
        ask: Ask,
        patience: Patience,
        *,
        give_up_old_epochs: bool = False,
        is_dry_run: bool = False,
        on_came: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._store = store
        self._ask = ask
        self._patience = patience
        self._give_up_old_epochs = give_up_old_epochs
        self._is_dry_run = is_dry_run
        self._on_came = on_came

    def fill(self, gaps: StationGaps) -> list[FilledEpoch]:
        """Fills what can be filled of one station; an epoch each."""
        end_s = time.monotonic() + self._patience.whole_s
        return [self._fill(each, end_s) for each in gaps.epochs]

    def _fill(self, found: EpochGap, end_s: float) -> FilledEpoch:
        filled = FilledEpoch(found, RangeSet(), RangeSet(), RangeSet(), RangeSet(found.missing))
        filled.why = self._reason_not_to_ask(found)
        if filled.why:
            return filled
        if not found.facts.is_current:
            self._record_lost(filled, found.gap)
            return filled
        for portion in portions(found.gap):
            if not self._fill_portion(filled, portion, end_s):
                break
        missing = self._missing(found, found.missing)
        filled.refused = common(filled.refused, missing)  # some were taken this time
        filled.still = without(missing, filled.refused)
        if not filled.still:
            filled.why = ""
        elif not filled.why:
            filled.why = "asked for, and it did not come" if filled.is_gap else "on its way"
        return filled

    def _reason_not_to_ask(self, found: EpochGap) -> str:
        facts = found.facts
        if not found.gap:
            refused = f", {facts.refused_count} the server refused" if facts.refused_count else ""
            return f"the station has {facts.backlog_count} still to deliver{refused}"
        if facts.is_current and not facts.is_online:
            return "the station is offline"
        if not facts.is_current and not self._give_up_old_epochs:
            return "no station has this buffer any more"
        return "only looked" if self._is_dry_run else ""

    def _fill_portion(self, filled: FilledEpoch, portion: RangeSet, end_s: float) -> bool:
        """Returns whether there is any use in going on."""
        facts = filled.found.facts
        for _ in range(ASKED_TIMES):
            wanted = without(self._missing(filled.found, portion), filled.refused)
            if not wanted:
                return True
            if time.monotonic() >= end_s:
                filled.why = "the longest wait was over"
                return False
            try:
                result = self._ask(facts.station, replay_command(wanted, epoch=facts.epoch))
            except TryAgainError as error:
                filled.why = str(error)
                return False
            except RejectedError as error:
                filled.why, filled.error = str(error), error
                return False
            for first, last in wanted:
                filled.asked.add(first, last)
            gone = common(wanted, _ranges(result.missing_ranges))
            self._record_lost(filled, gone)
            for first, last in common(wanted, _ranges(result.refused_ranges)):
                filled.refused.add(first, last)
            if not result.is_accepted:
                if gone != wanted:  # it did not say that it has none of them
                    filled.why = result.detail
                return True
            self._wait(filled.found, without(without(wanted, gone), filled.refused), end_s)
        return True

    def _wait(self, found: EpochGap, awaited: RangeSet, end_s: float) -> None:
        """Until all of it has come, nothing has come for a while, or the end."""
        left_count, came_s = len(awaited), time.monotonic()
        while awaited and time.monotonic() < min(end_s, came_s + self._patience.quiet_s):
            time.sleep(self._patience.look_s)
            awaited = self._missing(found, awaited)
            if len(awaited) < left_count:
                self._on_came(left_count - len(awaited))
                left_count, came_s = len(awaited), time.monotonic()

    def _missing(self, found: EpochGap, within: RangeSet) -> RangeSet:
        """What is missing now. The epoch is looked up anew: its row may be younger than the first look at it."""
        with self._store.read() as connection:
            listed = list_epochs(connection, found.facts.station)
            facts = next(each for each in listed if each.epoch == found.facts.epoch)
            wanted = without(within, facts.answered)
            return find_missing(connection, facts.epoch_id, wanted)

    def _record_lost(self, filled: FilledEpoch, lost: RangeSet) -> None:
        if not lost:
            return
        self._store.write(partial(write_lost, facts=filled.found.facts, ranges=lost)).result(WRITE_TIMEOUT_S)
        for first, last in lost:
            filled.lost.add(first, last)
        filled.still = without(filled.still, lost)


def _ranges(messages: Iterable[receipt_pb2.SequenceRange]) -> RangeSet:
    return RangeSet((each.first_sequence, each.last_sequence) for each in messages)
