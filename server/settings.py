"""The server's settings, and where they come from: flag, environment, systemd credential, TOML file, default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

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
    segments_folder: Path | None = Field(
        default=None, description="Folder of the payloads; default: segments in data_folder."
    )
    archive_folder: Path | None = Field(
        default=None, description="Folder of the bags, on the storage array; default: archive in data_folder."
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
    mqtt_ca_file: Path | None = Field(default=None, description="Certificate authority of the brokers, for mqtts.")
    mqtt_cert_file: Path | None = Field(default=None, description="The server's certificate, for mqtts.")
    mqtt_key_file: Path | None = Field(default=None, description="The key of that certificate.")
    grpc_address: str = Field(
        default="127.0.0.1:50051", description="host:port to serve gRPC on; port 0 for a free one."
    )
    payload_bytes_max: int = Field(
        default=32 * MIB, ge=1024, le=2048 * MIB, description="Larger observations are refused."
    )
    message_bytes_max: int = Field(
        default=64 * MIB, ge=64 * 1024, le=2047 * MIB, description="Larger gRPC and MQTT messages are refused."
    )
    workers: int = Field(
        default=1,
        ge=0,
        le=64,
        description="Worker processes for inference; 0 for none (observations wait in the store).",
    )
    worker_threads: int = Field(default=1, ge=1, le=256, description="Threads that one worker computes with.")
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level to be logged."
    )

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data_folder.absolute() / 'fieldpost.db'}"

    @property
    def segments(self) -> Path:
        """The folder of the payloads."""
        return self.segments_folder or self.data_folder / "segments"

    @property
    def archive(self) -> Path:
        """The folder of the bags."""
        return self.archive_folder or self.data_folder / "archive"

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
