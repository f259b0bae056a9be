"""The command `fieldpost-server`."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldpost.errors import FieldpostError, TryAgainError
from fieldpost.logs import configure_logging
from server.settings import load_settings

app = typer.Typer(
    help="The Fieldpost server: takes observations over MQTT and gRPC, keeps them, predicts, and serves predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file of settings (docs/settings.md).")]
DataFolder = Annotated[Path | None, typer.Option(help="Where the server keeps everything.")]
Debug = Annotated[bool, typer.Option(help="Show where an error came from.")]


@app.command()
def run(
    config: Config = None,
    data_folder: DataFolder = None,
    grpc_address: Annotated[str | None, typer.Option(help="host:port to serve gRPC on.")] = None,
    mqtt_url: Annotated[
        list[str] | None, typer.Option(help="Broker to take observations from; may be given several times.")
    ] = None,
    stations_file: Annotated[Path | None, typer.Option(help="TOML registry of stations and instruments.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes for inference; 0 for none.")] = None,
    debug: Debug = False,
) -> None:
    """Serve until SIGTERM."""

    def work() -> None:
        from server.app import serve

        settings = load_settings(
            config,
            data_folder=data_folder,
            grpc_address=grpc_address,
            mqtt_urls=mqtt_url or None,
            stations_file=stations_file,
            workers=workers,
        )
        configure_logging(settings.log_level)
        _raise_file_limit()
        asyncio.run(serve(settings))

    _run(work, debug)


@app.command()
def register(
    stations_file: Annotated[Path, typer.Argument(help="TOML registry of stations and instruments.")],
    config: Config = None,
    data_folder: DataFolder = None,
    debug: Debug = False,
) -> None:
    """Add stations and instruments to the registry, or change them. A running server takes them at once."""

    def work() -> None:
        from server.ingest import registry
        from server.storage.store import Store

        settings = load_settings(config, data_folder=data_folder)
        stations = registry.read_stations_file(stations_file)
        store = Store(settings.database, settings.segments)
        try:
            changed = store.write(lambda connection: registry.register(connection, stations)).result()
        finally:
            store.close()
        typer.echo(f"{changed} instruments added or changed")

    _run(work, debug)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    config: Config = None,
    data_folder: DataFolder = None,
    debug: Debug = False,
) -> None:
    """Look at everything that the server stands on, and say what to do. Asks a running server, too.

    Run it as the server's user: it writes a little and takes it away, and makes the data folder where there is none.
    Exit status 1 where something is wrong.
    """

    def work() -> None:
        import json
        import time

        from server.operation.doctor import examine

        findings = []
        for finding in examine(load_settings(config, data_folder=data_folder), time.time()):
            findings.append(finding)
            for line in [json.dumps(finding.to_dict())] if as_json else finding.lines():
                typer.echo(line)
        failed, warned = (sum(each.level == level for each in findings) for level in ("FAIL", "WARN"))
        if not as_json:
            typer.echo(f"\n{failed} wrong, {warned} to look at, {len(findings) - failed - warned} good")
        if failed:
            raise typer.Exit(1)

    _run(work, debug)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    config: Config = None,
    data_folder: DataFolder = None,
    debug: Debug = False,
) -> None:
    """Let go of observations older than hot_days that are surely in the archive. A running server does so by itself."""

    def work() -> None:
        import time

        from fieldpost.errors import InvalidRequestError
        from server.archive.retention import prune as let_go
        from server.archive.shelf import open_shelf
        from server.storage.store import Store

        settings = load_settings(config, data_folder=data_folder)
        if not settings.hot_days:
            raise InvalidRequestError(
                "expected hot_days to say what is old, but it is 0: for ever", hint="set hot_days, e.g. to 60"
            )
        store = Store(settings.database, settings.segments)
        try:
            shelf, now = open_shelf(settings.archive, settings.archive_staging), time.time_ns()
            report = let_go(store, shelf, hot_days=settings.hot_days, now_unix_nanos=now, is_dry_run=dry_run)
        finally:
            store.close()
        for line in report.lines():
            typer.echo(line)

    _run(work, debug)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Whose it is to be.")],
    operator: Annotated[bool, typer.Option("--operator", help="For an operator; else for a reader.")] = False,
) -> None:
    """Print a new token, and the lines of the access file that let its bearer in."""
    from server.api.access_file import make_token

    secret, entry = make_token(name, "operators" if operator else "readers")
    typer.echo(secret)
    typer.echo("Give the line above to its bearer; it is nowhere else. For the file of access_file:\n", err=True)
    typer.echo(entry, err=True)


@app.command()
def broker(
    address: Annotated[str, typer.Option(help="Loopback address and port to listen on.")] = "127.0.0.1:1883",
    debug: Debug = False,
) -> None:
    """Run the embedded MQTT broker alone, until SIGTERM; for trying things out on one machine."""

    def work() -> None:
        from fieldpost.broker_url import parse_broker_url
        from server.mqtt.broker import EmbeddedBroker

        configure_logging()
        url = parse_broker_url(f"embedded://{address}", ["embedded"])
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        running = EmbeddedBroker(url.host, url.port)
        logging.getLogger(__name__).info("broker ready", extra={"address": address})
        while not stop.wait(1.0):  # in steps, so that signals are seen
            pass
        running.close()

    _run(work, debug)


def _raise_file_limit() -> None:
    """Each connection is a file, and a thousand of them are what a system allows by default."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(work: Callable[[], Any], debug: bool) -> None:
    """Runs a command; its errors become one line of what and one of what to do."""
    try:
        work()
    except (FieldpostError, OSError, ExceptionGroup) as caught:
        error = _first(caught)
        if debug or not isinstance(error, (FieldpostError, OSError)):
            raise
        typer.echo(f"fieldpost-server: {error}", err=True)
        if isinstance(error, FieldpostError) and error.hint:
            typer.echo(f"  {error.hint}", err=True)
        raise typer.Exit(75 if isinstance(error, TryAgainError) else 1) from error


def _first(error: Exception) -> Exception:
    """What ended the server: its tasks are a group, and so are their errors."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    """Runs the command line."""
    app(prog_name="fieldpost-server")


if __name__ == "__main__":
    main()
