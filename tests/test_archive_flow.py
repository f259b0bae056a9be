"""The archive flow on a real Prefect server, and its command line."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_support import (
    DAY,
    hash_tree,
    ingest_all,
    ingest_telegrams,
    open_site,
    predict,
    recorded,
)
from PIL import Image
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from server_support import START_NANOS, make_observation

from fieldpost.errors import BrokenStateError
from fieldpost.simulation import SimulatedCl51
from flows.archive import archive
from flows.archiving.parameters import ArchiveParams
from flows.archiving.picture import PNG_BYTES_MAX, shrink

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """The settings of a server whose data folder is `data`."""
    file = tmp_path / "server.toml"
    file.write_text(f'data_folder = "{tmp_path / "data"}"\n')
    return file


@pytest.fixture
def telegrams(tmp_path: Path) -> Path:
    """A data folder with telegrams of a simulated CL51, and their predictions; and one of another instrument."""
    instrument = SimulatedCl51(seed=5)
    store = open_site(tmp_path / "data", instruments=("cl31", "cl51"))
    ingest_telegrams(store, 13, instrument="cl31")
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
def test_a_run_archives_copies_and_shows_what_it_did(prefect_api: str, telegrams: Path, settings_file: Path) -> None:
    copy = telegrams.parent / "copy"
    settings_file.write_text(f'{settings_file.read_text()}archive_copy_folder = "{copy}"\n')
    params = ArchiveParams(first_day=DAY, last_day=DAY, settings_file=settings_file)
    archive(params)
    store = open_site(telegrams)
    cl31, cl51 = (f"lindenberg/{name}/2025/2025-06-15.v1" for name in ("cl31", "cl51"))
    assert recorded(store) == [(cl31, 1), (cl51, 1)]
    assert hash_tree(copy) == hash_tree(telegrams / "archive")
    found = {each.key: each for each in run(read_artifacts("archive"))}
    assert set(found) == {
        "archive",
        "archive-summary",
        "archive-progress",
        "archive-lindenberg-cl51-2025-06-15-boundary-layer-height",
    }
    picture = found["archive-lindenberg-cl51-2025-06-15-boundary-layer-height"].data
    png = base64.b64decode(picture.partition("base64,")[2].rstrip(")\n"))
    assert png.startswith(b"\x89PNG")
    assert len(png) <= PNG_BYTES_MAX
    _, row = json.loads(found["archive"].data)
    expected = {"instrument": "cl51", "observations": 12, "predictions": 12, "verified hashes": 12}
    assert row.items() >= {**expected, "outcome": "archived", "path": cl51, "copy": "copied"}.items()
    assert float(found["archive-progress"].data) == 100
    assert "2 of 2 days" in found["archive-progress"].description
    assert "**2 days archived**" in found["archive-summary"].data
    assert "2 bags copied" in found["archive-summary"].data

    archive(params)
    newest = max(
        (each for each in run(read_artifacts("archive")) if each.key == "archive"), key=lambda each: each.created
    )
    (row,) = json.loads(newest.data)
    assert (row["day"], row["outcome"], row["observations"]) == ("2 days", "present", 13)
    store.close()


@pytest.mark.timeout(240)
def test_a_day_that_cannot_be_archived_fails_the_run_at_once_and_is_told(
    prefect_api: str, telegrams: Path, settings_file: Path
) -> None:
    for segment in (telegrams / "segments").iterdir():
        segment.write_bytes(segment.read_bytes()[:-100])
    began_s = time.monotonic()
    with pytest.raises(BrokenStateError, match=r"1 of 1 instrument-days .* lindenberg/cl51 of 2025-06-15: expected"):
        archive(ArchiveParams(first_day=DAY, last_day=DAY, instrument="cl51", settings_file=settings_file))
    assert time.monotonic() - began_s < 9  # damage is not retried: the first retry would wait 10 s
    newest = max(
        (each for each in run(read_artifacts("archive")) if each.key == "archive"), key=lambda each: each.created
    )
    assert '"outcome": "failed: expected' in newest.data
    payload = wait_for_event("fieldpost.archive.failed", "fieldpost.instrument.lindenberg.cl51")
    assert payload["day"] == "2025-06-15"
    assert "of segment" in str(payload["error"])


def wait_for_event(name: str, resource: str) -> dict[str, object]:
    """The payload of the newest event of this name, once Prefect's server shows it."""
    wanted = EventFilter(event=EventNameFilter(name=[name]), resource=EventResourceFilter(id=[resource]))
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        with get_client(sync_client=True) as client:
            body = {"filter": wanted.model_dump(mode="json")}
            found = client.request("POST", "/events/filter", json=body).json()["events"]
        if found:
            return dict(found[0]["payload"])
        time.sleep(0.1)
    pytest.fail(f"no event {name}")


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
        "from flows.archiving.picture import draw_pictures; from flows.site import open_site\n"
        "from flows.archiving.archivist import Archivist\n"
        "with open_site(None) as site:\n"
        "    (day,) = Archivist(site).find_days(date(2025, 6, 15), date(2025, 6, 15), instrument='cl51')\n"
        "    (picture,) = draw_pictures(DayReader(site.store, day))\n"
        "assert picture.png and 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "FIELDPOST_DATA_FOLDER": str(telegrams), "PREFECT_HOME": str(telegrams)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_picture_is_made_small_enough(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    small = shrink(buffer.getvalue(), 20_000)
    assert len(small) <= 20_000
    assert Image.open(io.BytesIO(small)).size[0] > 50
    assert shrink(small, 20_000) == small
