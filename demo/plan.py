"""What the demo is to show: its stations and instruments, and the files that set them up. Starts nothing."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import count
from pathlib import Path

import numpy as np

from fieldpost.simulation import SKIES, Atmosphere
from fieldpost.simulation.cl51 import CLIMATES

SIMULATED_INTERVAL_S = 15.0
SIMULATED_COUNT = 5760
"""A day."""
SKY_STEP_S = 900.0
SHOWN_MIN, HIDDEN_MAX = 0.04, 0.4
"""Of the day: so much of a weather at least is seen in a picture; so much without any height at most."""


@dataclass(frozen=True, slots=True)
class PlannedSky:
    """The sky above a simulated instrument; attributes as in the station's settings."""

    seed: int
    climate: str
    latitude_deg: float
    longitude_deg: float

    def atmosphere(self) -> Atmosphere:
        """What the instrument looks at, with its truth."""
        climate = CLIMATES[self.climate]
        return Atmosphere(self.seed, climate, latitude_deg=self.latitude_deg, longitude_deg=self.longitude_deg)


@dataclass(frozen=True, slots=True)
class PlannedInstrument:
    """An instrument of the demo.

    Attributes:
        name: Its name.
        instrument_model: As the server's registry has it.
        source_settings: The lines of its table in the station's settings.
        sky: The simulated one; None for recorded files.
        written_count: Observations that it hands over, where that is known beforehand.
    """

    name: str
    instrument_model: str
    source_settings: dict[str, str | int | float]
    sky: PlannedSky | None = None
    written_count: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedStation:
    """A station of the demo.

    Attributes:
        name: Its name.
        instruments: Its instruments.
        loses_link: Whether its link to the broker is cut for a while.
    """

    name: str
    instruments: Sequence[PlannedInstrument]
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    altitude_m: float | None = None
    loses_link: bool = False


def simulated_day(now: datetime) -> datetime:
    """The day that the simulated instruments measure: yesterday, from midnight UTC."""
    return datetime(now.year, now.month, now.day, tzinfo=UTC) - timedelta(days=1)


def parse_day(text: str) -> datetime:
    """A day, from midnight UTC.

    Raises:
        ArgumentTypeError: It is none.
    """
    try:
        return datetime.combine(date.fromisoformat(text), time(tzinfo=UTC))
    except ValueError as error:
        raise ArgumentTypeError(f"expected a day such as 2026-06-21, but got {text!r}") from error


def plan_simulated(start: datetime, speed_up: float) -> list[PlannedStation]:
    """Three stations with a simulated CL51 each: under fair weather; with clouds and rain; with fog.

    The second one loses its link.

    Args:
        start: Of the day.
        speed_up: How many times faster than real time it passes.
    """
    pace: dict[str, str | int | float] = {
        "start_time": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "speed_up": speed_up,
        "count": SIMULATED_COUNT,
    }
    lindenberg, payerne, magurele = (52.21, 14.13), (46.81, 6.94), (44.34, 26.03)
    skies = [
        ("lindenberg", PlannedSky(1, "fair", *lindenberg), 112.0),
        ("payerne", find_sky("training", *payerne, start, ("cloud", "rain")), 491.0),
        ("magurele", find_sky("training", *magurele, start, ("fog",)), 77.0),
    ]
    return [
        PlannedStation(
            name,
            [PlannedInstrument("cl51", "cl51", _simulated(sky) | pace, sky, SIMULATED_COUNT)],
            sky.latitude_deg,
            sky.longitude_deg,
            altitude_m,
            loses_link=name == "payerne",
        )
        for name, sky, altitude_m in skies
    ]


def find_sky(
    climate: str, latitude_deg: float, longitude_deg: float, start: datetime, weathers: Sequence[str]
) -> PlannedSky:
    """The first sky that shows these weathers on a day, and not so much of them that little else is seen.

    Args:
        climate: From which it comes.
        latitude_deg: Of the place.
        longitude_deg: Of the place.
        start: Of the day.
        weathers: Among fieldpost.simulation.SKIES.
    """
    unix_s = start.timestamp() + np.arange(0.0, 86_400.0, SKY_STEP_S)

    def shows(sky: PlannedSky) -> bool:
        found = np.array(SKIES)[sky.atmosphere().truth(unix_s).sky]
        is_shown = all((found == weather).mean() >= SHOWN_MIN for weather in weathers)
        return is_shown and bool(np.isin(found, ("rain", "fog")).mean() <= HIDDEN_MAX)

    return next(filter(shows, (PlannedSky(seed, climate, latitude_deg, longitude_deg) for seed in count(1))))


def live(station: PlannedStation) -> PlannedStation:
    """The same station, measuring in the present: what `make up` goes on with after its day."""
    instruments = [
        PlannedInstrument(each.name, each.instrument_model, _simulated(each.sky), each.sky)
        for each in station.instruments
        if each.sky is not None
    ]
    return PlannedStation(station.name, instruments, station.latitude_deg, station.longitude_deg, station.altitude_m)


def _simulated(sky: PlannedSky) -> dict[str, str | int | float]:
    return {"source": "simulated", **asdict(sky), "interval_s": SIMULATED_INTERVAL_S}


def write_agent_settings(path: Path, station: PlannedStation, broker_port: int, buffer_folder: Path) -> None:
    """Writes the station's settings."""
    lines = [
        f"station = {_toml(station.name)}",
        f"broker_urls = [{_toml(f'mqtt://127.0.0.1:{broker_port}')}]",
        f"buffer_folder = {_toml(str(buffer_folder))}",
        "clock_wait_s = 0  # this machine's clock is taken as it is",
        "status_interval_s = 1",
        "disk_free_alarm_bytes = 0",
    ]
    for instrument in station.instruments:
        lines += ["", "[[instruments]]", f"name = {_toml(instrument.name)}"]
        lines += [f"{key} = {_toml(value, key)}" for key, value in instrument.source_settings.items()]
    path.write_text("\n".join(lines) + "\n")


def write_stations_file(path: Path, stations: Sequence[PlannedStation]) -> None:
    """Writes the server's registry."""
    lines = []
    for station in stations:
        lines += ["[[stations]]", f"name = {_toml(station.name)}"]
        for key in ("latitude_deg", "longitude_deg", "altitude_m"):
            if (value := getattr(station, key)) is not None:
                lines.append(f"{key} = {value}")
        for instrument in station.instruments:
            lines += ["", "[[stations.instruments]]", f"name = {_toml(instrument.name)}"]
            lines += [f"instrument_model = {_toml(instrument.instrument_model)}"]
        lines.append("")
    path.write_text("\n".join(lines))


def _toml(value: str | int | float, key: str = "") -> str:
    if isinstance(value, str) and key != "start_time":  # TOML has times of its own
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
