"""Registers a deployment at a Prefect server so that both an upgrade and what an operator changed there have effect.

Prefect's own registering puts everything back to the code without a word: pauses, schedules, parameters. Knows nothing
of what runs the deployments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound

from flows.deployments.catalogue import DeploymentDefinition
from flows.deployments.loading import load_params
from flows.deployments.memory import recall, remember
from flows.deployments.merging import list_changes, merge_mappings
from flows.deployments.standing import (
    Standing,
    fit,
    name_schedule,
    say_code,
    say_live,
    to_prefect,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """A deployment as it stands now.

    Attributes:
        definition: What the code says.
        deployment_id: Prefect's.
        runs_max: So many runs at once; None for any number.
        changes: Which of its values are the operator's.
    """

    definition: DeploymentDefinition
    deployment_id: UUID
    runs_max: int | None
    changes: list[str]


def register(
    client: SyncPrefectClient,
    definition: DeploymentDefinition,
    apply: Callable[[RunnerDeployment], UUID],
    *,
    time_zone: str,
    to_pool: bool,
    is_reset: bool,
) -> Registered | None:
    """Registers a deployment, again or for the first time.

    Args:
        client: Of the Prefect server.
        definition: What the code says of it.
        apply: Hands it to Prefect; returns its id.
        time_zone: IANA name: where its schedules are due.
        to_pool: Whether workers of its pool run it.
        is_reset: Whether to forget what an operator has changed.

    Returns:
        None where an operator has deleted it, which stays so.
    """
    code = say_code(definition, time_zone, to_pool=to_pool)
    memory = f"deployment-{definition.flow}-{definition.name}"
    base, live = recall(client, memory), _read(client, definition)
    if live is None and base is not None and not is_reset:
        logger.warning(
            "deleted at the Prefect server, and stays so; --reset and its name bring it back",
            extra={"deployment": definition.full_name},
        )
        return None
    standing = code
    if live is not None:
        if not is_reset:
            standing = _fit(definition, merge_mappings(base, say_live(live, to_pool=to_pool), code), code)
        _drop_schedules(client, live, standing)
    deployment_id = apply(to_prefect(definition, standing))
    remember(client, memory, code)
    changes = list_changes(code, standing)
    if changes:
        logger.info(
            "kept as it was changed at the Prefect server",
            extra={"deployment": definition.full_name, "changes": changes},
        )
    return Registered(definition, deployment_id, standing["concurrency_limit"]["limit"], changes)


def _read(client: SyncPrefectClient, definition: DeploymentDefinition) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(definition.full_name)
    except ObjectNotFound:
        return None


def _drop_schedules(client: SyncPrefectClient, live: DeploymentResponse, standing: Standing) -> None:
    """Registering adds schedules and changes them, but leaves those that it is not told of."""
    for each in live.schedules:
        if name_schedule(each) not in standing["schedules"]:
            client.delete_deployment_schedule(live.id, each.id)


def _fit(definition: DeploymentDefinition, standing: Standing, code: Standing) -> Standing:
    """The same with parameters that the flow still takes; Prefect would refuse the whole deployment otherwise."""
    model = load_params(definition)
    params, given_up = fit(model, standing["parameters"].get("params", {}), code["parameters"].get("params", {}))
    schedules = {}
    for slug, each in standing["schedules"].items():
        if "params" in each["parameters"]:
            fitted, wrong = fit(model, each["parameters"]["params"], {})
            each = each | {"parameters": {"params": fitted}}
            given_up += wrong
        schedules[slug] = each
    if given_up:
        logger.warning(
            "parameters set at the Prefect server are no longer valid, and given up",
            extra={"deployment": definition.full_name, "parameters": sorted(set(given_up))},
        )
    return standing | {"parameters": {"params": params} if params else {}, "schedules": schedules}
