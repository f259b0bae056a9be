"""Runs a small network on this machine: stations, broker, server, worker and Prefect, each in its own process.

Without --data: three stations with a simulated CL51 each, a day speeded up; one station loses its link for a while.
Fair weather at one, clouds and rain at the next, fog at the third, so that each is seen whatever the date.
With --data: the files of a folder, each recognised, as if their instruments measured them now.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from sqlalchemy import func, select

from demo.account import count_made_again, take_account
from demo.figures import draw_figures
from demo.heights import name_method
from demo.link import Link
from demo.plan import (
    PlannedStation,
    live,
    parse_day,
    plan_simulated,
    simulated_day,
    write_agent_settings,
    write_stations_file,
)
from demo.processes import Processes, free_port, program
from demo.progress import StationProgress, count_held, read_progress, show_until_done
from demo.recorded import UNRECOGNISED, plan_recorded
from demo.summary import print_heights, print_summary, write_summary
from demo.versions import put_to_work, wait_for_predictions
from fieldpost import Client
from fieldpost.errors import BrokenStateError, FieldpostError, InvalidRequestError
from server.settings import load_settings
from server.storage.store import Store
from server.storage.tables import observations

MARK = ".made-by-fieldpost-demo"
DAY_S = 30.0
"""How long the simulated day takes."""
LINK_CUT_S, LINK_MENDED_S = 12.0, 20.0


class Demo:
    """One run of the demo in its output folder."""

    def __init__(self, output: Path, stations: list[PlannedStation], console: Console) -> None:
        self.output = output
        self.stations = stations
        self.console = console
        self.processes = Processes(output / "logs")
        self.mqtt_port, self.grpc_port, self.prefect_port = free_port(1883), free_port(50051), free_port(4200)
        self.links: dict[str, Link] = {}
        self.settings = load_settings(
            data_folder=output / "server",
            archive_folder=str(output / "archive"),
            stations_file=output / "stations.toml",
            mqtt_urls=[f"embedded://127.0.0.1:{self.mqtt_port}"],
            grpc_address=f"127.0.0.1:{self.grpc_port}",
        )

    @property
    def environment(self) -> dict[str, str]:
        """For the server and the flows: the same settings, and a Prefect that keeps to this folder and machine."""
        settings = self.settings
        return {
            "FIELDPOST_DATA_FOLDER": str(settings.data_folder),
            "FIELDPOST_ARCHIVE_FOLDER": str(settings.archive),
            "FIELDPOST_STATIONS_FILE": str(settings.stations_file),
            "FIELDPOST_MQTT_URLS": f'["{settings.mqtt_urls[0]}"]',
            "FIELDPOST_GRPC_ADDRESS": settings.grpc_address,
            "PREFECT_HOME": str(self.output / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.prefect_port}/api",
            "PREFECT_SERVER_UI_API_URL": "/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_UI_V2_ENABLED": "false",  # it asks a host of its makers in the browser
            "PREFECT_LOGGING_EXTRA_LOGGERS": "fieldpost,server,flows",
            "DO_NOT_TRACK": "1",
        }

    def start(self) -> None:
        """Starts everything but the stations."""
        write_stations_file(self.output / "stations.toml", self.stations)
        self.processes.start("server", [program("fieldpost-server"), "run"], self.environment)
        prefect = [program("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(self.prefect_port)]
        self.processes.start("prefect", prefect, self.environment)
        self.processes.wait_for_port("server", self.mqtt_port)
        self.processes.wait_for_port("server", self.grpc_port)

    def start_station(self, station: PlannedStation, *, ends: bool) -> None:
        """Starts a station's agent; one that ends does so when everything is delivered."""
        name = station.name
        port = self.mqtt_port
        if station.loses_link:
            self.links[name] = Link(self.mqtt_port)
            port = self.links[name].port
        path = self.output / f"{name}.toml"
        write_agent_settings(path, station, port, self.output / "stations" / name)
        command = [program("fieldpost-agent"), "run", "--config", str(path)]
        self.processes.start(name, [*command, "--exit-when-delivered"] if ends else command)

    def look(self, client: Client) -> list[StationProgress]:
        """How far each station is."""
        held = count_held(client)
        return [
            read_progress(
                station,
                self.output / "stations" / station.name,
                held,
                is_done=self.processes.has_ended(station.name),
                is_link_cut=station.name in self.links and self.links[station.name].is_cut,
            )
            for station in self.stations
        ]

    def cut_and_mend(self, passed_s: float) -> None:
        """Cuts the links that are to be cut, and mends them."""
        for name, link in self.links.items():
            if not link.is_cut and LINK_CUT_S <= passed_s < LINK_MENDED_S:
                link.cut()
                self.console.print(f"[red]the link of {name} is cut[/red]; it goes on writing to its own disk")
            elif link.is_cut and passed_s >= LINK_MENDED_S:
                link.mend()
                self.console.print(f"[green]the link of {name} is back[/green]")

    def archive(self, store: Store) -> None:
        """Runs the archive flow, as a person would from a command line; Prefect shows the run and its artifacts."""
        self.processes.wait_for_port("prefect", self.prefect_port)
        measured = observations.c.measure_unix_nanos
        with store.read() as connection:
            instants = connection.execute(select(func.min(measured), func.max(measured))).one()
        first_day, last_day = (datetime.fromtimestamp((each or 0) / 1e9, UTC).date().isoformat() for each in instants)
        command = [sys.executable, "-m", "flows", "archive", "--first-day", first_day, "--last-day", last_day]
        self.processes.start("archive", command, self.environment)
        while not self.processes.has_ended("archive"):
            time.sleep(0.2)

    def close(self) -> None:
        """Ends everything."""
        self.processes.stop_all()
        for link in self.links.values():
            link.close()


