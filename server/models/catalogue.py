"""The rows of model versions: which there are, which are at work, and how they change state. Functions on a connection.

What is written here is written in the caller's transaction. It knows no files but through ModelFiles, and no worker.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, case, func, insert, select, update

from fieldpost.errors import InvalidRequestError, UnknownModelError
from server.analyses import AnalysisCard, find_analyses
from server.models.card import ModelCard, ModelKind, ModelState, Restriction, Trial
from server.models.files import SAFETENSORS, ModelFiles
from server.models.manifest import read_manifest
from server.models.states import check_transition, find_previous
from server.storage.tables import instruments, model_events, model_versions, predictions, stations
from server.workers.jobs import ModelKey, ModelPackage

logger = logging.getLogger(__name__)

SERVER = "server"
"""Who rolls back by itself."""
NEWEST_MAX = 1000
ROW = [column for column in model_versions.c if column is not model_versions.c.sample]
"""Of a version, without its sample: that may be a large image, and only its trial needs it."""


@dataclass(frozen=True, slots=True)
class NewModel:
    """A version that has been tried and gets its row."""

    analysis: str
    sha256: str
    content_bytes: int
    manifest: str
    provenance: str
    submitter: str
    sample: bytes
    trial: Trial


@dataclass(frozen=True, slots=True)
class FreshVersion:
    """An active version that is still watched.

    Attributes:
        card: The version.
        before: The one to go back to.
        event_id: Of its activation: another one starts the watch anew.
    """

    card: ModelCard
    before: ModelCard
    event_id: int


def register_built_in(connection: Connection, cards: list[AnalysisCard]) -> None:
    """Makes sure that each built-in version has its row; the newest of an analysis is active where none is."""
    for card in sorted(cards, key=lambda each: (each.name, -each.version)):
        if find_row(connection, ModelKey(card.name, card.version)) is not None:
            continue
        has_active = find_row(connection, ModelKey(card.name, 0)) is not None
        connection.execute(
            insert(model_versions).values(
                analysis=card.name,
                version=card.version,
                state=ModelState.READY if has_active else ModelState.ACTIVE,
                kind=ModelKind.BUILT_IN,
                first_active_unix_nanos=None if has_active else 0,
            )
        )


def find_at_work(connection: Connection) -> list[ModelCard]:
    """The versions that predict what comes: active ones and shadows."""
    here = model_versions.c.state.in_([ModelState.ACTIVE, ModelState.SHADOW])
    rows = connection.execute(select(*ROW).where(here).order_by(model_versions.c.id))
    return [card for card in map(_to_card, rows) if card is not None]


def find_card(connection: Connection, analysis: str, version: int) -> ModelCard | None:
    """One version that may be asked; version 0: the active one. None where there is none, or it is retired."""
    row = find_row(connection, ModelKey(analysis, version))
    return None if row is None or row.state == ModelState.RETIRED else _to_card(row)


def make_package(connection: Connection, files: ModelFiles, key: ModelKey) -> ModelPackage:
    """Everything that a worker needs in order to load a version.

    Raises:
        UnknownModelError: There is no such version.
        BrokenStateError: Its file is damaged or gone.
    """
    row = get_row(connection, key)
    if row.kind == ModelKind.BUILT_IN:
        return ModelPackage(key)
    if row.kind == ModelKind.TRAINED:
        return ModelPackage(key, content=files.read(row.sha256, SAFETENSORS), is_trained=True)
    return ModelPackage(key, row.manifest, files.read(row.sha256))


def find_row(connection: Connection, key: ModelKey) -> Row[Any] | None:
    """A version's row; version 0: the active one's."""
    which = model_versions.c.version == key.version if key.version else model_versions.c.state == ModelState.ACTIVE
    return connection.execute(select(*ROW).where(model_versions.c.analysis == key.analysis, which)).one_or_none()


def get_row(connection: Connection, key: ModelKey) -> Row[Any]:
    """The same; raises UnknownModelError where there is none."""
    row = find_row(connection, key)
    if row is None:
        what = f"version {key.version}" if key.version else "an active version"
        raise UnknownModelError(
            f"expected {what} of analysis {key.analysis!r}, but there is none",
            hint="list the models to see which exist",
        )
    return row


def read_sample(connection: Connection, row_id: int) -> bytes:
    """What a version is tried on."""
    sample: bytes = connection.execute(
        select(model_versions.c.sample).where(model_versions.c.id == row_id)
    ).scalar_one()
    return sample


def list_rows(connection: Connection, analysis: str) -> list[Row[Any]]:
    """All versions, of one analysis or of all, by analysis and version."""
    query = select(*ROW).order_by(model_versions.c.analysis, model_versions.c.version)
    return list(connection.execute(query.where(model_versions.c.analysis == analysis) if analysis else query))


def list_events(connection: Connection, row_id: int) -> list[Row[Any]]:
    """What happened to a version, oldest first."""
    here = model_events.c.model_version_id == row_id
    return list(connection.execute(select(model_events).where(here).order_by(model_events.c.id)))


def find_same(connection: Connection, analysis: str, sha256: str, manifest: str) -> ModelKey | None:
    """The version that has this content and this manifest already."""
    query = select(model_versions.c.version).where(
        model_versions.c.analysis == analysis,
        model_versions.c.sha256 == sha256,
        model_versions.c.manifest == manifest,
    )
    version = connection.scalar(query)
    return None if version is None else ModelKey(analysis, version)


def add_version(connection: Connection, new: NewModel, now_unix_nanos: int) -> ModelKey:
    """Gives a tried model its row and the next number."""
    key = ModelKey(new.analysis, newest_version(connection, new.analysis) + 1)
    values = {
        "kind": ModelKind.ONNX,
        "sha256": new.sha256,
        "content_bytes": new.content_bytes,
        "manifest": new.manifest,
        "provenance": new.provenance,
        "submitter": new.submitter,
        "submit_unix_nanos": now_unix_nanos,
        "sample": new.sample,
        "trial": new.trial.to_json(),
    }
    add_row(connection, key, values, "submitted and tried")
    return key


def newest_version(connection: Connection, analysis: str) -> int:
    """The highest number of an analysis; 0 where it has no version."""
    here = model_versions.c.analysis == analysis
    return connection.scalar(select(func.max(model_versions.c.version)).where(here)) or 0


def add_row(connection: Connection, key: ModelKey, values: Mapping[str, Any], why: str) -> None:
    """Adds a ready version, and notes who brought it, and why."""
    row = {"analysis": key.analysis, "version": key.version, "state": ModelState.READY, **values}
    row_id = connection.execute(insert(model_versions).values(row).returning(model_versions.c.id)).scalar_one()
    _note(connection, row_id, ModelState.READY, values["submitter"], why, values["submit_unix_nanos"])


def lock(connection: Connection, analysis: str) -> None:
    """Makes other server processes wait that want to change a version of this analysis, until the commit."""
    query = select(model_versions.c.id).where(model_versions.c.analysis == analysis).order_by(model_versions.c.id)
    connection.execute(query.with_for_update()).all()


def change_state(
    connection: Connection, key: ModelKey, wanted: ModelState, actor: str, reason: str, now_unix_nanos: int
) -> bool:
    """Gives a version another state, and says whether it had another one.

    Activating makes the version that was active ready, in the same transaction.

    Raises:
        UnknownModelError: There is no such version.
        InvalidRequestError: It cannot go there from where it is.
    """
    lock(connection, key.analysis)
    row = get_row(connection, key)
    present = ModelState(row.state)
    if present is wanted:
        return False
    check_transition(key, present, wanted)
    if wanted is ModelState.ACTIVE:
        active = find_row(connection, ModelKey(key.analysis, 0))
        if active is not None:
            why = f"version {key.version} became active" + (f": {reason}" if reason else "")
            _set(connection, active.id, ModelState.READY, actor, why, now_unix_nanos)
        if row.first_active_unix_nanos is None:
            here = model_versions.c.id == row.id
            connection.execute(update(model_versions).where(here).values(first_active_unix_nanos=now_unix_nanos))
    _set(connection, row.id, wanted, actor, reason, now_unix_nanos)
    return True


def find_before(connection: Connection, analysis: str) -> ModelKey | None:
    """The version to roll back to: the one that was active before the one that is; None where there is none."""
    query = (
        select(model_versions.c.version)
        .join(model_events, model_events.c.model_version_id == model_versions.c.id)
        .where(model_versions.c.analysis == analysis, model_events.c.state == ModelState.ACTIVE)
        .order_by(model_events.c.id)
    )
    activated = [*_first_active(connection, analysis), *connection.scalars(query)]
    rows = {row.version: ModelState(row.state) for row in list_rows(connection, analysis)}
    previous = find_previous(activated, rows)
    return None if previous is None else ModelKey(analysis, previous)


def find_fresh(connection: Connection, since_unix_nanos: int) -> list[FreshVersion]:
    """Active versions that somebody, not the server itself, made active since then, and which have a predecessor."""
    found = []
    for row in connection.execute(select(*ROW).where(model_versions.c.state == ModelState.ACTIVE)):
        here = (model_events.c.model_version_id == row.id, model_events.c.state == ModelState.ACTIVE)
        event = connection.execute(
            select(model_events).where(*here).order_by(model_events.c.id.desc()).limit(1)
        ).one_or_none()
        if event is None or event.event_unix_nanos < since_unix_nanos or event.actor == SERVER:
            continue
        previous = find_before(connection, row.analysis)
        card = _to_card(row)
        if previous is not None and card is not None:
            before = _to_card(get_row(connection, previous))
            if before is not None:
                found.append(FreshVersion(card, before, event.id))
    return found


def count_failures(connection: Connection, row_id: int) -> tuple[int, int]:
    """Of the newest stored predictions of a version: how many there are, and how many of them failed."""
    here = predictions.c.model_version_id == row_id
    newest = (
        select(predictions.c.is_failure)
        .where(here)
        .order_by(predictions.c.observation_id.desc())
        .limit(NEWEST_MAX)
        .subquery()
    )
    failed = func.sum(case((newest.c.is_failure, 1), else_=0))
    count, failures = connection.execute(select(func.count(), failed).select_from(newest)).one()
    return count, failures or 0


def restrict_version(
    connection: Connection, key: ModelKey, restriction: Restriction, actor: str, now_unix_nanos: int
) -> None:
    """Says for whom a version predicts. What it has not predicted and now may, it looks for from the beginning.

    Raises:
        UnknownModelError: There is no such version.
        InvalidRequestError: A station or an instrument is not registered.
    """
    row = get_row(connection, key)
    for name in restriction.stations:
        if connection.scalar(select(stations.c.id).where(stations.c.name == name)) is None:
            raise InvalidRequestError(f"expected registered stations, but got {name!r}")
    for name in restriction.instruments:
        station, _, instrument = name.partition("/")
        query = select(instruments.c.id).join(stations)
        here = (stations.c.name == station, instruments.c.name == instrument)
        if connection.scalar(query.where(*here)) is None:
            raise InvalidRequestError(f"expected registered instruments as station/instrument, but got {name!r}")
    text = restriction.to_json()
    if text == row.restriction:
        return
    here_is_it = model_versions.c.id == row.id
    connection.execute(update(model_versions).where(here_is_it).values(restriction=text, settled_observation_id=0))
    names = ", ".join((*restriction.stations, *restriction.instruments))
    reason = f"restricted to {names}" if names else "restricted no more"
    _note(connection, row.id, ModelState(row.state), actor, reason, now_unix_nanos)


def _first_active(connection: Connection, analysis: str) -> list[int]:
    """A built-in version that was active from the first start on, of which no event tells."""
    here = (model_versions.c.analysis == analysis, model_versions.c.first_active_unix_nanos == 0)
    return list(connection.scalars(select(model_versions.c.version).where(*here)))


def _set(connection: Connection, row_id: int, state: ModelState, actor: str, reason: str, now: int) -> None:
    connection.execute(update(model_versions).where(model_versions.c.id == row_id).values(state=state))
    _note(connection, row_id, state, actor, reason, now)


def _note(connection: Connection, row_id: int, state: ModelState, actor: str, reason: str, now: int) -> None:
    connection.execute(
        insert(model_events).values(
            model_version_id=row_id, event_unix_nanos=now, state=state, actor=actor, reason=reason
        )
    )


def find_family(analysis: str) -> AnalysisCard | None:
    """The newest built-in version of an analysis whose code loads trained weights; None where there is none."""
    cards = [card for key, card in _built_in().items() if key.analysis == analysis]
    if not cards or not hasattr(importlib.import_module(cards[-1].package), "load_trained"):
        return None
    return cards[-1]


@cache
def _built_in() -> dict[ModelKey, AnalysisCard]:
    return {ModelKey(card.name, card.version): card for card in find_analyses()}


def _to_card(row: Row[Any]) -> ModelCard | None:
    """What is known of a version; None where this checkout cannot run it, which is logged."""
    key, kind = ModelKey(row.analysis, row.version), ModelKind(row.kind)
    if kind is ModelKind.ONNX:
        try:
            manifest = read_manifest(row.manifest)
        except InvalidRequestError as error:  # its rules were other ones when it was submitted
            logger.error("manifest is not understood any more", extra={"model": str(key), "error": str(error)})
            return None
        models, timeout_s, trial = frozenset(manifest.instrument_models), manifest.timeout_s, Trial.from_json(row.trial)
    elif key in _built_in():
        built_in = _built_in()[key]
        models, timeout_s, trial = built_in.instrument_models, 60.0, Trial(max_batch_count=built_in.max_batch)
    elif kind is ModelKind.TRAINED and (family := find_family(key.analysis)) is not None:
        models, timeout_s, trial = family.instrument_models, 60.0, Trial(max_batch_count=family.max_batch)
    else:
        logger.warning("model version cannot be run by this checkout", extra={"model": str(key)})
        return None
    return ModelCard(
        row_id=row.id,
        key=key,
        state=ModelState(row.state),
        kind=ModelKind.ONNX if kind is ModelKind.ONNX else ModelKind.BUILT_IN,
        instrument_models=models,
        restriction=Restriction.from_json(row.restriction),
        trial=trial,
        timeout_s=timeout_s,
        settled_observation_id=row.settled_observation_id,
    )
