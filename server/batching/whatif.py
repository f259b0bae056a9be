"""What would have become of recorded arrivals with other bounds: the same policy over simulated workers.

Pure. The simulation is held against the recording by printing both: where the simulated figures are far from the
recorded ones, do not believe what it says of other bounds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldpost.errors import OverloadedError
from server.batching.batch_cost import BatchCost
from server.batching.policy import Batch, BatchPolicy, Priority
from server.workers.jobs import ModelKey

ARRIVAL = ("lane", "size_bytes", "observation_count", "now_s", "arrival_s", "deadline_s")
"""What a trace says of what came in, and a policy is told."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is to be different; None for what is to be as it was."""

    batch_count_max: int | None = None
    batch_bytes_max: int | None = None
    batch_seconds_max: float | None = None
    worker_count: int | None = None


@dataclass(slots=True)
class Outcome:
    """Observations in the batches, and for each priority how long each observation waited until its was taken."""

    batch_counts: list[int] = field(default_factory=list)
    waits_s: dict[Priority, list[float]] = field(default_factory=lambda: {each: [] for each in Priority})
    expired_count: int = 0
    refused_count: int = 0


@dataclass(slots=True)
class Recording:
    """What a trace says of arrivals, costs and decisions.

    Attributes:
        limits: Of the policy.
        models: How each model version was added, in order of their keys' first appearance.
        arrivals: The calls that let something wait, in order of time.
        costs: What batches of each model version took.
        worker_count: Batches that were computed at a time, at most.
        outcome: What was decided.
    """

    limits: dict[str, Any] = field(default_factory=dict)
    models: dict[ModelKey, dict[str, Any]] = field(default_factory=dict)
    arrivals: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[ModelKey, BatchCost] = field(default_factory=dict)
    worker_count: int = 1
    outcome: Outcome = field(default_factory=Outcome)

    @classmethod
    def read(cls, entries: Iterable[dict[str, Any]]) -> Recording:
        """Reads the lines of a trace."""
        found = cls()
        arrived: dict[int, dict[str, Any]] = {}
        counts: dict[int, int] = {}
        running = 0
        for entry in entries:
            facts = dict(entry)
            call = facts.pop("call")
            if call == "limits":
                found.limits = facts
            elif call == "add_model":
                found.models[facts["key"]] = facts
                found.costs[facts["key"]] = BatchCost(facts["cost"][0], facts["cost"][1], facts["max_batch_count"])
            elif call == "add":
                (number,) = facts["numbers"]
                arrived[number], counts[number] = facts, facts["observation_count"]
                found.outcome.refused_count += counts[number] if number == 0 else 0
                found.arrivals.append(facts)
            elif call == "take" and facts["numbers"]:
                running += 1
                found.worker_count = max(found.worker_count, running)
                found.outcome.batch_counts.append(sum(counts[each] for each in facts["numbers"]))
                for first in (arrived.pop(each, None) for each in facts["numbers"]):
                    if first is not None:  # taken for the first time
                        waited_s = facts["now_s"] - _arrival_s(first)
                        waits_s = found.outcome.waits_s[Priority(first["priority"])]
                        waits_s += [waited_s] * first["observation_count"]
            elif call == "take_expired":
                found.outcome.expired_count += sum(counts[each] for each in facts["numbers"])
            elif call == "note_cost":
                running -= 1
                found.costs[facts["key"]].note(facts["count"], facts["duration_s"])
            elif call == "note_lost":
                running -= 1
        return found


def _arrival_s(entry: dict[str, Any]) -> float:
    return float(entry["now_s"] if entry["arrival_s"] is None else entry["arrival_s"])


def simulate(recording: Recording, bounds: Bounds) -> Outcome:
    """Lets the recorded arrivals wait for simulated workers, whose batches take what was measured.

    Nothing is cancelled, fails, or runs once more.
    """
    policy: BatchPolicy[None] = BatchPolicy(**_changed(recording.limits, batch_seconds_max=bounds.batch_seconds_max))
    for facts in recording.models.values():
        changed = _changed(facts, max_batch_count=bounds.batch_count_max, batch_bytes_max=bounds.batch_bytes_max)
        policy.add_model(**{**changed, "cost": tuple(facts["cost"])})
    kinds = {facts["kind"] for facts in recording.models.values()}
    outcome = Outcome()
    free = dict.fromkeys(kinds, bounds.worker_count or recording.worker_count)
    running: list[tuple[float, int, Batch[None], float]] = []
    arrivals = iter(recording.arrivals)
    arrival = next(arrivals, None)
    now_s = arrival["now_s"] if arrival else 0.0
    while arrival is not None or running:
        if running and (arrival is None or running[0][0] <= arrival["now_s"]):
            now_s, _, batch, duration_s = heapq.heappop(running)
            free[recording.models[batch.key]["kind"]] += 1
            policy.note_cost(batch.key, batch.observation_count, duration_s)
        elif arrival is not None:
            now_s = max(now_s, arrival["now_s"])
            _arrive(policy, arrival, outcome)
            arrival = next(arrivals, None)
            if arrival is not None and arrival["now_s"] <= now_s:
                continue  # what arrives in one moment is looked at once, as the server does
        for kind in kinds:
            while free[kind] and (taken := policy.take(kind, now_s)) is not None:
                free[kind] -= 1
                duration_s = recording.costs[taken.key].estimate(taken.observation_count)
                heapq.heappush(running, (now_s + duration_s, len(outcome.batch_counts), taken, duration_s))
                outcome.batch_counts.append(taken.observation_count)
                for each in taken.items:
                    outcome.waits_s[each.priority] += [now_s - each.arrival_s] * each.observation_count
        outcome.expired_count += sum(each.observation_count for each in policy.take_expired(now_s))
    return outcome


def _changed(facts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**facts, **{name: value for name, value in changes.items() if value is not None}}


def _arrive(policy: BatchPolicy[None], entry: dict[str, Any], outcome: Outcome) -> None:
    facts = {name: entry[name] for name in ARRIVAL}
    try:
        policy.add(entry["key"], None, priority=Priority(entry["priority"]), **facts)
    except OverloadedError:
        outcome.refused_count += entry["observation_count"]


def summarise(title: str, outcome: Outcome) -> str:
    """An outcome in a few lines."""
    counts = outcome.batch_counts or [0]
    lines = [
        f"{title}: {len(outcome.batch_counts)} batches of {np.mean(counts):.1f} observations (largest {max(counts)}), "
        f"{outcome.expired_count} expired, {outcome.refused_count} refused"
    ]
    for priority, waits_s in outcome.waits_s.items():
        if waits_s:
            half, most = np.percentile(waits_s, [50, 99]) * 1000
            lines.append(f"  {priority.name.lower()}: waited p50 {half:.2f} ms, p99 {most:.2f} ms ({len(waits_s)})")
    return "\n".join(lines)
