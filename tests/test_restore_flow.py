"""The restore flow on a real Prefect server, its parameters, the room that it needs, and what it tells."""

from __future__ import annotations

import asyncio
import json
import shutil
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from archive_support import DAY, archive_day, ingest_telegrams, make_site, open_site, predict, recorded
from hypothesis import given
from hypothesis import strategies as st
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from pydantic import ValidationError
from restore_support import LATER_NANOS, make_archivist_of, prune_now, read_rows, sequences

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from flows.restore import restore
from flows.restoring import room
from flows.restoring.outcomes import RestoredDay, UnrestoredDay
from flows.restoring.parameters import RestoreParams
from flows.restoring.report import to_error, to_markdown, to_rows
from server.archive.bags import BagRecord, InstrumentDay

TWO_DAYS = {"first_day": DAY, "last_day": DAY}


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """The settings of a server of two instruments whose one day is in the archive alone."""
    store = open_site(tmp_path / "data", instruments=("cl31", "cl51"))
    site = make_site(store, tmp_path / "archive")
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    ingest_telegrams(store, 11, 12, instrument="cl31")
    for instrument in ("cl31", "cl51"):
        archive_day(make_archivist_of(site), LATER_NANOS, instrument)
    prune_now(site)
    assert len(recorded(store)) == 2
    store.close()
    file = tmp_path / "server.toml"
    file.write_text(f'data_folder = "{tmp_path / "data"}"\narchive_folder = "{tmp_path / "archive"}"\n')
    return file


def read_artifact(key: str) -> Any:
    """The newest one of this key."""

    async def read() -> Any:
        async with get_client() as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            return max(await client.read_artifacts(artifact_filter=wanted), key=lambda each: each.created)

    return asyncio.run(read())


@pytest.mark.timeout(240)
def test_a_run_brings_the_days_back_although_one_is_damaged_and_says_so(
    prefect_api: str, settings_file: Path, tmp_path: Path
) -> None:
    params = RestoreParams(**TWO_DAYS, settings_file=settings_file)
    restore(params.model_copy(update={"dry_run": True}))
    assert [(row["instrument"], row["observations"]) for row in json.loads(read_artifact("restore").data)] == [
        ("cl31", 2),
        ("cl51", 3),
    ]
    store = open_site(tmp_path / "data", instruments=("cl31", "cl51"))
    assert sequences(store) == []
    shutil.rmtree(tmp_path / "archive/lindenberg/cl31/2025/2025-06-15.v1")
    with pytest.raises(BrokenStateError, match="1 of 2 instrument-days could not be restored; first lindenberg/cl31"):
        restore(params)
    assert sequences(store) == [1, 2, 3]
    assert all(row["content"] for row in read_rows(store))
    failed, restored = json.loads(read_artifact("restore").data)
    assert failed["outcome"].startswith("failed: expected ")
    expected = {"outcome": "restored", "brought back": 3, "already there": 0, "predictions": 2, "from": "archive"}
    assert restored.items() >= expected.items()
    page = read_artifact("restore-summary").data
    assert "3 observations brought back" in page
    assert "1 day could not be restored" in page
    assert "2 of 2 days" in read_artifact("restore-progress").description
    store.close()

    restore(params.model_copy(update={"target": "folder", "folder": tmp_path / "out", "instrument": "cl51"}))
    assert len(list((tmp_path / "out/lindenberg/cl51/2025-06-15").glob("*.dat"))) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"last_day": date(2025, 6, 14)}, "expected a last day at or after 2025-06-15, but got 2025-06-14"),
        ({"target": "folder"}, "absolute path of a folder to restore to, but got none"),
        ({"target": "folder", "folder": "out"}, "absolute path of a folder to restore to, but got out"),
        ({"folder": "/srv/out"}, "expected no folder for the target 'hot store', but got /srv/out"),
    ],
)
def test_choices_that_do_not_fit_together_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        RestoreParams(**{**TWO_DAYS, **given}).target_folder()


@pytest.mark.parametrize("given", [{"keep_days": 0}, {"station": "Not a name"}, {"target": "tape"}, {"days": 3}])
def test_a_parameter_out_of_bounds_is_refused_before_a_run_is_made(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RestoreParams(**{**TWO_DAYS, **given})


def test_every_field_of_the_form_has_its_title_words_and_place() -> None:
    fields = RestoreParams.model_json_schema()["properties"]
    assert [each["position"] for each in fields.values()] == list(range(1, len(fields) + 1))
    assert all(each["title"] and each["description"] for each in fields.values())


def make_bags(*counts: int) -> list[BagRecord]:
    """Versions with so many observations of 10 bytes each, the newest first."""
    bags = [BagRecord(n, f"v{n}", "", count, 0, 0, 10 * count) for n, count in enumerate(counts, 1)]
    return bags[::-1]


@pytest.mark.parametrize(("counts", "expected"), [((5,), 50), ((5, 7), 70), ((5, 2), 70), ((5, 7, 1, 3), 100)])
def test_what_versions_hold_together_is_told_from_their_counts(counts: tuple[int, ...], expected: int) -> None:
    assert room.payload_bytes(make_bags(*counts)) == expected


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_a_disk_has_room_for_all_that_goes_there_or_none(free: int, first: int, second: int) -> None:
    def usage(_: Path) -> Any:
        return SimpleNamespace(total=200, free=free)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.shutil, "disk_usage", usage)
        needed = {Path("/tmp/never/made"): first, Path("/tmp"): second}
        if first + second > max(0, free - 10):
            with pytest.raises(TryAgainError, match="5% of the disk stay free"):
                room.check_room(needed)
        else:
            room.check_room(needed)


def make_day(day: date) -> InstrumentDay:
    return InstrumentDay(1, "lindenberg", "cl51", day, "cl51", None, None, None, None)


def test_the_page_says_what_is_to_be_done_next() -> None:
    restored = RestoredDay(make_day(DAY), (1,), 5, 1, 4, 500, 9, {"archive", "copy"})
    restored.unknown[("boundary-layer-height", 7)] = 3
    outcomes = [restored, UnrestoredDay(make_day(date(2025, 6, 16)), TryAgainError("no room"))]
    page = to_markdown(outcomes, None, LATER_NANOS, with_predictions=True)
    for words in (
        "1 instrument-day in the hot store: 5 observations brought back (500 bytes), 1 already there",
        "stay until 2025-07-26",
        "3 predictions of boundary-layer-height@7 stay in the archive",
        "Run the scrub flow",
        "lindenberg/cl51 of 2025-06-16: no room",
    ):
        assert words in page
    assert "predict them anew" in to_markdown(outcomes, None, LATER_NANOS, with_predictions=False)
    assert "`/srv/out`" in to_markdown(outcomes, Path("/srv/out"), LATER_NANOS, with_predictions=True)
    assert [row["outcome"] for row in to_rows(outcomes)] == ["restored", "failed: no room"]
    assert isinstance(to_error(outcomes), TryAgainError)
    assert to_error(outcomes[:1]) is None
