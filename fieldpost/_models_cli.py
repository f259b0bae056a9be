"""The commands `fieldpost models ...`: submitting models, and saying which predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fieldpost._cli_options import Analysis, Json, asks_server, progress_bar
from fieldpost._render import message_json
from fieldpost._render_server import model_lines, model_table
from fieldpost.client import Client
from fieldpost.errors import InvalidRequestError
from fieldpost.v1.model_pb2 import Model

models_app = typer.Typer(
    name="models",
    help="Submits models, shows them, and says which of them predict.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Version: TypeAlias = Annotated[
    str, typer.Argument(metavar="ANALYSIS@VERSION", help="As `fieldpost models list` prints it, for example burns@2.")
]
Reason: TypeAlias = Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who ask later.")]


def _parse(name: str) -> tuple[str, int]:
    analysis, _, version = name.partition("@")
    if not analysis or not version.isdecimal():
        raise InvalidRequestError(
            f"expected a model version such as burns@2, but got {name!r}", hint="`fieldpost models list` prints them"
        )
    return analysis, int(version)


def _print(model: Model, as_json: bool) -> None:
    for line in [message_json(model)] if as_json else model_lines(model):
        typer.echo(line)


@models_app.command()
@asks_server
def submit(
    client: Client,
    model: Annotated[Path, typer.Argument(metavar="MODEL", exists=True, dir_okay=False, help="The ONNX file.")],
    manifest: Annotated[
        Path, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="What goes in and comes out, TOML.")
    ],
    sample: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A payload to try it on; servers want one."),
    ] = None,
    sample_instrument_model: Annotated[
        str, typer.Option(metavar="NAME", help="What wrote the sample, where the manifest names several.")
    ] = "",
    provenance: Annotated[
        str, typer.Option(metavar="TEXT", help="Where the model comes from: data, code, metrics.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Submit an ONNX model, and wait until it has been tried. It predicts nothing yet.

    The same model and manifest again get the version that they have.
    """
    with progress_bar("submitting", model.stat().st_size) as progress:
        done = client.models.submit(
            model,
            manifest=manifest,
            sample=sample,
            sample_instrument_model=sample_instrument_model,
            provenance=provenance,
            progress=progress,
        )
    if as_json:
        typer.echo(message_json(done.model))
        return
    name = f"{done.model.analysis}@{done.model.model_version}"
    state = "was there before" if done.is_known else "is ready"
    typer.echo(f"{name} {state}; next: fieldpost models shadow {name}, or fieldpost models activate {name}")


@models_app.command("list")
@asks_server
def list_models(client: Client, analysis: Analysis = None, as_json: Json = False) -> None:
    """Print the model versions."""
    found = client.models.list(analysis or "")
    for line in map(message_json, found) if as_json else model_table(found):
        typer.echo(line)


@models_app.command()
@asks_server
def show(client: Client, version: Version, as_json: Json = False) -> None:
    """Print everything about a version: its trial, what happened to it, how it compares with the active one."""
    _print(client.models.get(*_parse(version)), as_json)


def _state_command(name: str, help_text: str, change: Callable[[Client], Callable[..., Model]]) -> None:
    @models_app.command(name, help=help_text)
    @asks_server
    def command(client: Client, version: Version, reason: Reason = "", as_json: Json = False) -> None:
        model = change(client)(*_parse(version), reason=reason)
        if as_json:
            typer.echo(message_json(model))
        else:
            for line in model_table([model]):
                typer.echo(line)


_state_command(
    "shadow",
    "Let a version predict beside the active one; what it says is compared, not served.",
    lambda client: client.models.shadow,
)
_state_command(
    "activate",
    "Let a version predict everything that comes, once it has been proved on its sample.",
    lambda client: client.models.activate,
)
_state_command(
    "retire",
    "Let a version predict no more. What it predicted while it was active is still served.",
    lambda client: client.models.retire,
)


@models_app.command("roll-back")
@asks_server
def roll_back(
    client: Client,
    analysis: Annotated[str, typer.Argument(metavar="ANALYSIS", help="For example boundary-layer-height.")],
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Make the version of an analysis active that was active before."""
    model = client.models.roll_back(analysis, reason=reason)
    for line in [message_json(model)] if as_json else model_table([model]):
        typer.echo(line)


@models_app.command()
@asks_server
def restrict(
    client: Client,
    version: Version,
    station: Annotated[list[str] | None, typer.Option(metavar="NAME", help="For this station; repeatable.")] = None,
    instrument: Annotated[
        list[str] | None, typer.Option(metavar="STATION/NAME", help="For this instrument; repeatable.")
    ] = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="For all of them again.")] = False,
    as_json: Json = False,
) -> None:
    """Let a version predict for some stations or instruments only."""
    if everywhere == bool(station or instrument):
        raise InvalidRequestError("expected --station or --instrument, or --everywhere, but got none or both")
    model = client.models.restrict(*_parse(version), stations=station or (), instruments=instrument or ())
    _print(model, as_json)
