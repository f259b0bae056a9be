"""The automations of a Prefect server for Fieldpost, as plain values in the form of Prefect's API.

ZOMBIE_RUNS is what every server needs. The EXAMPLES stand in deploy/automations.yaml for an operator to choose from:
they name deployments and blocks of that operator's server, whose ids nobody else knows. A test holds the file to the
values. Knows no Prefect.
"""

from __future__ import annotations

from typing import Any

HEARTBEAT_S = 180
"""Prefect's default: a run says so often that it lives."""
YOUR_DEPLOYMENT = "00000000-0000-0000-0000-000000000001"
YOUR_BLOCK = "00000000-0000-0000-0000-000000000002"
"""Ids that an operator has to replace."""

ZOMBIE_RUNS: dict[str, Any] = {
    "name": "zombie runs",
    "description": "Marks a run as crashed that has said nothing for three heartbeats: its process or machine died.",
    "trigger": {
        "type": "event",
        "after": ["prefect.flow-run.heartbeat"],
        "expect": ["prefect.flow-run.*"],
        "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
        "for_each": ["prefect.resource.id"],
        "posture": "Proactive",
        "threshold": 1,
        "within": 3 * HEARTBEAT_S,
    },
    "actions": [
        {
            "type": "change-flow-run-state",
            "state": "CRASHED",
            "message": "It has said nothing for three heartbeats: its process or machine died.",
        }
    ],
}


def _on(events: list[str], resource: str) -> dict[str, Any]:
    """For each resource by itself, so that one event of a storm does not hide another."""
    return {
        "type": "event",
        "expect": events,
        "match": {"prefect.resource.id": [resource]},
        "for_each": ["prefect.resource.id"],
        "posture": "Reactive",
        "threshold": 1,
    }


def _run(name: str, description: str, trigger: dict[str, Any]) -> dict[str, Any]:
    action = {"type": "run-deployment", "source": "selected", "deployment_id": YOUR_DEPLOYMENT}
    return {"name": name, "description": description, "trigger": trigger, "actions": [action]}


def _notify(name: str, description: str, trigger: dict[str, Any], subject: str) -> dict[str, Any]:
    action = {
        "type": "send-notification",
        "block_document_id": YOUR_BLOCK,
        "subject": subject,
        "body": "{{ event.resource.id }}\n{{ event.payload }}\n{{ event.occurred }}",
    }
    return {"name": name, "description": description, "trigger": trigger, "actions": [action]}


EXAMPLES: tuple[dict[str, Any], ...] = (
    _run(
        "retrain on drift",
        "Trains a version when days are no longer like those that the active one was trained for.",
        _on(["fieldpost.drift"], "fieldpost.analysis.*"),
    ),
    _run(
        "fill gaps when one is found",
        "Asks stations for what is missing as soon as it is noticed, not only at night. Each gap is told once, so this "
        "does not start itself for ever.",
        _on(["fieldpost.gap.found"], "fieldpost.station.*"),
    ),
    _notify(
        "tell that a station is silent, or back",
        "A message when a station or one of its instruments falls silent, and when it is heard of again.",
        _on(["fieldpost.station.silent", "fieldpost.station.back", "fieldpost.backlog.growing"], "fieldpost.station.*"),
        "{{ event.event }}: {{ event.resource.id }}",
    ),
    _notify(
        "tell that the archive failed",
        "A message when a day could not be archived, days have no bag, or a bag is damaged.",
        _on(["fieldpost.archive.failed", "fieldpost.archive.behind", "fieldpost.scrub.damaged"], "fieldpost.*"),
        "{{ event.event }}: {{ event.resource.id }}",
    ),
)
