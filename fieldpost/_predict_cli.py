"""The command `fieldpost predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fieldpost._cli_options import Json, asks_server, progress_bar
from fieldpost._render_server import answer_lines
from fieldpost.client import Client
from fieldpost.errors import RejectedError


@asks_server
def predict(
    client: Client,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What is to be predicted.")
    ],
    analysis: Annotated[str, typer.Option(metavar="NAME", help="The question, for example boundary-layer-height.")],
    version: Annotated[int | None, typer.Option(min=1, help="The model version; else the active one.")] = None,
    instrument_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which instrument model wrote them, for example cl51.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict files at once; nothing of them is stored."""
    refused_count = 0
    done_bytes = 0
    rows = []
    with progress_bar("predicting", sum(path.stat().st_size for path in files)) as progress:
        payloads = (path.read_bytes() for path in files)
        answers = client.predict_each(analysis, payloads, version=version, instrument_model=instrument_model)
        for path, answer in zip(files, answers, strict=True):
            done_bytes += path.stat().st_size
            progress(done_bytes)
            rows.append((path, answer))
            refused_count += answer.failure is not None
    if as_json:
        for path, answer in rows:
            base = {"file": str(path), "analysis": answer.analysis, "model_version": answer.model_version}
            for row in [{"failure": str(answer.failure)}] if answer.failure else answer.rows():
                typer.echo(json.dumps({**base, **row}, allow_nan=False))
    else:
        for line in answer_lines(rows):
            typer.echo(line)
        for path, answer in rows:
            if answer.failure:
                typer.echo(f"refused: {path}: {answer.failure}", err=True)
    if refused_count:
        raise RejectedError(
            f"expected predictions of {len(files)} files, but {refused_count} were refused",
            hint="the reasons are above, or in the JSON",
        )