def prepare_output(output: Path) -> None:
    """Makes an empty output folder; one of an earlier run is emptied, any other is left alone.

    Raises:
        InvalidRequestError: The folder holds something that no demo made.
    """
    if output.exists() and any(output.iterdir()) and not (output / MARK).exists():
        raise InvalidRequestError(
            f"expected {output} to be empty or of an earlier demo, but it holds something else",
            hint="choose another folder with --output",
        )
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARK).touch()


def run(options: argparse.Namespace, console: Console) -> int:
    """Runs the demo; the exit status is 1 where anything was lost."""
    started = time.monotonic()
    output: Path = options.output.absolute()
    prepare_output(output)
    if options.data is None:
        stations = plan_simulated(options.day or simulated_day(datetime.now(UTC)), 86_400 / DAY_S)
        console.print("Three stations measure a day in half a minute; one of them loses its link for a while.")
    else:
        stations = plan_recorded(options.data, output / "input")
        if not stations:
            raise InvalidRequestError(f"expected files in {options.data}, but there is none", hint="give a folder")
        console.print(describe_recorded(stations[0], options.data))
    with ExitStack() as parts:
        demo = Demo(output, stations, console)
        parts.callback(demo.close)
        demo.start()
        client = parts.enter_context(Client(demo.settings.grpc_address))
        versions = put_to_work(client)
        console.print(f"heights: {' beside '.join(f'{name_method(each)} (version {each})' for each in versions)}")
        for station in stations:
            demo.start_station(station, ends=True)
        show_until_done(console, lambda: demo.look(client), demo.cut_and_mend)
        console.print("everything is delivered; waiting for the last predictions, then archiving the day")
        store = Store(demo.settings.database, demo.settings.segments)
        parts.callback(store.close)
        wait_for_predictions(store)
        demo.archive(store)
        figures = draw_figures(stations, store, output / "figures", versions)
        with store.read() as connection:
            accounts = take_account(stations, output / "stations", connection, client, versions)
            made_again = count_made_again(connection)
        write_summary(output / "summary.json", accounts, made_again, time.monotonic() - started)
        print_summary(console, accounts)
        print_heights(console, accounts, made_again)
        console.print(f"pictures: {len(figures)} in {options.output / 'figures'}", highlight=False)
        console.print(f"bags:     {options.output / 'archive'}", highlight=False)
        console.print(f"summary:  {options.output / 'summary.json'}", highlight=False)
        if options.stay:
            stay(demo, console)
    return int(any(each.lost for each in accounts))


def describe_recorded(station: PlannedStation, folder: Path) -> str:
    """What was found in a folder of files."""
    models = Counter(each.instrument_model for each in station.instruments)
    unrecognised = models.pop(UNRECOGNISED, 0)
    found = ", ".join(f"{count} x {model}" for model, count in sorted(models.items()))
    rest = f"; {unrecognised} series of files that no instrument here writes" if unrecognised else ""
    return f"{models.total()} instruments recognised in {folder}: {found}{rest}."


def stay(demo: Demo, console: Console) -> None:
    """Leaves it running, the simulated instruments in the present, until Ctrl-C."""
    for station in demo.stations:
        if any(each.sky is not None for each in station.instruments):
            demo.start_station(live(station), ends=False)
    demo.processes.start("flows", [sys.executable, "-m", "flows", "serve"], demo.environment)
    console.print(
        f"\nrunning until Ctrl-C:\n"
        f"  predictions   fieldpost watch --server {demo.settings.grpc_address}\n"
        f"  flows         http://127.0.0.1:{demo.prefect_port}/deployments   run each from its form\n"
        f"  artifacts     http://127.0.0.1:{demo.prefect_port}/artifacts     what runs have shown\n"
        f"  a terminal    PREFECT_API_URL={demo.environment['PREFECT_API_URL']} {sys.executable} -m flows list\n"
        f"  MQTT          127.0.0.1:{demo.mqtt_port}",
        highlight=False,
    )
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    while not over.wait(1.0):
        for name in ("server", "prefect", "flows"):
            if demo.processes.has_ended(name):
                raise BrokenStateError(f"{name} ended by itself", hint=f"its log: {demo.processes.log(name)}")


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="a folder of your own instrument files")
    parser.add_argument(
        "--day", type=parse_day, metavar="YYYY-MM-DD", help="of the simulated instruments; default: yesterday"
    )
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="default: demo-output")
    parser.add_argument("--stay", action="store_true", help="leave everything running until Ctrl-C")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "140")))
    try:
        return run(options, console)
    except FieldpostError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        if error.hint:
            console.print(f"  {error.hint}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
