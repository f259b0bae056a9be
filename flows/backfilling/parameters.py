"""What a person chooses when starting the backfill flow; Prefect's page draws its form from this."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fieldpost.errors import InvalidRequestError
from fieldpost.names import NAME_PATTERN
from flows.parameters import FirstDay, Form, Instrument, LastDay, SettingsFile, Station

Where = Literal["hot store", "archive", "both"]
DAYS_MAX = 36_600
"""A century: more is a slip of the keyboard."""


class BackfillParams(Form):
    """Which model version predicts which past days."""

    analysis: str = Field(
        pattern=f"^{NAME_PATTERN.pattern}$",
        title="Analysis",
        description="For example boundary-layer-height; `fieldpost models list` names them.",
        json_schema_extra={"position": 1},
    )
    model_version: int = Field(
        ge=1,
        le=2**31 - 1,
        title="Model version",
        description="The version that is to predict; it need not be active.",
        json_schema_extra={"position": 2},
    )
    first_day: FirstDay = Field(json_schema_extra={"position": 3})
    last_day: LastDay = Field(json_schema_extra={"position": 4})
    station: Station = Field(default=None, json_schema_extra={"position": 5})
    instrument: Instrument = Field(default=None, json_schema_extra={"position": 6})
    where: Where = Field(
        default="both",
        title="Where",
        description="The hot store is what the server has at hand. Days that only the archive has are brought back, "
        "predicted, archived as a new version of their bag, and let go again.",
        json_schema_extra={"position": 7},
    )
    dry_run: bool = Field(
        default=False,
        title="Dry run",
        description="Only show what there is to do, and predict nothing.",
        json_schema_extra={"position": 8},
    )
    retry_failures: bool = Field(
        default=False,
        title="Try failures again",
        description="Also predict again what this version has failed at.",
        json_schema_extra={"position": 9},
    )
    compare: bool = Field(
        default=True,
        title="Compare with the active version",
        description="At the end, hold the predictions of the range against those of the active version, in numbers "
        "and in a picture.",
        json_schema_extra={"position": 10},
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        le=256,
        title="Processes",
        description="Processes that predict at once; without it, one fewer than this machine has cores.",
        json_schema_extra={"position": 11},
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda:[0-9]{1,2})$",
        title="Device",
        description="cpu, or a GPU as cuda:0, which one process then uses. Users' models compute on the CPU in any "
        "case.",
        json_schema_extra={"position": 12},
    )
    days_at_once: int = Field(
        default=4,
        ge=1,
        le=366,
        title="Archived days at once",
        description="So many days of instruments are brought back from the archive at a time: what bounds the disk "
        "that is needed.",
        json_schema_extra={"position": 13},
    )
    settings_file: SettingsFile = Field(default=None, json_schema_extra={"position": 14})

    def check(self) -> None:
        """Checks what the form cannot.

        Raises:
            InvalidRequestError: The days are the wrong way round, or too many.
        """
        if self.last_day < self.first_day:
            raise InvalidRequestError(
                f"expected a last day at or after {self.first_day}, but got {self.last_day}",
                hint="exchange the two days",
            )
        if (self.last_day - self.first_day).days >= DAYS_MAX:
            raise InvalidRequestError(
                f"expected at most {DAYS_MAX} days, but got {self.first_day} to {self.last_day}",
                hint="look at the years",
            )
