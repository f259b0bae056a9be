"""What a person chooses when starting the archive flow; Prefect's page draws its form from this."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fieldpost.errors import InvalidRequestError
from fieldpost.names import NAME_PATTERN

_NAME = f"^{NAME_PATTERN.pattern}$"


class ArchiveParams(BaseModel):
    """Which days of which instruments to archive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_day: date | None = Field(
        default=None,
        title="First day",
        description="UTC day of measure time; without it, the day before the run was due.",
        json_schema_extra={"position": 1},
    )
    last_day: date | None = Field(
        default=None,
        title="Last day",
        description="UTC day of measure time; without it, the day before the run was due.",
        json_schema_extra={"position": 2},
    )
    late_days: int = Field(
        default=0,
        ge=0,
        le=3660,
        title="Days to look back",
        description="So many days before the first day are looked at too; those that have changed since they were "
        "archived get a new version.",
        json_schema_extra={"position": 3},
    )
    station: str | None = Field(
        default=None,
        pattern=_NAME,
        title="Station",
        description="Only this station; without it, all.",
        json_schema_extra={"position": 4},
    )
    instrument: str | None = Field(
        default=None,
        pattern=_NAME,
        title="Instrument",
        description="Only instruments of this name; without it, all.",
        json_schema_extra={"position": 5},
    )
    settings_file: Path | None = Field(
        default=None,
        title="Settings file",
        description="The server's TOML settings; without it, the environment (FIELDPOST_...) and the defaults.",
        json_schema_extra={"position": 6},
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.first_day is not None and self.last_day is not None and self.last_day < self.first_day:
            raise ValueError(f"expected a last day at or after {self.first_day}, but got {self.last_day}")
        return self

    def days(self, today: date) -> tuple[date, date]:
        """The first and the last day to look at.

        Args:
            today: The UTC day on which the run was due.

        Raises:
            InvalidRequestError: The first day comes after the last.
        """
        yesterday = today - timedelta(days=1)
        first_day, last_day = self.first_day or yesterday, self.last_day or yesterday
        if last_day < first_day:
            raise InvalidRequestError(
                f"expected a first day at or before {last_day}, but got {first_day}",
                hint="a day can be archived once it is over, at 00:00 UTC; to archive an unfinished one name it as the "
                "last day too",
            )
        return first_day - timedelta(days=self.late_days), last_day


def make_params(**given: object) -> ArchiveParams:
    """Parameters from a command line.

    Raises:
        InvalidRequestError: One is out of bounds; the message names each.
    """
    try:
        return ArchiveParams.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'days'}: {each['msg']}" for each in error.errors())
        raise InvalidRequestError(f"the parameters are wrong: {wrong}", hint="see --help") from error
