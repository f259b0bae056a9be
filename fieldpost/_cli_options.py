"""What all commands of `fieldpost` share: whom to ask, and how an error becomes one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fieldpost._channel import Tls
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
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def connected(server: str, certificates: Path | None) -> Generator[Client]:
    """A client of the server."""
    with Client(server, tls=None if certificates is None else _read_tls(certificates)) as client:
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
