"""What the server knows of a model version while it is at work. Plain values; knows no database and no worker."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from server.workers.jobs import ModelKey


class ModelState(StrEnum):
    """Where a model version stands."""

    READY = "ready"
    """Tried and numbered; predicts only what it is asked by number."""
    SHADOW = "shadow"
    """Predicts beside the active one, after it; never served."""
    ACTIVE = "active"
    """Predicts everything that comes; one for each analysis."""
    RETIRED = "retired"
    """Predicts nothing any more; what it said while it was active is still served."""


class ModelKind(StrEnum):
    """Where a model version came from."""

    BUILT_IN = "built-in"
    """It came with Fieldpost."""
    ONNX = "onnx"
    """A user submitted it."""
    TRAINED = "trained"
    """Trained at this network: weights for the code of a built-in analysis."""


@dataclass(frozen=True, slots=True)
class Restriction:
    """For which stations and instruments a model version predicts; both empty: for all.

    Attributes:
        stations: Names of stations.
        instruments: "station/instrument".
    """

    stations: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()

    @property
    def is_none(self) -> bool:
        """Whether it restricts nothing."""
        return not self.stations and not self.instruments

    def allows(self, station: str, instrument: str) -> bool:
        """Whether the version predicts for this instrument."""
        return self.is_none or station in self.stations or f"{station}/{instrument}" in self.instruments

    def to_json(self) -> str:
        """As its row keeps it; empty where it restricts nothing."""
        return "" if self.is_none else json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The opposite."""
        return cls(**{key: tuple(value) for key, value in json.loads(text).items()}) if text else cls()


@dataclass(frozen=True, slots=True)
class Trial:
    """What a model version cost when it was tried.

    Attributes:
        batch_fixed_s: Time of a batch however small it is.
        observation_s: Time that each observation adds.
        max_batch_count: Observations in the largest batch that pays.
        memory_peak_bytes: Of the process that tried it.
        difference_max_ratio: Largest relative difference to the outputs that were submitted beside it; NaN for none.
        confinements: What kept it in.
    """

    batch_fixed_s: float = 0.0
    observation_s: float = 0.0
    max_batch_count: int = 64
    memory_peak_bytes: int = 0
    difference_max_ratio: float = float("nan")
    confinements: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As its row keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The opposite; without text, a version that was never tried."""
        if not text:
            return cls()
        facts = json.loads(text)
        facts["confinements"] = tuple(facts["confinements"])
        return cls(**facts)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model version at work.

    Attributes:
        row_id: In the database.
        key: Which.
        state: Where it stands.
        kind: Whose workers run it: those of the built-in versions run the trained ones too.
        instrument_models: What it answers for.
        restriction: For whom it predicts.
        trial: What it costs.
        timeout_s: A batch that takes longer is taken for hung.
        settled_observation_id: Nothing up to this observation waits for it.
    """

    row_id: int
    key: ModelKey
    state: ModelState
    kind: ModelKind
    instrument_models: frozenset[str]
    restriction: Restriction = Restriction()
    trial: Trial = Trial()
    timeout_s: float = 60.0
    settled_observation_id: int = 0
