"""Opens a retrain beside the server whose versions it trains, and brings its result into the catalogue.

The server looks into the catalogue every few seconds, so that it needs no word of what changed there. Knows no Prefect.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from fieldpost.errors import InvalidRequestError, TryAgainError
from flows.bags.provenance import SOFTWARE_VERSION
from flows.retraining.decision import Decision
from flows.retraining.drift_core import Watch
from flows.retraining.folder import open_run, read_json
from flows.retraining.parameters import RetrainParams
from flows.retraining.references import read_reference_file
from flows.retraining.run import RetrainRun
from flows.site import open_site
from server.analyses import find_analyses
from server.analyses.retraining import Version, can_retrain, find_retraining
from server.models import catalogue
from server.models.card import ModelKind, ModelState
from server.models.files import ModelFiles
from server.models.trained import register_trained
from server.settings import Settings, load_settings
from server.storage.store import Store
from server.workers.jobs import ModelKey

T = TypeVar("T")
ACTOR = "flows.retrain"
WRITE_WAIT_S = 120.0
FREE = ("settings_file", "promote", "offer_to", "station_package", "signing_key_file", "server_address", "afresh")
"""Parameters that make no other version: a run that was ended may be taken up with others."""


@contextmanager
def open_retrain(params: RetrainParams, due_day: date) -> Iterator[RetrainRun]:
    """The retrain that these parameters speak of: a new one, or one that was ended, from where it was.

    Args:
        params: What a person chose.
        due_day: UTC day on which the run was due.

    Raises:
        InvalidRequestError: The analysis, its active version or the references are not there.
        TryAgainError: Another retrain is at work.
    """
    settings = load_settings(params.settings_file)
    analysis = params.analysis or only_analysis()
    hooks = find_retraining(analysis)
    content = b"" if params.references_file is None else params.references_file.read_bytes()
    references = [] if params.references_file is None else read_reference_file(params.references_file)
    with open_site(params.settings_file) as site:
        files = ModelFiles(settings.models)
        parent, version = find_active(site.store, files, analysis)
        request = {
            "parameters": params.model_dump(mode="json", exclude=set(FREE)),
            "references_sha256": hashlib.sha256(content).hexdigest(),
            "parent": str(parent),
            "software": SOFTWARE_VERSION,
        }
        fresh = {
            "seed": (due_day - date(1970, 1, 1)).days if params.seed is None else params.seed,
            "first_day": (due_day - timedelta(days=params.look_back_days)).isoformat(),
            "last_day": (due_day - timedelta(days=1)).isoformat(),
        }
        with open_run(retrain_folder(settings, analysis), request, fresh, afresh=params.afresh) as folder:
            known = read_json(folder / "request.json")
            yield RetrainRun(
                store=site.store,
                files=files,
                shelf=site.shelf,
                folder=folder,
                hooks=hooks,
                params=params,
                parent=parent,
                parent_version=version,
                references=references,
                seed=known["seed"],
                first_day=date.fromisoformat(known["first_day"]),
                last_day=date.fromisoformat(known["last_day"]),
            )


@contextmanager
def open_watch(settings_file: Path | None, analysis: str) -> Iterator[Watch]:
    """What is to be known of the active version and its training, to hold days against it.

    Raises:
        InvalidRequestError: The analysis is not there, or cannot be retrained.
        UnknownModelError: It has no active version.
    """
    settings = load_settings(settings_file)
    with open_site(settings_file) as site:
        active, version = find_active(site.store, ModelFiles(settings.models), analysis)
        with site.store.read() as connection:
            rows = catalogue.list_rows(connection, analysis)
        trained = [row.submit_unix_nanos for row in rows if row.kind == ModelKind.TRAINED]
        (text,) = [row.provenance for row in rows if row.version == active.version]
        folder = retrain_folder(settings, analysis)
        folder.mkdir(parents=True, exist_ok=True)
        yield Watch(
            store=site.store,
            shelf=site.shelf,
            hooks=find_retraining(analysis),
            active=active,
            version=version,
            provenance=json.loads(text) if text else {},
            folder=folder,
            last_trained_unix_nanos=max(trained, default=0),
        )


def retrain_folder(settings: Settings, analysis: str) -> Path:
    """Where the retrains of an analysis lie."""
    return settings.data_folder.absolute() / "retrain" / analysis


def only_analysis() -> str:
    """The one analysis that can be retrained; raises InvalidRequestError where there are several, or none."""
    names = sorted({card.name for card in find_analyses() if can_retrain(card)})
    if len(names) != 1:
        raise InvalidRequestError(f"expected the name of an analysis, one of {', '.join(names)}, but got none")
    return names[0]


def find_active(store: Store, files: ModelFiles, analysis: str) -> tuple[ModelKey, Version]:
    """The version at work, and as it is loaded.

    Raises:
        UnknownModelError: The analysis has no active version.
    """
    with store.read() as connection:
        row = catalogue.get_row(connection, ModelKey(analysis, 0))
        package = catalogue.make_package(connection, files, ModelKey(analysis, row.version))
    return package.key, Version(package.key.version, package.content)


def register(run: RetrainRun, decision: Decision) -> ModelKey:
    """Gives the trained weights their version, ready, whatever was decided; the same weights once only.

    A rejected version is kept, so that a person can look at it, let it run as a shadow, or activate it all the same.
    """
    content, provenance = run.weights.read_bytes(), run.provenance(decision)
    analysis = run.parent.analysis
    return _write(
        run.store,
        lambda connection: register_trained(
            connection, run.files, analysis, content, provenance, ACTOR, time.time_ns()
        ),
    )


def promote(run: RetrainRun, key: ModelKey, decision: Decision) -> str:
    """Activates the version where that was decided and still holds; returns in words what was done.

    Nothing is done where somebody has activated another version meanwhile, or has rolled this one back already.
    """
    if not decision.is_promoted:
        return "rejected: it stays ready"
    if not run.params.promote:
        return "better, but not activated: the parameters leave that to you"

    def activate(connection: Connection) -> str:
        catalogue.lock(connection, key.analysis)
        active = catalogue.get_row(connection, ModelKey(key.analysis, 0))
        row = catalogue.get_row(connection, key)
        if active.version == key.version:
            return "active"
        if active.version != run.parent.version:
            return f"better, but not activated: version {active.version} became active meanwhile"
        if row.first_active_unix_nanos is not None:
            return "better, but not activated: it was active before, and somebody went back"
        why = "; ".join(decision.reasons)
        catalogue.change_state(connection, key, ModelState.ACTIVE, ACTOR, why, time.time_ns())
        return "active"

    return _write(run.store, activate)


def _write(store: Store, operation: Callable[[Connection], T]) -> T:
    try:
        return store.write(operation).result(WRITE_WAIT_S)
    except TimeoutError as error:
        raise TryAgainError(
            f"the database did not take the trained version within {WRITE_WAIT_S:g} s",
            hint="run again: everything but this step is done",
        ) from error
