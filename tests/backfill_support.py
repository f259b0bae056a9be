"""What the backfill's tests share: a site, versions that answer within the test's process, and a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from archive_support import DAY, model_row_id
from chain_analysis import CHAIN, course_start
from chain_support import ChainPool
from sqlalchemy import select
from worker_support import LENGTH, InProcessPool, make_card

from flows.backfilling.parameters import BackfillParams
from flows.backfilling.plan import Plan, make_plan
from flows.backfilling.predictors import StartPool, Version
from flows.backfilling.run import OnStep, Standing, carry_out, ignore_step
from flows.site import Site, open_site
from server.models.card import ModelState
from server.storage.store import Store
from server.storage.tables import model_versions, observations, predictions
from server.workers.jobs import ModelKey, ModelPackage

MODELS = frozenset({"cl51", "cl31"})
START_POOLS: dict[ModelKey, StartPool] = {LENGTH: InProcessPool, CHAIN: ChainPool}


@contextmanager
def opened(folder: Path) -> Iterator[Site]:
    """The site of the data folder `data`."""
    settings_file = folder / "server.toml"
    settings_file.write_text(f'data_folder = "{folder / "data"}"\n')
    with open_site(settings_file) as site:
        yield site


def make_version(store: Store, key: ModelKey, state: ModelState = ModelState.READY) -> Version:
    """A version that the store knows: LENGTH forgets, CHAIN remembers."""
    row_id = model_row_id(store, *key)
    here = model_versions.update().where(model_versions.c.id == row_id)
    store.write(lambda connection: connection.execute(here.values(state=state))).result(10)
    card = make_card(key, row_id=row_id, state=state, instrument_models=MODELS)
    return Version(card, ModelPackage(key), course_start if key == CHAIN else None)


def make_params(key: ModelKey = LENGTH, **given: object) -> BackfillParams:
    """A range of one day."""
    days = {"first_day": DAY, "last_day": DAY}
    return BackfillParams.model_validate({"analysis": key.analysis, "model_version": key.version, **days, **given})


def fill(
    site: Site,
    key: ModelKey = LENGTH,
    *,
    state: ModelState = ModelState.READY,
    on_step: OnStep = ignore_step,
    on_progress: Callable[[Standing], None] = lambda _: None,
    **given: object,
) -> tuple[Plan, Standing]:
    """Plans a backfill, and carries it out."""
    params, version = make_params(key, **given), make_version(site.store, key, state)
    plan = make_plan(site, params, version)
    start_pool = START_POOLS[key]
    return plan, carry_out(site, params, plan, on_progress, start_pool=start_pool, on_step=on_step)


def stored(store: Store, key: ModelKey = LENGTH) -> list[tuple[int, bytes, int]]:
    """Sequence, content, and number of each prediction of a version, by number."""
    row_id = model_row_id(store, *key)
    columns = (observations.c.sequence, predictions.c.content, predictions.c.id)
    query = select(*columns).join(observations, observations.c.id == predictions.c.observation_id)
    with store.read() as connection:
        rows = connection.execute(query.where(predictions.c.model_version_id == row_id).order_by(predictions.c.id))
        return [(row[0], row[1], row[2]) for row in rows]


def answers(store: Store, key: ModelKey = LENGTH) -> dict[int, bytes]:
    """Contents by sequence."""
    return {sequence: content for sequence, content, _ in stored(store, key)}
