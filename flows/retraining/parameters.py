"""What a person chooses when starting the retrain flow; Prefect's page draws its form from this."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from fieldpost.errors import InvalidRequestError
from fieldpost.names import NAME_PATTERN
from flows.parameters import Form

_NAME = f"^{NAME_PATTERN.pattern}$"


class RetrainParams(Form):
    """What to train, on what, and what becomes of the result."""

    analysis: str | None = Field(
        default=None,
        pattern=_NAME,
        title="Analysis",
        description="Which analysis to retrain; without it, the only one that can be.",
        json_schema_extra={"position": 1},
    )
    look_back_days: int = Field(
        default=28,
        ge=1,
        le=3660,
        title="Days to look at",
        description="From so many days before the run the network's instruments, noise and weather are learnt.",
        json_schema_extra={"position": 2},
    )
    references_file: Path | None = Field(
        default=None,
        title="Reference heights",
        description="CSV with a line station,instrument,time,height_m for each height that is known (radiosondes, "
        "experts); time is ISO 8601 with its offset. A quarter of the weeks is held out for the comparison.",
        json_schema_extra={"position": 3},
    )
    start_from: Literal["active version", "nothing"] = Field(
        default="active version",
        title="Start from",
        description="Whose weights the training begins with.",
        json_schema_extra={"position": 4},
    )
    training_days: int = Field(
        default=768,
        ge=1,
        le=1_000_000,
        title="Days to train on",
        description="Simulated days, each of another site, instrument and weather.",
        json_schema_extra={"position": 5},
    )
    epochs: int = Field(
        default=16,
        ge=1,
        le=10_000,
        title="Epochs",
        description="How often each day is seen.",
        json_schema_extra={"position": 6},
    )
    held_out_days: int = Field(
        default=60,
        ge=1,
        le=100_000,
        title="Days to compare on",
        description="Simulated days of each kind that neither version was trained on.",
        json_schema_extra={"position": 7},
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=256,
        title="Processes",
        description="Processes that train together on this machine: one for each GPU, or for each few cores.",
        json_schema_extra={"position": 8},
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=256,
        title="Threads",
        description="Threads of each process.",
        json_schema_extra={"position": 9},
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        title="Seed",
        description="Decides which days are drawn; without it, the day of the run does, so that no two runs are "
        "compared on the same days.",
        json_schema_extra={"position": 10},
    )
    promote: bool = Field(
        default=True,
        title="Activate where better",
        description="Without it the version is trained, scored and registered, and waits for you.",
        json_schema_extra={"position": 11},
    )
    litert_python: Path | None = Field(
        default=None,
        title="Converter's Python",
        description="The interpreter of the LiteRT converter's own environment; without it the report says how to "
        "convert. deploy/quick-look/README.md says how to make the environment.",
        json_schema_extra={"position": 12},
    )
    offer_to: tuple[str, ...] = Field(
        default=(),
        title="Offer to stations",
        description="Stations that are asked to take the model package, where the trained version becomes active; each "
        "tries it first and may refuse.",
        json_schema_extra={"position": 13},
    )
    station_package: Path | None = Field(
        default=None,
        title="Model package",
        description="What is offered: a .fpmodel, made as deploy/quick-look/README.md says.",
        json_schema_extra={"position": 14},
    )
    signing_key_file: Path | None = Field(
        default=None,
        title="Signing key",
        description="Ed25519 private key, PEM, whose public half the stations have.",
        json_schema_extra={"position": 15},
    )
    server_address: str = Field(
        default="127.0.0.1:50051",
        title="Server",
        description="host:port of the server that reaches the stations.",
        json_schema_extra={"position": 16},
    )
    afresh: bool = Field(
        default=False,
        title="Begin anew",
        description="Forget what an ended run has left, instead of going on with it.",
        json_schema_extra={"position": 17},
    )
    train_options: tuple[str, ...] = Field(
        default=(),
        title="Further options",
        description="Handed on to the training as they are.",
        json_schema_extra={"position": 18},
    )
    settings_file: Path | None = Field(
        default=None,
        title="Settings file",
        description="The server's TOML settings; without it, the environment (FIELDPOST_...) and the defaults.",
        json_schema_extra={"position": 19},
    )

    @model_validator(mode="after")
    def _check_offer(self) -> Self:
        if self.offer_to and (self.signing_key_file is None or self.station_package is None):
            raise ValueError("expected a model package and a signing key, since stations are named to offer it to")
        return self


def make_retrain_params(**given: object) -> RetrainParams:
    """Parameters from a command line.

    Raises:
        InvalidRequestError: One is out of bounds; the message names each.
    """
    try:
        return RetrainParams.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'offer_to'}: {each['msg']}" for each in error.errors())
        raise InvalidRequestError(f"the parameters are wrong: {wrong}", hint="see --help") from error
