"""What is to come back of a day, what came back, or why nothing did. Pure; knows no store and no shelf."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from flows.restoring.room import payload_bytes
from server.archive.bags import BagRecord, InstrumentDay
from server.archive.bring_back import ModelName


@dataclass(frozen=True, slots=True)
class DayPlan:
    """What is to come back of a day.

    Attributes:
        day: Which.
        bags: Its recorded bags, the newest first, each with its payload_bytes.
    """

    day: InstrumentDay
    bags: tuple[BagRecord, ...]

    @property
    def payload_bytes(self) -> int:
        """About the instrument's bytes, of all versions together."""
        return payload_bytes(self.bags)


@dataclass(slots=True)
class RestoredDay:
    """What came back of a day.

    Attributes:
        day: Which.
        versions: Of its bags, the newest first.
        observation_count: Observations that came back.
        present_count: Those that were there already.
        prediction_count: Predictions that came back.
        payload_bytes: The instrument's, of the observations that came back.
        checked_count: SHA-256 that were computed and found equal, of files and of observations.
        places: From where the bags were taken: the archive, its copy, or both.
        unknown: Predictions that stay in the archive, since no such model version is registered here.
    """

    day: InstrumentDay
    versions: tuple[int, ...]
    observation_count: int = 0
    present_count: int = 0
    prediction_count: int = 0
    payload_bytes: int = 0
    checked_count: int = 0
    places: set[str] = field(default_factory=set)
    unknown: Counter[ModelName] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class UnrestoredDay:
    """A day that could not be brought back.

    Attributes:
        day: Which.
        error: Why not.
    """

    day: InstrumentDay
    error: BaseException


Outcome = RestoredDay | UnrestoredDay
