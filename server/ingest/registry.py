"""The registry of stations and instruments: a TOML file that an operator writes, read into the database.

    [[stations]]
    name = "magurele"
    latitude_deg = 44.35
    longitude_deg = 26.03
    altitude_m = 93

    [[stations.instruments]]
    name = "cl51"
    instrument_model = "cl51"
    calibration = 1.0          # optional

What a file does not name is left alone: registering never removes anything.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, insert, select, update

from fieldpost.errors import InvalidRequestError
from fieldpost.names import NAME_PATTERN
from server.storage.tables import instruments, model_versions, stations

_NAME = f"^{NAME_PATTERN.pattern}$"


class RegisteredInstrument(BaseModel):
    """What an operator knows of an instrument."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_NAME)
    instrument_model: str = Field(pattern=_NAME, description="decides how observations are decoded, e.g. cl51")
    calibration: float | None = Field(default=None, gt=0)


class RegisteredStation(BaseModel):
    """What an operator knows of a station; its position is that of its instruments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_NAME)
    latitude_deg: float | None = Field(default=None, ge=-90, le=90)
    longitude_deg: float | None = Field(default=None, ge=-180, le=180)
    altitude_m: float | None = None
    instruments: list[RegisteredInstrument] = []


class StationsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stations: list[RegisteredStation] = []


def read_stations_file(path: Path) -> list[RegisteredStation]:
    """Reads the file.

    Raises:
        InvalidRequestError: It cannot be read; the message names the place.
    """
    try:
        return StationsFile.model_validate(tomllib.loads(path.read_text())).stations
    except OSError as error:
        raise InvalidRequestError(
            f"expected a stations file at {path}, but it cannot be read: {error.strerror}"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InvalidRequestError(
            f"expected stations and their instruments in {path}, but: {_words(error)}",
            hint="docs/server.md shows such a file; names are of a-z, 0-9 and '-'",
        ) from error


def _words(error: ValueError) -> str:
    """Where the file is wrong, without pydantic's addresses."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return str(error)


def register(connection: Connection, registered: list[RegisteredStation]) -> int:
    """Brings the registry to what these stations say; returns how many instruments were added or changed."""
    changed = 0
    for station in registered:
        station_id = connection.scalar(select(stations.c.id).where(stations.c.name == station.name))
        if station_id is None:
            station_id = connection.execute(
                insert(stations).values(name=station.name).returning(stations.c.id)
            ).scalar_one()
        for instrument in station.instruments:
            facts: dict[str, object] = {
                "instrument_model": instrument.instrument_model,
                "calibration": instrument.calibration,
                "latitude_deg": station.latitude_deg,
                "longitude_deg": station.longitude_deg,
                "altitude_m": station.altitude_m,
            }
            changed += _register_instrument(connection, station_id, instrument.name, facts)
    if changed:
        # An observation of long ago may now have a model that answers for it: nothing is settled.
        connection.execute(update(model_versions).values(settled_observation_id=0))
    return changed


def _register_instrument(connection: Connection, station_id: int, name: str, facts: dict[str, object]) -> bool:
    query = select(instruments.c.id, *(instruments.c[key] for key in facts))
    row = connection.execute(
        query.where(instruments.c.station_id == station_id, instruments.c.name == name)
    ).one_or_none()
    if row is None:
        connection.execute(insert(instruments).values(station_id=station_id, name=name, **facts))
    elif tuple(row[1:]) != tuple(facts.values()):
        connection.execute(update(instruments).where(instruments.c.id == row[0]).values(**facts))
    else:
        return False
    return True
