"""The backfill flow on a real Prefect server, with a real worker process: what a person sees of it."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from archive_support import DAY, ingest_all, open_site, predict
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from server_support import START_NANOS, make_observation

from fieldpost.errors import UnknownModelError
from fieldpost.simulation import SimulatedCl51
from flows.archiving.picture import PNG_BYTES_MAX
from flows.backfill import backfill
from flows.backfilling import run
from flows.backfilling.parameters import BackfillParams
from server.analyses import find_analyses
from server.analyses.boundary_layer import GRADIENT, NAME, WAVELET
from server.models import catalogue
from server.models.card import ModelState
from server.storage.tables import model_versions
from server.workers.worker_pool import PoolPlan, open_pool

COUNT = 24


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """The settings of a server with telegrams, of which the active version has predicted the most."""
    instrument = SimulatedCl51(seed=1)
    store = open_site(tmp_path / "data")
    store.write(lambda connection: catalogue.register_built_in(connection, find_analyses())).result(10)
    for version, state in ((None, ModelState.READY), (GRADIENT, ModelState.ACTIVE)):
        change = model_versions.update().values(state=state)
        if version is not None:
            change = change.where(model_versions.c.version == version)
        store.write(lambda connection, change=change: connection.execute(change)).result(10)
    contents = [instrument.telegram(START_NANOS / 1e9 + 15 * each) for each in range(1, COUNT + 1)]
    ingest_all(store, [make_observation(place, content) for place, content in enumerate(contents, 1)])
    predict(store, *range(1, COUNT - 1), version=GRADIENT)
    store.close()
    file = tmp_path / "server.toml"
    file.write_text(f'data_folder = "{tmp_path / "data"}"\n')
    return file


def read_artifacts() -> dict[str, Any]:
    async def read() -> list[Any]:
        async with get_client() as client:
            key = ArtifactFilterKey(like_="backfill%")
            return await client.read_artifacts(artifact_filter=ArtifactFilter(key=key))

    found = sorted(asyncio.run(read()), key=lambda each: each.created)
    return {each.key: each.data for each in found}  # the newest of each key


@pytest.mark.timeout(240)
def test_a_run_shows_its_plan_its_progress_its_counts_and_before_and_after(
    prefect_api: str, settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind all others, among other tests, a worker process would wait for minutes to start.
    monkeypatch.setattr(run, "behind_all_others", lambda processes, device: open_pool("local", PoolPlan(processes)))
    chosen = {"analysis": NAME, "model_version": WAVELET, "first_day": DAY, "last_day": DAY, "processes": 1}
    params = BackfillParams.model_validate({**chosen, "settings_file": settings_file})
    backfill(params.model_copy(update={"dry_run": True}))
    shown = read_artifacts()
    assert set(shown) == {"backfill-plan", "backfill-pieces"}
    to_do = f"{COUNT} observations to be predicted by {NAME}@{WAVELET}, in 1 day of instruments"
    assert to_do in shown["backfill-plan"]
    backfill(params)
    shown = read_artifacts()
    picture = shown["backfill-lindenberg-cl51"]
    assert shown["backfill-progress"] == 100.0
    assert f'{{"what": "observations predicted", "count": {COUNT}}}' in shown["backfill-counts"]
    assert f'"pairs": {COUNT - 3}' in shown["backfill-comparison"]  # one of the active version's has no height
    assert '"only this version": 1' in shown["backfill-comparison"]
    assert f"`fieldpost models activate {NAME}@{WAVELET}` puts it to work" in shown["backfill"]
    png = base64.b64decode(picture.partition("base64,")[2].rstrip(")\n"))
    assert png.startswith(b"\x89PNG")
    assert len(png) <= PNG_BYTES_MAX
    with pytest.raises(UnknownModelError, match=f"expected a version of '{NAME}', but got 99: its versions are 1 "):
        backfill(params.model_copy(update={"model_version": 99}))
