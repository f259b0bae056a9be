"""The archive flow on a real Prefect server, its deployments, and its command line."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from archive_support import (
    DAY,
    ingest_all,
    ingest_telegrams,
    open_site,
    predict,
    recorded,
)
from PIL import Image
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.models.root import Settings
from server_support import START_NANOS, make_observation

from fieldpost.errors import BrokenStateError
from fieldpost.simulation import SimulatedCl51
from flows.__main__ import main
from flows.archive import archive
from flows.archiving.parameters import ArchiveParams
from flows.archiving.picture import PNG_BYTES_MAX, shrink
from flows.deployments.catalogue import CATALOGUE, NIGHTLY_ARCHIVE, to_prefect_yaml
from flows.deployments.serving import keep_operator_changes, to_deployment

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """The settings of a server whose data folder is `data`."""
    file = tmp_path / "server.toml"
    file.write_text(f'data_folder = "{tmp_path / "data"}"\n')
    return file


@pytest.fixture
def telegrams(tmp_path: Path) -> Path:
    """A data folder with telegrams of a simulated CL51, and their predictions."""
    instrument = SimulatedCl51(seed=5)
    store = open_site(tmp_path / "data")
    contents = [instrument.telegram(START_NANOS / 1e9 + 15 * each) for each in range(1, 13)]
    ingest_all(store, [make_observation(place, content) for place, content in enumerate(contents, 1)])
    predict(store, *range(1, 13))
    store.close()
    return tmp_path / "data"


async def read_artifacts(prefix: str) -> list[Any]:
    async with get_client() as client:
        key = ArtifactFilterKey(like_=f"{prefix}%")
        return await client.read_artifacts(artifact_filter=ArtifactFilter(key=key))


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


@pytest.mark.timeout(240)
def test_a_run_archives_and_shows_a_table_and_a_picture(prefect_api: str, telegrams: Path, settings_file: Path) -> None:
    archive(ArchiveParams(first_day=DAY, last_day=DAY, settings_file=settings_file))
    store = open_site(telegrams)
    assert recorded(store) == [("lindenberg/cl51/2025/2025-06-15.v1", 1)]
    store.close()
    picture, table = sorted(run(read_artifacts("archive")), key=lambda each: each.type)
    assert picture.key == "archive-lindenberg-cl51-2025-06-15-boundary-layer-height"
    png = base64.b64decode(picture.data.partition("base64,")[2].rstrip(")\n"))
    assert png.startswith(b"\x89PNG")
    assert len(png) <= PNG_BYTES_MAX
    for fact in ('"observations": 12', '"predictions": 12', '"verified hashes": 12', '"outcome": "archived"'):
        assert fact in table.data


@pytest.mark.timeout(240)
def test_a_day_that_cannot_be_archived_fails_the_run_at_once_and_is_named(
    prefect_api: str, telegrams: Path, settings_file: Path
) -> None:
    (segment,) = (telegrams / "segments").iterdir()
    segment.write_bytes(segment.read_bytes()[:-100])
    began_s = time.monotonic()
    with pytest.raises(BrokenStateError, match=r"1 of 1 instrument-days .* lindenberg/cl51 of 2025-06-15: expected"):
        archive(ArchiveParams(first_day=DAY, last_day=DAY, settings_file=settings_file))
    assert time.monotonic() - began_s < 9  # damage is not retried: the first retry would wait 10 s
    newest = max(run(read_artifacts("archive")), key=lambda each: each.updated)
    assert '"outcome": "failed: expected' in newest.data


@pytest.mark.timeout(240)
def test_a_scheduled_run_appears_and_what_an_operator_changed_survives(prefect_api: str) -> None:
    async def register_change_and_register_again() -> tuple[int, Any]:
        deployment_id = await to_deployment(NIGHTLY_ARCHIVE).aapply()
        async with get_client() as client:
            run_count = await _wait_for_scheduled_runs(client, deployment_id)
            (schedule,) = (await client.read_deployment(deployment_id)).schedules
            await client.update_deployment_schedule(
                deployment_id, schedule.id, active=False, schedule=CronSchedule(cron="5 4 * * *", timezone="UTC")
            )
            kept = await keep_operator_changes(to_deployment(NIGHTLY_ARCHIVE))
            assert await kept.aapply() == deployment_id
            return run_count, await client.read_deployment(deployment_id)

    run_count, deployment = run(register_change_and_register_again())
    assert run_count > 0
    (schedule,) = deployment.schedules
    assert (schedule.slug, schedule.active, schedule.schedule.cron) == ("nightly", False, "5 4 * * *")
    assert deployment.parameters == {"params": {"late_days": 30}}
    assert deployment.entrypoint == "flows.archive.archive"


async def _wait_for_scheduled_runs(client: Any, deployment_id: Any) -> int:
    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        runs = await client.read_flow_runs(deployment_filter=wanted)
        if runs:
            assert all(each.state.is_scheduled() and each.expected_start_time > datetime.now(UTC) for each in runs)
            assert {(each.expected_start_time.hour, each.expected_start_time.minute) for each in runs} == {(1, 30)}
            return len(runs)
        await asyncio.sleep(0.2)
    return 0


@pytest.mark.parametrize("arguments", [["archive"], ["serve"]])
def test_without_a_prefect_server_nothing_is_started(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main(arguments) == 2
    what, what_to_do = capsys.readouterr().err.splitlines()
    assert "expected the address of a Prefect server in PREFECT_API_URL" in what
    assert "--local" in what_to_do


@pytest.mark.parametrize("arguments", [["archive"], ["serve"]])
def test_a_prefect_server_that_does_not_answer_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    url = f"http://127.0.0.1:{free_port}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        assert main(arguments) == 75
    what, what_to_do = capsys.readouterr().err.splitlines()
    assert what.startswith(f"no Prefect server answers at {url}")
    assert "start it" in what_to_do


def test_a_day_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["archive", "--local", "--first-day", "2025-13-01"])
    assert caught.value.code == 2
    assert "expected a day as YYYY-MM-DD, but got '2025-13-01'" in capsys.readouterr().err


def test_a_local_run_needs_no_prefect_and_prints_its_table(tmp_path: Path, settings_file: Path) -> None:
    store = open_site(tmp_path / "data")
    ingest_telegrams(store, 1, 2, 3)
    program = (
        "import sys; from flows.__main__ import main; status = main(sys.argv[1:]); "
        "assert not {'prefect', 'torch'} & set(sys.modules); sys.exit(status)"
    )
    arguments = ["archive", "--local", "--first-day", str(DAY), "--last-day", str(DAY)]
    command = [sys.executable, "-c", program, *arguments, "--settings-file", str(settings_file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    header, line = done.stdout.splitlines()
    assert header.split()[:4] == ["station", "instrument", "day", "outcome"]
    assert line.split()[:6] == ["lindenberg", "cl51", "2025-06-15", "archived", "3", "0"]
    assert recorded(store) == [("lindenberg/cl51/2025/2025-06-15.v1", 1)]
    store.close()


def test_the_flow_and_its_pictures_need_no_torch(telegrams: Path) -> None:
    program = (
        "import sys; from datetime import date; import flows.archive; from flows.bags.day import DayReader\n"
        "from flows.archiving.picture import draw_pictures; from flows.site import open_archivist\n"
        "with open_archivist(None) as archivist:\n"
        "    (day,) = archivist.find_days(date(2025, 6, 15), date(2025, 6, 15))\n"
        "    (picture,) = draw_pictures(DayReader(archivist.store, day))\n"
        "assert picture.png and 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "FIELDPOST_DATA_FOLDER": str(telegrams), "PREFECT_HOME": str(telegrams)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_picture_is_made_small_enough(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (500, 900, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    small = shrink(buffer.getvalue(), 100_000)
    assert len(small) <= 100_000
    assert Image.open(io.BytesIO(small)).size[0] > 100
    assert shrink(small, 100_000) == small


def test_prefect_yaml_says_what_the_catalogue_says() -> None:
    file = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())
    assert file["deployments"] == [to_prefect_yaml(each) for each in CATALOGUE]
    assert file["pull"] == []


@pytest.mark.parametrize("definition", CATALOGUE, ids=lambda each: each.name)
def test_every_entrypoint_is_a_flow_that_takes_its_parameters(definition: Any) -> None:
    module, _, function = definition.entrypoint.partition(":")
    flow = getattr(importlib.import_module(module), function)
    flow.validate_parameters(dict(definition.parameters))


def test_prefect_reads_our_settings_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT / "deploy")
    settings = Settings()
    assert settings.api.url == "http://127.0.0.1:4200/api"
    assert set(settings.logging.extra_loggers or []) == {"fieldpost", "server", "flows"}
    assert (settings.server.analytics_enabled, settings.server.ui.v2_enabled) == (False, False)
    assert settings.server.ui.api_url == "/api"
    assert settings.runner.poll_frequency == 2
    assert settings.server.services.db_vacuum.enabled == {"events", "flow_runs"}
