"""What all commands of `fieldpost` share: whom to ask, and how an error becomes one line and an exit status."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from fieldpost._channel import Tls
from fieldpost._times import parse_moment
from fieldpost.client import Client
from fieldpost.errors import FieldpostError, InvalidRequestError, TryAgainError

EXIT_FAILED = 1
EXIT_WRONG_USAGE = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a script may try the same later
EXIT_INTERRUPTED = 130

DEFAULT_SERVER = "127.0.0.1:50051"

Server: TypeAlias = Annotated[
    str, typer.Option("--server", envvar="FIELDPOST_SERVER", metavar="HOST:PORT", help="The server to ask.")
]
Certificates: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        envvar="FIELDPOST_CERTIFICATES",
        metavar="FOLDER",
        help="Connect by TLS. The folder holds ca.crt, the server's authority, and, where the server wants to know who "
        "asks, client.crt and client.key.",
    ),
]
TokenFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        envvar="FIELDPOST_TOKEN_FILE",
        metavar="FILE",
        help="Holds the token that the server's operator gave you; only with --certificates.",
    ),
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Station: TypeAlias = Annotated[str | None, typer.Option(metavar="NAME", help="Only this station.")]
Instrument: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this instrument; needs --station.")
]
Analysis: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this analysis, for example boundary-layer-height.")
]
Since: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Measured at or after: 2h (ago), 30min, 1d, 2025-06-01, 2025-06-01T12:00Z."),
]
Until: TypeAlias = Annotated[str | None, typer.Option(metavar="TIME", help="Measured before: the same forms.")]

_SHARED = {
    "server": (Server, DEFAULT_SERVER),
    "certificates": (Certificates, None),
    "token_file": (TokenFile, None),
    "debug": (Debug, False),
}


def asks_server(command: Callable[..., None]) -> Callable[..., None]:
    """Makes a command of a function that takes a client first: adds the options that say whom to ask."""

    @functools.wraps(command)
    def run(**words: Any) -> None:
        server, certificates, token_file, debug = (words.pop(name) for name in _SHARED)
        with one_line_for_errors(debug), connected(server, certificates, token_file) as client:
            command(client, **words)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _SHARED.items()
    ]
    parameters = [*(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own), *shared]
    del run.__wrapped__  # Typer would look at the function inside
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@contextmanager
def connected(server: str, certificates: Path | None, token_file: Path | None = None) -> Generator[Client]:
    """A client of the server."""
    tls = None if certificates is None else _read_tls(certificates)
    token = None if token_file is None else _read_token(token_file)
    with Client(server, tls=tls, token=token) as client:
        yield client


def _read_tls(folder: Path) -> Tls:
    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.exists() else None

    root = read("ca.crt")
    if root is None:
        raise InvalidRequestError(
            f"expected the server's authority in {folder / 'ca.crt'}, but there is no such file",
            hint="ask the server's operator for it",
        )
    return Tls(root_certificates=root, certificate=read("client.crt"), private_key=read("client.key"))


def _read_token(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(
            f"expected a token in {path}, but it cannot be read: {error}", hint="ask the server's operator for one"
        ) from error


def moments(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Both instants as people typed them."""
    now = datetime.now(UTC)
    first, last = (None if text is None else parse_moment(text, now) for text in (since, until))
    return first, last


@contextmanager
def one_line_for_errors(debug: bool) -> Generator[None]:
    """Turns errors into one line that says what, one that says what to do, and an exit status."""
    try:
        yield
        sys.stdout.flush()  # so that a reader that went away is noticed here, and not at the interpreter's end
    except FieldpostError as error:
        if debug:
            raise
        typer.echo(f"fieldpost: {error}", err=True)
        typer.echo(error.hint or "--debug shows where it came from", err=True)
        raise typer.Exit(_exit_status(error)) from error
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:
        raise typer.Exit(EXIT_INTERRUPTED) from error


def _exit_status(error: FieldpostError) -> int:
    if isinstance(error, TryAgainError):
        return EXIT_TRY_AGAIN
    return EXIT_WRONG_USAGE if isinstance(error, InvalidRequestError) else EXIT_FAILED


@contextmanager
def progress_bar(label: str, total_bytes: int) -> Generator[Callable[[int], None]]:
    """A bar on standard error, to be told how many bytes are done; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done_bytes: None
        return
    with typer.progressbar(length=max(total_bytes, 1), label=label, file=sys.stderr) as bar:
        yield lambda done_bytes: bar.update(done_bytes - bar.pos)
