"""The scrub flow on a real Prefect server: what an operator sees where one bag was mended, and one cannot be."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from archive_support import DAY, archive_day, ingest_all, ingest_telegrams, make_archivist
from archive_support import open_site as open_store
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from server_support import make_observation
from sqlalchemy import delete, select

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.scrub import is_storage_away, scrub
from flows.scrubbing.parameters import ScrubParams
from flows.scrubbing.records import RecordedBag
from flows.scrubbing.scrubber import ScrubbedBag, UnreadBag
from server.storage.store import Store
from server.storage.tables import bags, observations

MENDED = "lindenberg/cl51/2025/2025-06-15.v1"
LOST = "lindenberg/cl31/2025/2025-06-15.v1"
CSV = "data/observations.csv"


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """A server with an archive of two bags and its copy; one bag is damaged on one side, the other on both."""
    store = open_store(tmp_path / "data", instruments=("cl51", "cl31"))
    ingest_telegrams(store, 1, 2, 3)
    ingest_all(store, [make_observation(1, instrument="cl31", epoch="ab" * 16)])
    for instrument in ("cl51", "cl31"):
        archive_day(make_archivist(store, tmp_path / "data" / "archive"), instrument=instrument)
    forget(store, "ab" * 16)
    store.close()
    shutil.copytree(tmp_path / "data" / "archive", tmp_path / "copy")
    for side, path in (("data/archive", MENDED), ("data/archive", LOST), ("copy", LOST)):
        (tmp_path / side / path / CSV).write_text("damaged")
    file = tmp_path / "server.toml"
    file.write_text(f'data_folder = "{tmp_path / "data"}"\narchive_copy_folder = "{tmp_path / "copy"}"\n')
    return file


def forget(store: Store, epoch: str) -> None:
    """The observations of an instrument are pruned."""
    instrument_id = select(bags.c.instrument_id).where(bags.c.path == LOST).scalar_subquery()
    pruned = delete(observations).where(observations.c.instrument_id == instrument_id)
    store.write(lambda connection: connection.execute(pruned)).result(10)


async def read_artifacts() -> dict[str, Any]:
    async with get_client() as client:
        key = ArtifactFilterKey(like_="scrub%")
        return {each.key: each for each in await client.read_artifacts(artifact_filter=ArtifactFilter(key=key))}


async def wait_for_events(name: str) -> list[Any]:
    async with get_client() as client:
        for _ in range(50):
            answer = await client.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}})
            if events := answer.json()["events"]:
                return list(events)
            await asyncio.sleep(0.1)
    return []


@pytest.mark.timeout(240)
def test_a_run_mends_what_it_can_tells_of_the_rest_and_fails_with_what_to_do(
    prefect_api: str, settings_file: Path, tmp_path: Path
) -> None:
    began_s = time.time()
    with pytest.raises(BrokenStateError) as caught:
        scrub(ScrubParams(settings_file=settings_file))
    assert str(caught.value).startswith(f"1 of 2 bags cannot be trusted: {LOST}: what was found in {tmp_path}")
    assert str(caught.value).endswith(
        "what to do: the store holds nothing of the day: put a whole bag back from a backup, then run scrub again"
    )
    assert (tmp_path / "data/archive" / MENDED / CSV).read_bytes() == (tmp_path / "copy" / MENDED / CSV).read_bytes()

    artifacts = asyncio.run(read_artifacts())
    summary, table = artifacts["scrub"].data, artifacts["scrub-found"].data
    for line in ("| bags read | 2 on both shelves |", "| damaged still | 1 |", "| repaired | 1 |"):
        assert line in summary
    assert f"**{LOST}**" in summary
    assert '"outcome": "repaired"' in table
    assert '"outcome": "DAMAGED"' in table
    assert artifacts["scrub-progress"].data == 100
    events = asyncio.run(wait_for_events("fieldpost.scrub.damaged"))
    assert [each["resource"]["prefect.resource.id"] for each in events] == [f"fieldpost.bag.{LOST}"]
    assert "put a whole bag back" in events[0]["payload"]["advice"]

    store = open_store(tmp_path / "data", instruments=("cl51", "cl31"))
    with store.read() as connection:
        damage = dict(connection.execute(select(bags.c.path, bags.c.damage)).all())
        checked = dict(connection.execute(select(bags.c.path, bags.c.check_unix_nanos)).all())
    store.close()
    assert (damage[MENDED], CSV in damage[LOST]) == ("", True)
    assert checked[MENDED] > began_s * 1e9


def test_a_run_ends_where_the_storage_is_away_and_not_for_a_single_bag() -> None:
    unread = UnreadBag(RecordedBag(1, 1, DAY, 1, LOST, "", 1, 1, 1, None, "", False), TryAgainError("no answer"))
    read = ScrubbedBag(unread.bag, 1, 1)
    assert is_storage_away([read, unread, unread, unread])
    assert not is_storage_away([unread, unread, read, unread])
    assert not is_storage_away([unread, unread])
