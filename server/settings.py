"""The server's settings, and where they come from: flag, environment, systemd credential, TOML file, default."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fieldpost.errors import InvalidRequestError

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Everything that can be set. Each is also an environment variable: FIELDPOST_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="FIELDPOST_", extra="forbid", frozen=True)
    toml_path: ClassVar[Path | None] = None

    data_folder: Path = Field(
        default=Path("fieldpost-data"),
        description="Where the server keeps everything that has no place of its own below.",
    )
    database_url: str = Field(default="", description="SQLAlchemy URL of the database; empty: SQLite in data_folder.")
    segments_folder: str = Field(
        default="",
        description="Folder of the payloads, or an object store: s3://bucket/prefix?endpoint=https://host, gs://… or "
        "az://…, its credentials in the environment; empty: segments in data_folder.",
    )
    archive_folder: str = Field(
        default="",
        description="Folder of the bags, on the storage array, or an object store, written as for segments_folder; "
        "empty: archive in data_folder.",
    )
    archive_copy_folder: str = Field(
        default="",
        description="Second place to which every bag is copied, a folder or an object store, best on another machine; "
        "empty: none.",
    )
    time_zone: str = Field(
        default="UTC",
        description="IANA name, for example Europe/Berlin: the time zone in which the flows are due; their days are "
        "UTC days anywhere.",
    )
    stations_file: Path | None = Field(
        default=None, description="TOML registry of stations and instruments, read at every start."
    )
    mqtt_urls: list[str] = Field(
        default=["embedded://127.0.0.1:1883"],
        description="Brokers to take observations from: mqtt://host:port, mqtts://host:port, or "
        "embedded://127.0.0.1:port for one inside this process; empty for none.",
    )
    mqtt_client_id: str = Field(
        default="", description="MQTT client id; empty: one made of the host's name and the process id."
    )
    mqtt_shards: str = Field(
        default="0/1",
        pattern=r"^\d{1,2}/\d{1,2}$",
        description="INDEX/COUNT: which part of the stations this process takes over MQTT, where COUNT processes share "
        "one PostgreSQL; 0/1 for all.",
    )
    mqtt_ca_file: Path | None = Field(default=None, description="Certificate authority of the brokers, for mqtts.")
    mqtt_cert_file: Path | None = Field(default=None, description="The server's certificate, for mqtts.")
    mqtt_key_file: Path | None = Field(default=None, description="The key of that certificate.")
    grpc_address: str = Field(
        default="127.0.0.1:50051",
        description="host:port to serve gRPC on; port 0 for a free one. Off loopback only with grpc_cert_file; on "
        "loopback without it, everybody is an operator.",
    )
    grpc_token_address: str = Field(
        default="",
        description="A second host:port for gRPC, for callers with a token and no certificate; only where "
        "grpc_client_ca_file makes grpc_address insist on certificates.",
    )
    grpc_cert_file: Path | None = Field(
        default=None, description="The server's certificate for gRPC, PEM; read again when it changes."
    )
    grpc_key_file: Path | None = Field(default=None, description="The key of that certificate.")
    grpc_client_ca_file: Path | None = Field(
        default=None,
        description="Authority of clients' certificates: stations by their names, readers and operators as "
        "access_file says. Without it, gRPC takes tokens alone.",
    )
    access_file: Path | None = Field(
        default=None,
        description="TOML list of readers and operators, by certificate or token; read again when it changes.",
    )
    payload_bytes_max: int = Field(
        default=32 * MIB, ge=1024, le=2048 * MIB, description="Larger observations are refused."
    )
    upload_bytes_max: int = Field(
        default=(2048 - 64) * MIB,
        ge=1024,
        le=(2048 - 64) * MIB,
        description="Larger observations are refused where they come in pieces (gRPC Upload).",
    )
    hot_days: int = Field(
        default=0,
        ge=0,
        le=36_500,
        description="Days, by measure time, after which what is surely in the archive is let go here; 0: never.",
    )
    message_bytes_max: int = Field(
        default=64 * MIB, ge=64 * 1024, le=2047 * MIB, description="Larger gRPC and MQTT messages are refused."
    )
    engine: str = Field(
        default="local",
        pattern=r"^(local|ray:|ray://[^\s/]+:[0-9]{1,5})$",
        description="Where the workers run: local (processes on this machine), ray://host:port (actors on that cluster "
        "of Ray, of which this machine must be a node), or ray: (a Ray of its own on this machine).",
    )
    devices: list[Annotated[str, Field(pattern=r"^(cpu|cuda:[0-9]{1,2})$")]] = Field(
        default=["cpu"],
        min_length=1,
        description="What workers of built-in models compute with: cpu, and GPUs as cuda:0, cuda:1. Each GPU has one "
        "worker, the CPU as many as `workers` says. Users' models always compute on the CPU.",
    )
    workers: int = Field(
        default=1,
        ge=0,
        le=64,
        description="Worker processes on the CPU, for built-in models and as many for users' models, each kind started "
        "with its first model; 0 for no predictions at all (observations wait in the store), or with GPUs alone "
        "for one worker of users' models.",
    )
    workers_max: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Up to so many of each kind are started while observations wait too long; 0: never more than "
        "`workers`.",
    )
    worker_start_age_s: float = Field(
        default=2.0,
        ge=0.1,
        le=3600.0,
        description="More workers are started, up to workers_max, when the oldest observation has waited longer.",
    )
    worker_memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Data that one worker may allocate (RLIMIT_DATA); a batch that needs more runs again in smaller "
        "ones. 0 for no limit; workers of users' models then have that of trial_memory_bytes_max.",
    )
    worker_threads: int = Field(default=1, ge=1, le=256, description="Threads that one worker computes with.")
    batch_seconds_max: float = Field(
        default=1.0,
        ge=0.001,
        le=3600.0,
        description="A batch is made so small that it takes no longer, as far as was measured; one that is not live, a "
        "quarter of it.",
    )
    batch_bytes_max: int = Field(
        default=32 * MIB,
        ge=1024,
        le=2048 * MIB,
        description="Bytes of payloads in one batch; a larger observation goes alone.",
    )
    queue_count_max: int = Field(
        default=16_384,
        ge=1,
        le=10_000_000,
        description="Observations that may wait for one model version in each priority; more are refused for the "
        "moment.",
    )
    queue_bytes_max: int = Field(
        default=512 * MIB, ge=1024, le=1024 * 1024 * MIB, description="Bytes of these observations."
    )
    batch_trace_file: Path | None = Field(
        default=None,
        description="File to record the decisions about batches in, for python -m server.batching.trace: some 200 "
        "bytes an observation; begun anew at each start.",
    )
    models_folder: Path | None = Field(
        default=None,
        description="Folder of users' models; default: models in data_folder. Servers that share a database share it.",
    )
    model_bytes_max: int = Field(
        default=512 * MIB, ge=1024, le=2047 * MIB, description="Larger models of users are refused."
    )
    trial_memory_bytes_max: int = Field(
        default=4096 * MIB,
        ge=256 * MIB,
        description="Memory that a user's model may take while it is tried; what needs more is refused.",
    )
    trial_max_s: float = Field(
        default=60.0, ge=1, le=3600, description="Time that the trial of a user's model may take; then it is refused."
    )
    metrics_address: str = Field(
        default="",
        description="host:port to serve metrics for Prometheus on (docs/metrics.md); empty for none. Whoever can reach "
        "it can read them.",
    )
    otlp_endpoint: str = Field(
        default="",
        description="OpenTelemetry collector, http://host:port or https://host:port, for traces of observations from "
        "their station to their predictions; empty for none.",
    )
    trace_ratio: float = Field(
        default=0.01, ge=0.0, le=1.0, description="Share of the observations that are traced, told by their identity."
    )
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level to be logged."
    )

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data_folder.absolute() / 'fieldpost.db'}"

    @property
    def segments(self) -> Path | str:
        """The folder of the payloads, or the URL of their object store."""
        return _to_place(self.segments_folder or self.data_folder / "segments")

    @property
    def models(self) -> Path:
        """The folder of users' models."""
        return self.models_folder or self.data_folder / "models"

    @property
    def archive(self) -> Path | str:
        """The folder of the bags, or the URL of their object store."""
        return _to_place(self.archive_folder or self.data_folder / "archive")

    @property
    def archive_copy(self) -> Path | str | None:
        """The second place of the bags; None where there is none."""
        return _to_place(self.archive_copy_folder) if self.archive_copy_folder else None

    @property
    def archive_staging(self) -> Path:
        """Where bags are made and opened whose archive is an object store."""
        return self.data_folder.absolute() / "archive-staging"

    @property
    def archive_copy_staging(self) -> Path:
        """The same for the second place."""
        return self.data_folder.absolute() / "archive-copy-staging"

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                f"expected the IANA name of a time zone such as Europe/Berlin, but got {name!r}"
            ) from error
        return name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Puts the TOML file below the environment."""
        sources = (init_settings, env_settings, file_secret_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, cls.toml_path)) if cls.toml_path else sources


def _to_place(place: str | Path) -> Path | str:
    return place if isinstance(place, str) and "://" in place else Path(place).absolute()


def load_settings(path: Path | None = None, **flags: Any) -> Settings:
    """Reads the settings.

    Args:
        path: The TOML file; None for none.
        flags: What the command line said; None values are left to the other sources.

    Raises:
        InvalidRequestError: A setting is unknown or out of bounds; the message names each.
    """
    if path is not None and not path.is_file():
        raise InvalidRequestError(f"expected a settings file at {path}, but there is none")

    class _Settings(Settings):
        model_config = SettingsConfigDict(secrets_dir=os.environ.get("CREDENTIALS_DIRECTORY"))
        toml_path = path

    try:
        return _Settings(**{key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidRequestError(
            f"the settings are wrong: {wrong}", hint="docs/settings.md lists every setting with its bounds"
        ) from error
    except SettingsError as error:
        raise InvalidRequestError(
            f"the settings are wrong: {error}", hint='lists in the environment are JSON: ["mqtt://broker.example.org"]'
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"expected TOML in {path}, but: {error}") from error
