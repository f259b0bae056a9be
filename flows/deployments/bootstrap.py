"""What has to be at a Prefect server before anything runs: limits, automations, and pools where they are used.

Each is made once. What an operator changed since stays changed, and what they deleted stays deleted; see memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.events import DeploymentEventTrigger
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.deployments.automations import ZOMBIE_RUNS
from flows.deployments.memory import digest, recall, remember
from flows.deployments.registering import Registered
from flows.limits import ARRAY_WRITE, ARRAY_WRITES_MAX

LIMITS, AUTOMATIONS = "limits", "automations"
GPU_RUNS_MAX = 1
"""Runs of the pool gpu at once: two trainings on one GPU are slower than one after the other."""


def make_limits(*, is_reset: bool) -> None:
    """Makes the global concurrency limits, where they were never made before."""
    with get_client(sync_client=True) as client:
        if is_reset:
            client.upsert_global_concurrency_limit_by_name(ARRAY_WRITE, ARRAY_WRITES_MAX)
        elif not recall(client, LIMITS):
            try:
                client.read_global_concurrency_limit_by_name(ARRAY_WRITE)  # made by hand before we first came
            except ObjectNotFound:
                limit = GlobalConcurrencyLimitCreate(name=ARRAY_WRITE, limit=ARRAY_WRITES_MAX)
                client.create_global_concurrency_limit(limit)
            remember(client, LIMITS, {ARRAY_WRITE: ARRAY_WRITES_MAX})


def make_automations(client: SyncPrefectClient, registered: Iterable[Registered], *, is_reset: bool) -> None:
    """Makes our automations where they were never made, and renews those that only the code has changed."""
    made = recall(client, AUTOMATIONS) or {}
    for each in [AutomationCore.model_validate(ZOMBIE_RUNS), *to_automations(registered)]:
        made[each.name] = keep_automation(client, each, {} if is_reset else made.get(each.name), is_reset=is_reset)
    remember(client, AUTOMATIONS, made)


def to_automations(registered: Iterable[Registered]) -> list[AutomationCore]:
    """One for each deployment that an event starts.

    They belong to nobody: those that Prefect ties to a deployment are deleted at its next registering.
    """
    automations = []
    for each in registered:
        if each.definition.event:
            trigger = DeploymentEventTrigger(
                name=f"{each.definition.full_name} on {each.definition.event}",
                description=f"Starts a run when the event {each.definition.event} comes.",
                expect={each.definition.event},
            )
            trigger.set_deployment_id(each.deployment_id)
            automations.append(trigger.as_automation().model_copy(update={"owner_resource": None}))
    return automations


def keep_automation(
    client: SyncPrefectClient, automation: AutomationCore, made: dict[str, str] | None, *, is_reset: bool
) -> dict[str, str]:
    """Makes or renews one automation; returns what is to be remembered of it.

    Args:
        client: Of the Prefect server.
        automation: What the code says.
        made: What was remembered: digests of the code then, and of what the server made of it.
        is_reset: Whether to forget what an operator has changed.
    """
    code = digest(_say(automation))
    live = next(iter(client.read_automations_by_name(automation.name)), None)
    if made and (live is None or digest(_say(live)) != made["live"] or code == made["code"]):
        return made
    if live is not None and not made and not is_reset:
        return {"code": code, "live": ""}  # somebody's own of this name: it is theirs for ever
    automation_id = client.create_automation(automation)
    if live is not None:  # afterwards: whoever is ended in between has two of them, not none
        client.delete_automation(live.id)
    now = client.read_automation(automation_id)
    return {"code": code, "live": digest(_say(now)) if now else ""}


def make_pools(client: SyncPrefectClient, names: Sequence[str]) -> None:
    """Makes work pools of processes that are not there; deployments cannot be registered without."""
    for name in names:
        pool = WorkPoolCreate(
            name=name,
            type=ProcessWorker.type,
            base_job_template=ProcessWorker.get_default_base_job_template(),
            concurrency_limit=GPU_RUNS_MAX if name == "gpu" else None,
        )
        try:
            client.create_work_pool(pool)
        except ObjectAlreadyExists:
            continue


def _say(automation: AutomationCore) -> object:
    """Its JSON without identities, which differ from server to server."""
    return _without_ids(AutomationCore.model_validate(automation.model_dump()).model_dump(mode="json"))


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(each) for name, each in value.items() if name != "id"}
    return [_without_ids(each) for each in value] if isinstance(value, list) else value
