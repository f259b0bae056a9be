"""What a person chooses when starting the scrub flow; Prefect's page draws its form from this."""

from __future__ import annotations

from datetime import date

from pydantic import Field

from fieldpost.errors import InvalidRequestError
from flows.parameters import Form, Instrument, SettingsFile, Station


class ScrubParams(Form):
    """Which bags of the archive to read from the first to the last byte."""

    first_day: date | None = Field(
        default=None,
        title="First day",
        description="UTC day of the bags; without it, from the oldest one on.",
        json_schema_extra={"position": 1},
    )
    last_day: date | None = Field(
        default=None,
        title="Last day",
        description="UTC day of the bags, it is included; without it, up to the newest one.",
        json_schema_extra={"position": 2},
    )
    station: Station = Field(default=None, json_schema_extra={"position": 3})
    instrument: Instrument = Field(default=None, json_schema_extra={"position": 4})
    skip_days: int = Field(
        default=0,
        ge=0,
        le=3660,
        title="Not those that were read in the last … days",
        description="0 reads all. With 1, a run that was ended is taken up where it was.",
        json_schema_extra={"position": 5},
    )
    max_gib: float | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        title="At most so many GiB",
        description="The run ends after so much; the next one goes on, since the bags that were not read for longest "
        "come first. Without it, no limit.",
        json_schema_extra={"position": 6},
    )
    repair: bool = Field(
        default=True,
        title="Repair",
        description="Replace a damaged bag by its whole copy, or a damaged copy by the whole bag. The damaged one is "
        "set aside, not deleted. Off: only report.",
        json_schema_extra={"position": 7},
    )
    settings_file: SettingsFile = Field(default=None, json_schema_extra={"position": 8})

    def check(self) -> None:
        """Looks at what the form cannot look at.

        Raises:
            InvalidRequestError: The first day comes after the last.
        """
        if self.first_day is not None and self.last_day is not None and self.last_day < self.first_day:
            raise InvalidRequestError(
                f"expected a last day at or after {self.first_day}, but got {self.last_day}",
                hint="exchange the two, or leave one empty",
            )
