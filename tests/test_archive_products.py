"""Products in a bag: what an analysis makes of a day lies beside its predictions, and is never taken for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from archive_support import (
    DAY,
    HEIGHT,
    NOW_NANOS,
    archive_day,
    fail_prediction,
    ingest_telegrams,
    make_archivist,
    open_site,
    predict,
    write_prediction,
)
from server_support import EPOCH, START_NANOS
from sqlalchemy import update

from flows.archiving.archivist import Archivist
from server.analyses import AnalysisResult, AnalysisVariable
from server.archive.bag_contents import read_contents
from server.archive.bags import day_to_unix_nanos
from server.queries.predictions import encode_result
from server.storage.store import Store
from server.storage.tables import predictions

PRODUCTS = "products-boundary-layer-height-v{version}-{cell}.nc"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def archivist(store: Store, tmp_path: Path) -> Archivist:
    return make_archivist(store, tmp_path / "archive")


def test_ten_minute_and_hourly_heights_lie_beside_the_predictions(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, *range(1, 81))
    predict(store, *range(1, 81), version=1)
    predict(store, *range(1, 41), version=1001)  # one that was trained here: no built-in version
    bag = Path(archivist.site.shelf.url) / archive_day(archivist).record.path
    for version, count in ((1, 79), (1001, 39)):  # sequence 3 has no height
        for cell in ("10min", "1h"):
            with netCDF4.Dataset(bag / "data" / PRODUCTS.format(version=version, cell=cell)) as file:
                assert file.model_version == str(version)
                assert file.title.endswith(f"lindenberg/cl51, {DAY}")
                assert int(np.sum(file[f"{HEIGHT}_in_any_sky_count"][:])) == count
                assert float(file["latitude"][...]) == 52.21


def test_cells_of_provisional_predictions_say_so(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, *range(1, 81))
    predict(store, *range(1, 81))
    provisional = update(predictions).where(predictions.c.measure_unix_nanos < START_NANOS + 30 * 10**9)
    store.write(lambda connection: connection.execute(provisional.values(is_provisional=True))).result(10)
    bag = Path(archivist.site.shelf.url) / archive_day(archivist).record.path
    with netCDF4.Dataset(bag / "data" / PRODUCTS.format(version=1, cell="10min")) as file:
        assert int(np.sum(file["is_provisional"][:])) == 1


def test_the_reader_of_a_bag_takes_products_for_no_predictions(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2, 3)
    record = archive_day(archivist).record
    contents = read_contents(Path(archivist.site.shelf.url) / record.path, record.manifest_sha256)
    predict_s = (NOW_NANOS - day_to_unix_nanos(DAY)) / 1e9
    for sequence in (1, 2, 3):
        assert contents.has_prediction("boundary-layer-height", 1, EPOCH, sequence, predict_s)


def test_a_day_with_products_is_not_archived_again(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    predict(store, 1, 2)
    assert archive_day(archivist).status == "archived"
    assert archive_day(archivist, NOW_NANOS + 10**9).status == "present"


def test_an_analysis_that_makes_no_products_and_one_that_only_failed_have_none(
    archivist: Archivist, store: Store
) -> None:
    ingest_telegrams(store, 1, 2)
    result = AnalysisResult(np.array([5]), (AnalysisVariable("height", "m", np.array([1.5], np.float32)),))
    write_prediction(store, 1, encode_result(result), analysis="a-users-model")
    fail_prediction(store, 2, "cannot be decoded")
    bag = Path(archivist.site.shelf.url) / archive_day(archivist).record.path
    assert not list(bag.glob("data/products-*"))
