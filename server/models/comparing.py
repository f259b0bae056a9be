"""How a shadow's predictions compare with those of the active version. Computed when somebody asks; kept nowhere."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, select

from fieldpost.v1 import model_pb2, prediction_pb2
from server.storage.tables import predictions

PAIRS_MAX = 1000


@dataclass(slots=True)
class _Differences:
    count: int = 0
    total: float = 0.0
    absolute: float = 0.0


def compare(connection: Connection, shadow_row_id: int, active_row_id: int) -> model_pb2.ModelComparison:
    """Compares over the newest observations that both have predicted."""
    ours, theirs = predictions.alias(), predictions.alias()
    query = (
        select(ours.c.content, theirs.c.content, ours.c.is_failure, theirs.c.is_failure)
        .join(theirs, theirs.c.observation_id == ours.c.observation_id)
        .where(ours.c.model_version_id == shadow_row_id, theirs.c.model_version_id == active_row_id)
        .order_by(ours.c.observation_id.desc())
        .limit(PAIRS_MAX)
    )
    found = model_pb2.ModelComparison()
    differences: dict[tuple[str, str], _Differences] = defaultdict(_Differences)
    for shadow, active, is_shadow_failure, is_active_failure in connection.execute(query):
        found.observation_count += 1
        found.only_shadow_failed_count += is_shadow_failure and not is_active_failure
        found.only_active_failed_count += is_active_failure and not is_shadow_failure
        _add(differences, shadow, active)
    for (name, unit), each in differences.items():
        found.variables.add(
            name=name,
            unit=unit,
            sample_count=each.count,
            mean_difference=each.total / each.count if each.count else float("nan"),
            mean_absolute_difference=each.absolute / each.count if each.count else float("nan"),
        )
    return found


def _add(differences: dict[tuple[str, str], _Differences], shadow: bytes, active: bytes) -> None:
    by_name = {(each.name, each.unit): each for each in prediction_pb2.Prediction.FromString(active).variables}
    for variable in prediction_pb2.Prediction.FromString(shadow).variables:
        key = (variable.name, variable.unit)
        other = by_name.get(key)
        if other is None or len(other.values) != len(variable.values):
            continue
        difference = np.subtract(variable.values, other.values)
        difference = difference[np.isfinite(difference)]
        sums = differences[key]
        sums.count += len(difference)
        sums.total += float(difference.sum())
        sums.absolute += float(np.abs(difference).sum())
