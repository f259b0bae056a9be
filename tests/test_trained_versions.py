"""Versions that were trained at a network: numbered, kept, loaded, activated and gone back from like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from server_support import open_store

from fieldpost.errors import BrokenStateError, InvalidRequestError
from server.analyses import find_analyses, load_analysis
from server.analyses.boundary_layer.learned.network import LayerNetwork, NetworkConfig
from server.analyses.boundary_layer.learned.weights import Weights
from server.models import catalogue
from server.models.card import ModelKind, ModelState, Restriction
from server.models.files import ModelFiles
from server.models.trained import FIRST_TRAINED_VERSION, register_trained
from server.storage.store import Store
from server.workers.jobs import ModelKey, ModelPackage
from server.workers.protocol import WorkerKind

ANALYSIS = "boundary-layer-height"
NOW = 1_750_000_000_000_000_000


class Site:
    """A store with its built-in versions and the folder of models."""

    def __init__(self, folder: Path, database_url: str = "") -> None:
        self.store: Store = open_store(folder, database_url=database_url)
        self.files = ModelFiles(folder / "models")
        self.store.write(lambda connection: catalogue.register_built_in(connection, find_analyses())).result(10)

    def register(self, content: bytes, analysis: str = ANALYSIS) -> ModelKey:
        def add(connection: catalogue.Connection) -> ModelKey:
            return register_trained(connection, self.files, analysis, content, {"seed": 3}, "flows.retrain", NOW)

        return self.store.write(add).result(10)

    def change(self, version: int, state: ModelState) -> None:
        key = ModelKey(ANALYSIS, version)
        self.store.write(lambda c: catalogue.change_state(c, key, state, "anna", "", NOW)).result(10)

    def active(self) -> ModelPackage:
        with self.store.read() as connection:
            version = catalogue.get_row(connection, ModelKey(ANALYSIS, 0)).version
            return catalogue.make_package(connection, self.files, ModelKey(ANALYSIS, version))


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    site = Site(tmp_path, database_url)
    yield site
    site.store.close()


@pytest.fixture
def small_site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.close()


def make_weights(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    return Weights(LayerNetwork(NetworkConfig((4, 4, 4), 4))).to_bytes()


def test_trained_versions_are_numbered_where_no_release_numbers_its_own(site: Site) -> None:
    assert max(card.version for card in find_analyses()) < FIRST_TRAINED_VERSION
    assert site.register(make_weights(0)) == ModelKey(ANALYSIS, 1001)
    assert site.register(make_weights(1)) == ModelKey(ANALYSIS, 1002)
    with site.store.read() as connection:
        row = catalogue.get_row(connection, ModelKey(ANALYSIS, 1001))
        (event,) = catalogue.list_events(connection, row.id)
    assert (row.kind, row.state, row.submitter) == (ModelKind.TRAINED, ModelState.READY, "flows.retrain")
    assert json.loads(row.provenance) == {"seed": 3}
    assert (event.reason, event.event_unix_nanos) == ("trained", NOW)


def test_the_same_weights_again_get_the_version_that_they_have(site: Site) -> None:
    assert site.register(make_weights()) == site.register(make_weights())
    with site.store.read() as connection:
        assert len(catalogue.list_rows(connection, ANALYSIS)) == len(find_analyses()) + 1


def test_an_upgrade_of_fieldpost_leaves_trained_versions_and_the_active_one_alone(small_site: Site) -> None:
    small_site.register(make_weights())
    small_site.change(1001, ModelState.ACTIVE)
    small_site.store.write(lambda connection: catalogue.register_built_in(connection, find_analyses())).result(10)
    assert small_site.active().key == ModelKey(ANALYSIS, 1001)


def test_a_worker_is_given_the_weights_and_loads_them(small_site: Site) -> None:
    content = make_weights()
    small_site.register(content)
    small_site.change(1001, ModelState.ACTIVE)
    package = small_site.active()
    assert (package.key.version, package.content, package.is_trained) == (1001, content, True)
    loaded = load_analysis(package.key.analysis, package.key.version, package.content)
    assert (loaded.name, loaded.version) == (ANALYSIS, 1001)


def test_what_came_with_fieldpost_has_no_content(small_site: Site) -> None:
    package = small_site.active()
    assert (package.content, package.is_trained) == (b"", False)


@pytest.mark.parametrize("state", [ModelState.ACTIVE, ModelState.SHADOW])
def test_a_version_at_work_runs_where_built_in_ones_run(small_site: Site, state: ModelState) -> None:
    small_site.register(make_weights())
    small_site.change(1001, state)
    with small_site.store.read() as connection:
        (card,) = [each for each in catalogue.find_at_work(connection) if each.key.version == 1001]
    built_in = find_analyses()[0]
    assert WorkerKind(card.kind) is WorkerKind.BUILT_IN
    assert (card.instrument_models, card.trial.max_batch_count) == (built_in.instrument_models, built_in.max_batch)


def test_going_back_finds_the_version_that_came_with_fieldpost(site: Site) -> None:
    before = site.active().key
    site.register(make_weights())
    site.change(1001, ModelState.ACTIVE)
    with site.store.read() as connection:
        assert catalogue.find_before(connection, ANALYSIS) == before
        (fresh,) = catalogue.find_fresh(connection, NOW - 1)
    assert (fresh.card.key.version, fresh.before.key) == (1001, before)
    site.change(before.version, ModelState.ACTIVE)
    site.change(1001, ModelState.RETIRED)
    with site.store.read() as connection:
        assert catalogue.find_card(connection, ANALYSIS, 1001) is None


def test_a_trained_version_can_be_restricted_to_an_instrument(small_site: Site) -> None:
    key = small_site.register(make_weights())
    restriction = Restriction(instruments=("lindenberg/cl51",))
    small_site.store.write(lambda c: catalogue.restrict_version(c, key, restriction, "anna", NOW)).result(10)
    with small_site.store.read() as connection:
        card = catalogue.find_card(connection, ANALYSIS, 1001)
    assert card is not None
    assert card.restriction == restriction


def test_weights_that_the_disk_has_damaged_are_not_handed_out(small_site: Site, tmp_path: Path) -> None:
    small_site.register(make_weights())
    small_site.change(1001, ModelState.ACTIVE)
    (file,) = (tmp_path / "models").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BrokenStateError, match="expected a model file with SHA-256"):
        small_site.active()


@pytest.mark.parametrize(
    ("analysis", "content", "expected"),
    [
        ("cloud-type", b"weights", "expected a built-in analysis that loads trained weights, but got 'cloud-type'"),
        (ANALYSIS, b"", "expected trained weights, but the file is empty"),
    ],
)
def test_what_cannot_be_a_trained_version_is_refused(
    small_site: Site, analysis: str, content: bytes, expected: str
) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        small_site.register(content, analysis)
