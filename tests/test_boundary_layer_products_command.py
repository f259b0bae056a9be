"""The command that averages mixing heights, against a real server that holds a day of predictions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import xarray
from api_support import Running, Stubs, run
from sqlalchemy import Connection, insert, select
from typer.testing import CliRunner, Result

from fieldpost import Client, Outbox
from server.analyses import AnalysisResult, AnalysisVariable
from server.analyses.boundary_layer.products.command import app
from server.models.card import ModelKind, ModelState
from server.queries.predictions import NewPrediction, encode_result, write_predictions
from server.storage.tables import model_versions, observations

HEIGHT = "atmosphere_boundary_layer_thickness"
ON_THE_DAY = ("lindenberg/cl51", "--day", "2026-05-01")


async def store_a_day(running: Running) -> None:
    """One file whose version 1 has a height every minute of the day, 1000 m, but for an hour from 09:00."""
    with Client(running.address) as client:
        await asyncio.to_thread(client.send, Outbox("lindenberg").number([("cl51", b"a file", "2026-05-01T00:00Z")]))
    minutes = np.arange(1440)
    height_m = np.where(minutes // 60 == 9, np.nan, 1000.0).astype(np.float32)
    nanos = np.datetime64("2026-05-01", "ns").astype(np.int64) + minutes * 60 * 10**9
    variables = (AnalysisVariable(HEIGHT, "m", height_m), AnalysisVariable("quality_flag", "1", np.full(1440, 2.0)))
    content = encode_result(AnalysisResult(nanos, variables))

    def write(connection: Connection) -> None:
        row = {"analysis": "boundary-layer-height", "version": 1, "state": ModelState.ACTIVE}
        values = row | {"kind": ModelKind.BUILT_IN, "first_active_unix_nanos": 0}
        model_id = connection.execute(insert(model_versions).values(**values).returning(model_versions.c.id)).scalar()
        held = connection.execute(select(observations)).one()
        new = NewPrediction(held.id, model_id, held.instrument_id, held.measure_unix_nanos, 7, content, False)
        write_predictions(connection, [new])

    await asyncio.wrap_future(running.store.write(write))


def invoke(
    folder: Path, *calls: tuple[str, ...], before: Callable[[Running], Awaitable[None]] = store_a_day
) -> list[Result]:
    """Runs the command so many times against one server."""
    results: list[Result] = []

    async def scenario(running: Running, stubs: Stubs) -> None:
        await before(running)
        for words in calls:
            call = [*words, "--server", running.address]
            results.append(await asyncio.to_thread(CliRunner().invoke, app, call))

    run(folder, scenario)
    return results


def test_a_day_becomes_a_file_a_picture_and_lines(tmp_path: Path) -> None:
    out, picture = tmp_path / "day.nc", tmp_path / "day.png"
    files = ("-o", str(out), "--plot", str(picture))
    written, hourly, kept = invoke(
        tmp_path / "server",
        (*ON_THE_DAY, *files),
        (*ON_THE_DAY, "--every", "1h", "--json"),
        (*ON_THE_DAY, "--days", "2", "--cadence-s", "15", "--json"),
    )
    assert written.exit_code == 0, written.output
    assert f"{HEIGHT}: 138 of 144 cells have a value (incomplete 6, no_layer 6)" in written.stdout
    with xarray.open_dataset(out) as file:
        assert int(np.isfinite(file[HEIGHT]).sum()) == 138
        assert file.attrs["source"] == "model version boundary-layer-height@1 on observations of a cl51"
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in hourly.stdout.splitlines()]
    assert [row[HEIGHT] for row in rows[8:11]] == [1000.0, None, 1000.0]
    rows = [json.loads(line) for line in kept.stdout.splitlines()]
    assert len(rows) == 288
    assert rows[0][f"{HEIGHT}_missing_reason"] == ["incomplete", "missing"]


def test_what_cannot_be_asked_is_said_in_one_line_with_what_to_do(tmp_path: Path) -> None:
    results = invoke(
        tmp_path,
        ("lindenberg/cl51", "--day", "2026-05-01"),
        ("cl51", "--day", "2026-05-01", "--json"),
        ("lindenberg/other", "--day", "2026-05-01", "--json"),
        ("lindenberg/cl51", "--day", "2026-06-01", "--json"),
    )
    assert [each.exit_code for each in results] == [2, 2, 1, 1]
    for result, words in zip(
        results,
        ("--output, --plot or --json", "STATION/INSTRUMENT", "it has lindenberg/cl51", "on 2026-06-01"),
        strict=True,
    ):
        assert words in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("days", ["0", "x"])
def test_a_number_of_days_that_makes_no_sense_is_wrong_usage(days: str) -> None:
    assert CliRunner().invoke(app, [*ON_THE_DAY, "--days", days]).exit_code == 2


def test_without_an_active_version_one_has_to_be_named(tmp_path: Path) -> None:
    async def nothing(running: Running) -> None:
        pass

    (result,) = invoke(tmp_path, (*ON_THE_DAY, "--json"), before=nothing)
    assert result.exit_code == 1 and "--version" in result.stderr
