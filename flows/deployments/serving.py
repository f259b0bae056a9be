"""Registers the deployments of the catalogue at a Prefect server and runs them when they are due.

Code gives the defaults; what an operator has changed on Prefect's page since (a pause, a schedule, a parameter)
survives every restart, unless a reset to the code is asked for.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence

from prefect import Flow, get_client, serve
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.deployments.catalogue import DeploymentDefinition

POLL_S = 2
RUNS_MAX = 1
"""Runs of all deployments together: the machine that also predicts does one thing at a time."""


def serve_catalogue(catalogue: Sequence[DeploymentDefinition], *, reset: bool) -> None:
    """Registers the deployments and runs them until SIGTERM or SIGINT.

    Args:
        catalogue: What to serve.
        reset: Whether to go back to the code, and forget what an operator has changed.
    """
    deployments = [to_deployment(each) for each in catalogue]
    if not reset:
        deployments = asyncio.run(_keep_all(deployments))
    serve(*deployments, limit=RUNS_MAX, pause_on_shutdown=False, query_seconds=POLL_S, print_starting_message=False)


def to_deployment(definition: DeploymentDefinition) -> RunnerDeployment:
    """What Prefect is told of a deployment."""
    module, _, function = definition.entrypoint.partition(":")
    flow: Flow[..., object] = getattr(importlib.import_module(module), function)
    return RunnerDeployment.from_flow(
        flow,
        name=definition.name,
        description=definition.description,
        schedules=[Cron(each.cron, timezone=each.timezone, slug=each.slug) for each in definition.schedules],
        parameters=dict(definition.parameters),
        tags=list(definition.tags),
        triggers=[DeploymentEventTrigger(name=definition.event, expect={definition.event})] if definition.event else [],
        concurrency_limit=ConcurrencyLimitConfig(
            limit=definition.concurrency_limit, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


async def _keep_all(deployments: Sequence[RunnerDeployment]) -> list[RunnerDeployment]:
    return [await keep_operator_changes(each) for each in deployments]


async def keep_operator_changes(deployment: RunnerDeployment) -> RunnerDeployment:
    """The deployment with schedules, parameters and pause as they stand at the server, where it is known there.

    Registering alone would put them back to the code without a word.
    """
    async with get_client() as client:
        try:
            live = await client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
        except ObjectNotFound:
            return deployment
    deployment.schedules = [
        DeploymentScheduleCreate(schedule=each.schedule, active=each.active, slug=each.slug, parameters=each.parameters)
        for each in live.schedules
    ]
    deployment.parameters = {**(deployment.parameters or {}), **live.parameters}
    deployment.paused = live.paused
    return deployment
