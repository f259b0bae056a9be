"""How a deployment stands, as plain JSON values: what the code says, what a Prefect server says, and back to Prefect.

Knows nothing of who changed what.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel, TypeAdapter, ValidationError

from flows.deployments.catalogue import DeploymentDefinition, Schedule
from flows.deployments.loading import load_flow

INTERVALS_BEGIN = datetime(2020, 1, 1, tzinfo=UTC)
"""Said in words, else Prefect takes the instant of each registration, and every start would look like a change."""
QUEUE = "default"
_RULE: TypeAdapter[SCHEDULE_TYPES] = TypeAdapter(SCHEDULE_TYPES)

Standing = dict[str, Any]
"""JSON: description, tags, paused, parameters, schedules by slug, concurrency_limit, and for workers work_pool.

A schedule's rule is one text, since half of one rule and half of another make none.
"""


def say_code(definition: DeploymentDefinition, time_zone: str, *, to_pool: bool) -> Standing:
    """What the code says of a deployment.

    Args:
        definition: Of the catalogue.
        time_zone: IANA name: where its schedules are due.
        to_pool: Whether workers of its pool run it.
    """
    standing: Standing = {
        "description": definition.description,
        "tags": dict.fromkeys(definition.tags, True),
        "paused": False,
        "parameters": dict(definition.parameters),
        "schedules": {
            each.slug: {"rule": _say_rule(_to_rule(each, time_zone)), "active": True, "parameters": {}}
            for each in definition.schedules
        },
        "concurrency_limit": {"limit": definition.concurrency_limit, "when_taken": definition.when_taken},
    }
    if to_pool:
        standing["work_pool"] = {"name": definition.work_pool, "queue": QUEUE, "job_variables": {}}
    return standing


def say_live(live: DeploymentResponse, *, to_pool: bool) -> Standing:
    """What the server says of it."""
    limit, options = live.global_concurrency_limit, live.concurrency_options
    strategy = options.collision_strategy if options else ConcurrencyLimitStrategy.ENQUEUE
    standing: Standing = {
        "description": live.description or "",
        "tags": dict.fromkeys(live.tags, True),
        "paused": live.paused,
        "parameters": live.parameters,
        "schedules": {
            name_schedule(each): {
                "rule": _say_rule(each.schedule),
                "active": each.active is not False,
                "parameters": each.parameters,
            }
            for each in live.schedules
        },
        "concurrency_limit": {
            "limit": limit.limit if limit else None,
            "when_taken": ConcurrencyLimitStrategy(strategy).value,
        },
    }
    if to_pool and live.work_pool_name is not None:
        standing["work_pool"] = {
            "name": live.work_pool_name,
            "queue": live.work_queue_name or QUEUE,
            "job_variables": live.job_variables,
        }
    return standing


def name_schedule(schedule: DeploymentSchedule) -> str:
    """Its slug; one that was added on the page has none, and Prefect refuses a mixture."""
    return schedule.slug or f"added-{str(schedule.id)[:8]}"


def to_prefect(definition: DeploymentDefinition, standing: Standing) -> RunnerDeployment:
    """The deployment as Prefect takes it.

    Its automations are not part of it: Prefect would make them anew at every registration.
    """
    limit = standing["concurrency_limit"]
    deployment = RunnerDeployment.from_flow(
        load_flow(definition),
        name=definition.name,
        description=standing["description"],
        tags=list(standing["tags"]),
        paused=standing["paused"],
        parameters=standing["parameters"],
        concurrency_limit=None
        if limit["limit"] is None
        else ConcurrencyLimitConfig(
            limit=limit["limit"], collision_strategy=ConcurrencyLimitStrategy(limit["when_taken"])
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.schedules = [
        DeploymentScheduleCreate(
            slug=slug,
            schedule=_RULE.validate_json(each["rule"]),
            active=each["active"],
            parameters=each["parameters"],
        )
        for slug, each in standing["schedules"].items()
    ]
    pool = standing.get("work_pool")
    deployment.work_pool_name = pool["name"] if pool else None
    if pool:
        deployment.work_queue_name, deployment.job_variables = pool["queue"], pool["job_variables"]
    return deployment


def fit(model: type[BaseModel], given: Mapping[str, Any], code: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Parameters that the flow still takes: an upgrade may have taken a question off the form, or narrowed its bounds.

    Args:
        model: What the flow takes.
        given: What is to be its parameters.
        code: What stands in for those that are no longer valid, where it names them.

    Returns:
        The parameters, and the names of those that were given up.
    """
    wrong = _find_wrong(model, given)
    kept = {name: value for name, value in given.items() if name not in wrong}
    fitted = kept | {name: code[name] for name in wrong if name in code}
    if _find_wrong(model, fitted):
        return dict(code), sorted(given)
    return fitted, sorted(wrong)


def _find_wrong(model: type[BaseModel], given: Mapping[str, Any]) -> set[str]:
    try:
        model.model_validate(given)
    except ValidationError as error:
        told = [each for each in error.errors() if each["type"] != "missing"]  # what the form has to ask is no mistake
        return {name for each in told for name in (each["loc"][:1] or given) if isinstance(name, str)}
    return set()


def _to_rule(schedule: Schedule, time_zone: str) -> SCHEDULE_TYPES:
    if schedule.cron:
        return CronSchedule(cron=schedule.cron, timezone=time_zone)
    return IntervalSchedule(
        interval=timedelta(seconds=schedule.every_s), anchor_date=INTERVALS_BEGIN, timezone=time_zone
    )


def _say_rule(rule: SCHEDULE_TYPES) -> str:
    return rule.model_dump_json()
