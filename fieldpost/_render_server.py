"""Writes observations, models, answers and capacity as text for people. Prints nothing itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from fieldpost._answers import Answer
from fieldpost._render import aligned
from fieldpost._times import from_timestamp, iso_utc
from fieldpost.v1.capacity_service_pb2 import GetCapacityResponse
from fieldpost.v1.model_pb2 import Model, ModelComparison, ModelKind, ModelRestriction, ModelState, ModelTrial
from fieldpost.v1.observations_service_pb2 import HeldObservation

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size_text(size_bytes: float) -> str:
    """A number of bytes for people.

    >>> size_text(1234567)
    '1.2 MB'
    """
    power = 0
    while size_bytes >= 1000 and power < len(_UNITS) - 1:
        size_bytes /= 1000
        power += 1
    return f"{size_bytes:.{1 if power else 0}f} {_UNITS[power]}"


def _time(timestamp: Timestamp) -> str:
    return iso_utc(from_timestamp(timestamp)) if timestamp.seconds else "-"


def observation_lines(found: Iterable[HeldObservation]) -> Iterator[str]:
    """One line for each observation, below a head."""
    rows = [["measured (UTC)", "station", "instrument", "id", "sequence", "size"]]
    for held in found:
        header = held.header
        names = [header.station, header.instrument]
        numbers = [str(held.observation_id), str(header.sequence), size_text(header.payload_bytes)]
        rows.append([_time(header.measure_time), *names, *numbers])
    yield from aligned(rows, right_from=3)


def answer_lines(answers: Iterable[tuple[Path, Answer]]) -> Iterator[str]:
    """One line for each sample of each file that has an answer, below a head with units."""
    rows = [(path, answer, row) for path, answer in answers for row in answer.rows()]
    units = {name: unit for _, answer, _ in rows for name, unit in answer.units.items()}
    if not units:
        return
    head = ["file", "model", *(f"{name} ({unit})" if unit not in ("", "1") else name for name, unit in units.items())]
    cells = [
        [str(path), f"{answer.analysis}@{answer.model_version}", *(_value(row.get(name)) for name in units)]
        for path, answer, row in rows
    ]
    yield from aligned([head, *cells], right_from=2)


def _value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def model_table(models: Iterable[Model]) -> Iterator[str]:
    """One line for each model version, below a head."""
    rows = [["model", "state", "kind", "for", "submitted (UTC)", "by", "size"]]
    for model in models:
        rows.append(
            [
                f"{model.analysis}@{model.model_version}",
                _state(model.state),
                _kind(model.kind),
                " ".join(model.instrument_models) or "-",
                _time(model.submit_time),
                model.submitter or "-",
                size_text(model.content_bytes) if model.content_bytes else "-",
            ]
        )
    yield from aligned(rows, right_from=6)


def model_lines(model: Model) -> Iterator[str]:
    """Everything about a model version."""
    yield f"{model.analysis}@{model.model_version}: {_state(model.state)}"
    facts = [
        ["kind", _kind(model.kind)],
        ["instrument models", ", ".join(model.instrument_models) or "-"],
        ["predicts for", _restriction(model.restriction)],
        ["submitted", f"{_time(model.submit_time)} by {model.submitter or '-'}"],
        ["SHA-256", model.sha256.hex() or "-"],
        ["size", size_text(model.content_bytes) if model.content_bytes else "-"],
        ["provenance", model.provenance or "-"],
    ]
    if model.HasField("trial"):
        facts += _trial_facts(model.trial)
    yield from aligned([[f"  {name}", value] for name, value in facts], right_from=2)
    if model.events:
        yield "what happened to it"
        rows = [[f"  {_time(e.event_time)}", _state(e.state), e.actor or "-", e.reason or "-"] for e in model.events]
        yield from aligned(rows, right_from=4)
    if model.HasField("comparison"):
        yield from _comparison_lines(model.comparison)
    if model.manifest:
        yield "manifest"
        yield from (f"  {line}".rstrip() for line in model.manifest.splitlines())


def _trial_facts(trial: ModelTrial) -> list[list[str]]:
    difference = trial.difference_max_ratio
    return [
        [
            "trial: a batch costs",
            f"{1e3 * trial.batch_fixed_s:.3g} ms, and {1e3 * trial.observation_s:.3g} ms for each",
        ],
        ["trial: batches up to", str(trial.max_batch_count)],
        ["trial: memory at most", size_text(trial.memory_peak_bytes)],
        ["trial: off what was expected", "nothing was expected" if math.isnan(difference) else f"{difference:.3g}"],
        ["trial: kept in by", ", ".join(trial.confinements) or "nothing"],
    ]


def _comparison_lines(comparison: ModelComparison) -> Iterator[str]:
    yield (
        f"compared with the active version over {comparison.observation_count} observations: only this one failed on "
        f"{comparison.only_shadow_failed_count}, only the active one on {comparison.only_active_failed_count}"
    )
    if comparison.variables:
        head = ["  variable", "unit", "samples", "mean difference", "mean |difference|"]
        rows = [
            [
                f"  {each.name}",
                each.unit,
                str(each.sample_count),
                f"{each.mean_difference:.4g}",
                f"{each.mean_absolute_difference:.4g}",
            ]
            for each in comparison.variables
        ]
        yield from aligned([head, *rows], right_from=2)


def _state(state: ModelState.ValueType) -> str:
    return ModelState.Name(state).removeprefix("MODEL_STATE_").lower()


def _kind(kind: ModelKind.ValueType) -> str:
    return ModelKind.Name(kind).removeprefix("MODEL_KIND_").lower().replace("_", "-")


def _restriction(restriction: ModelRestriction) -> str:
    return ", ".join([*restriction.stations, *restriction.instruments]) or "all"


def capacity_lines(capacity: GetCapacityResponse) -> Iterator[str]:
    """What a server has, and how busy it is."""
    machine, ingest = capacity.machine, capacity.ingest
    yield (
        f"server {capacity.server}: {machine.processor_count} processors, {size_text(machine.memory_free_bytes)} of "
        f"memory free, {size_text(machine.disk_free_bytes)} of disk free; "
        f"its own process holds {size_text(machine.memory_bytes)}"
    )
    yield (
        f"ingest: {ingest.stored_count} stored, {ingest.last_minute_count} of them in the last minute, "
        f"{ingest.duplicate_count} duplicates, {ingest.rejected_count} refused; {ingest.waiting_bundle_count} bundles "
        f"({size_text(ingest.waiting_bytes)}) wait"
    )
    if capacity.workers:
        yield ""
        rows = [["worker", "device", "ready", "batches", "restarts", "busy", "memory"]]
        for worker in capacity.workers:
            numbers = [str(worker.batch_count), str(worker.restart_count), f"{worker.busy_s:.0f} s"]
            ready = "yes" if worker.is_ready else "no"
            memory = size_text(worker.memory_bytes) if worker.memory_bytes else "-"  # on another machine
            rows.append([worker.worker, worker.device, ready, *numbers, memory])
        yield from aligned(rows, right_from=3)
    if capacity.queues:
        yield ""
        rows = [["model", "live", "backfill", "shadow", "oldest", "predicted", "failed", "batch", "costs"]]
        for queue in capacity.queues:
            waiting = [str(queue.live_count), str(queue.backfill_count), str(queue.shadow_count)]
            done = [f"{queue.oldest_s:.3g} s", str(queue.predicted_count), str(queue.failed_count)]
            cost = f"{1e3 * queue.batch_fixed_s:.3g} + {1e3 * queue.observation_s:.3g} ms each"
            name = f"{queue.analysis}@{queue.model_version}"
            rows.append([name, *waiting, *done, f"<= {queue.max_batch_count}", cost])
        yield from aligned(rows, right_from=1)
