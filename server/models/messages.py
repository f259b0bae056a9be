"""From the rows of a model version to the message that callers get. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import model_pb2
from server.analyses import find_analyses
from server.models import catalogue
from server.models.card import ModelKind, ModelState, Restriction, Trial
from server.models.manifest import read_manifest

STATES = {
    ModelState.READY: model_pb2.MODEL_STATE_READY,
    ModelState.SHADOW: model_pb2.MODEL_STATE_SHADOW,
    ModelState.ACTIVE: model_pb2.MODEL_STATE_ACTIVE,
    ModelState.RETIRED: model_pb2.MODEL_STATE_RETIRED,
}
KINDS = {
    ModelKind.BUILT_IN: model_pb2.MODEL_KIND_BUILT_IN,
    ModelKind.ONNX: model_pb2.MODEL_KIND_ONNX,
    ModelKind.TRAINED: model_pb2.MODEL_KIND_TRAINED,
}


def to_message(row: Row[Any], events: Sequence[Row[Any]] = (), *, is_whole: bool = True) -> model_pb2.Model:
    """A version as callers see it; not whole, without its longest texts."""
    kind = ModelKind(row.kind)
    restriction = Restriction.from_json(row.restriction)
    message = model_pb2.Model(
        analysis=row.analysis,
        model_version=row.version,
        state=STATES[ModelState(row.state)],
        kind=KINDS[kind],
        sha256=bytes.fromhex(row.sha256),
        content_bytes=row.content_bytes,
        manifest=row.manifest if is_whole else "",
        instrument_models=_instrument_models(row, kind),
        restriction=model_pb2.ModelRestriction(stations=restriction.stations, instruments=restriction.instruments),
        submitter=row.submitter,
        provenance=row.provenance if is_whole else "",
    )
    if row.submit_unix_nanos:
        message.submit_time.FromNanoseconds(row.submit_unix_nanos)
    if row.trial:
        trial = Trial.from_json(row.trial)
        message.trial.batch_fixed_s = trial.batch_fixed_s
        message.trial.observation_s = trial.observation_s
        message.trial.max_batch_count = trial.max_batch_count
        message.trial.memory_peak_bytes = trial.memory_peak_bytes
        message.trial.difference_max_ratio = trial.difference_max_ratio
        message.trial.confinements.extend(trial.confinements)
    for each in events:
        event = message.events.add(state=STATES[ModelState(each.state)], actor=each.actor, reason=each.reason)
        event.event_time.FromNanoseconds(each.event_unix_nanos)
    return message


def _instrument_models(row: Row[Any], kind: ModelKind) -> list[str]:
    if kind is ModelKind.ONNX:
        try:
            return list(read_manifest(row.manifest).instrument_models)
        except InvalidRequestError:  # its rules were other ones when it was submitted; the manifest itself is told
            return []
    key = (row.analysis, row.version)
    if kind is ModelKind.TRAINED:
        family = catalogue.find_family(row.analysis)
        return [] if family is None else sorted(family.instrument_models)
    found = (card.instrument_models for card in find_analyses() if (card.name, card.version) == key)
    return sorted(next(found, ()))
