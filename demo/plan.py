"""What the demo is to show: its stations and instruments, and the files that set them up. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

SIMULATED_INTERVAL_S = 15.0
SIMULATED_COUNT = 5760
"""A day."""


@dataclass(frozen=True, slots=True)
class PlannedInstrument:
    """An instrument of the demo.

    Attributes:
        name: Its name.
        instrument_model: As the server's registry has it.
        source_settings: The lines of its table in the station's settings.
        seed: Of the simulated sky; None for recorded files.
        written_count: Observations that it hands over, where that is known beforehand.
    """

    name: str
    instrument_model: str
    source_settings: dict[str, str | int | float]
    seed: int | None = None
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


def plan_simulated(start: datetime, speed_up: float) -> list[PlannedStation]:
    """Three stations with a simulated CL51 each; the second one loses its link."""
    sites = [("lindenberg", 52.21, 14.13, 112.0), ("payerne", 46.81, 6.94, 491.0), ("magurele", 44.34, 26.03, 77.0)]
    return [
        PlannedStation(
            name,
            [
                PlannedInstrument(
                    "cl51",
                    "cl51",
                    {
                        "source": "simulated",
                        "seed": seed,
                        "interval_s": SIMULATED_INTERVAL_S,
                        "start_time": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        "speed_up": speed_up,
                        "count": SIMULATED_COUNT,
                    },
                    seed=seed,
                    written_count=SIMULATED_COUNT,
                )
            ],
            latitude_deg,
            longitude_deg,
            altitude_m,
            loses_link=seed == 2,
        )
        for seed, (name, latitude_deg, longitude_deg, altitude_m) in enumerate(sites, 1)
    ]


def live(station: PlannedStation) -> PlannedStation:
    """The same station, measuring in the present: what `make up` goes on with after its day."""
    instruments = [
        PlannedInstrument(
            each.name,
            each.instrument_model,
            {"source": "simulated", "seed": each.seed, "interval_s": SIMULATED_INTERVAL_S},
            seed=each.seed,
        )
        for each in station.instruments
        if each.seed is not None
    ]
    return PlannedStation(station.name, instruments, station.latitude_deg, station.longitude_deg, station.altitude_m)


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
