"""What a person chooses when starting the fill-gaps flow; Prefect's page draws its form from this."""

from __future__ import annotations

from pydantic import Field

from flows.parameters import Form, SettingsFile, Station


class FillGapsParams(Form):
    """Whose missing observations to ask for, and how long to wait for them."""

    station: Station = Field(default=None, json_schema_extra={"position": 1})
    dry_run: bool = Field(
        default=False,
        title="Only look",
        description="Say what is missing; ask no station and record nothing.",
        json_schema_extra={"position": 2},
    )
    max_wait_minutes: int = Field(
        default=60,
        ge=1,
        le=1440,
        title="Longest wait (minutes)",
        description="For each station; what has not come by then is left for the next run. Slow links need longer.",
        json_schema_extra={"position": 3},
    )
    grace_minutes: int = Field(
        default=30,
        ge=0,
        le=10_080,
        title="Grace (minutes)",
        description="While a station still has observations to deliver, what is missing before one that was captured "
        "less than so long ago is left alone: it may be on its way.",
        json_schema_extra={"position": 4},
    )
    give_up_old_epochs: bool = Field(
        default=False,
        title="Give up old buffers",
        description="Record as lost what is missing of buffers that no station has any more, so that it is no longer "
        "reported. What comes in spite of it is stored.",
        json_schema_extra={"position": 5},
    )
    server: str = Field(
        default="",
        max_length=255,
        title="Server",
        description="host:port of the server's gRPC, through which stations are asked; empty: the settings' "
        "grpc_address. Certificates and a token come from FIELDPOST_CERTIFICATES and FIELDPOST_TOKEN_FILE.",
        json_schema_extra={"position": 6},
    )
    settings_file: SettingsFile = Field(default=None, json_schema_extra={"position": 7})
