"""Looks through the store for what is missing, epoch by epoch. Only reads, and knows no Prefect."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from fieldpost.ranges import RangeSet
from flows.gap_filling.gaps import Missing, choose_gap
from server.queries.gaps import EpochFacts, list_epochs, look_at, next_capture_unix_nanos
from server.storage.store import Store


@dataclass(frozen=True, slots=True)
class EpochGap:
    """What an epoch lacks here.

    Attributes:
        facts: The epoch.
        missing: Everything that is missing.
        gap: Of that, what does not come by itself; it may be nothing.
    """

    facts: EpochFacts
    missing: RangeSet
    gap: RangeSet


@dataclass(frozen=True, slots=True)
class StationGaps:
    """The epochs of a station that lack something."""

    station: str
    epochs: tuple[EpochGap, ...]


def find_gaps(store: Store, *, station: str, grace_s: float, now_unix_nanos: int) -> list[StationGaps]:
    """The stations that lack something, by name.

    Args:
        store: Where to look.
        station: Only this station; empty for all.
        grace_s: What was captured less than so long ago may be on its way.
        now_unix_nanos: The time.
    """
    young_unix_nanos = now_unix_nanos - round(grace_s * 1e9)
    found: dict[str, list[EpochGap]] = {}
    with store.read() as connection:  # one view: what a station had delivered when it spoke is in it
        for facts in list_epochs(connection, station):
            epoch = _look(connection, facts, young_unix_nanos)
            if epoch.missing:
                found.setdefault(facts.station, []).append(epoch)
    return [StationGaps(name, tuple(each)) for name, each in found.items()]


def _look(connection: Connection, facts: EpochFacts, young_unix_nanos: int) -> EpochGap:
    def is_young(first: int, last: int) -> bool:
        # Sequences follow the order of capture: the next one that is held was captured later.
        if first > facts.held_through or facts.epoch_id is None:
            return True
        captured = next_capture_unix_nanos(connection, facts.epoch_id, last)
        return captured is not None and captured > young_unix_nanos

    missing = look_at(connection, facts).missing
    told = Missing(missing, facts.is_current, facts.backlog_count, facts.refused_count)
    return EpochGap(facts, missing, choose_gap(told, is_young))
