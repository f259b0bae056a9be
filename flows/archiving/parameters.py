"""What a person chooses when starting the archive flow; Prefect's page draws its form from this."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Self

from pydantic import Field, model_validator

from fieldpost.errors import InvalidRequestError
from flows.parameters import Form, Instrument, SettingsFile, Station


class ArchiveParams(Form):
    """Which days of which instruments to archive."""

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
    station: Station = Field(default=None, json_schema_extra={"position": 4})
    instrument: Instrument = Field(default=None, json_schema_extra={"position": 5})
    new_copy: bool = Field(
        default=False,
        title="The second place is new",
        description="Nothing counts as copied any more, and every bag is copied again: for a disk that was replaced by "
        "an empty one.",
        json_schema_extra={"position": 6},
    )
    settings_file: SettingsFile = Field(default=None, json_schema_extra={"position": 7})

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
