"""What a person chooses when starting the watch flow; Prefect's page draws its form from this."""

from __future__ import annotations

from pydantic import Field

from flows.parameters import Form, SettingsFile


class WatchParams(Form):
    """When a station, an instrument or the archive is worth an event."""

    silent_minutes: int = Field(
        default=15,
        ge=1,
        le=10_080,
        title="Station silent (minutes)",
        description="A station of which nothing was heard for so long is silent. Stations report every minute.",
        json_schema_extra={"position": 1},
    )
    missed_intervals: int = Field(
        default=20,
        ge=2,
        le=10_000,
        title="Instrument silent (usual intervals)",
        description="An instrument that has measured nothing for so many times its usual interval is silent, though "
        "its station is not.",
        json_schema_extra={"position": 2},
    )
    growing_looks: int = Field(
        default=6,
        ge=2,
        le=100,
        title="Backlog growing (looks)",
        description="A backlog that is larger at each of so many looks, one after the other, is growing.",
        json_schema_extra={"position": 3},
    )
    archive_days: int = Field(
        default=3,
        ge=1,
        le=365,
        title="Archive behind (days)",
        description="A day that has no bag so many days after its end is worth an event.",
        json_schema_extra={"position": 4},
    )
    settings_file: SettingsFile = Field(default=None, json_schema_extra={"position": 5})
