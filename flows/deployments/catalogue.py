"""The deployments of all flows: the one list that `python -m flows serve` and deploy/prefect.yaml stand on.

Plain values; a test holds deploy/prefect.yaml to them. Knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a deployment runs by itself.

    Attributes:
        slug: Its name: what an operator changes in the page is kept under it.
        cron: Minute, hour, day of month, month, day of week.
        timezone: IANA name.
    """

    slug: str
    cron: str
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class DeploymentDefinition:
    """A flow with its schedules and its default parameters.

    Attributes:
        entrypoint: `module:function`, importable wherever runs start.
        name: Of the deployment.
        description: One sentence for the page.
        work_pool: Where runs start when workers do the work; `serve` starts them itself.
        schedules: When it runs by itself.
        parameters: Default parameters.
        tags: For filters on the page.
        concurrency_limit: So many runs at once; others wait for their turn.
        event: It runs when this happens, too; empty for no such event.
    """

    entrypoint: str
    name: str
    description: str
    work_pool: str
    schedules: tuple[Schedule, ...]
    parameters: Mapping[str, object] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    concurrency_limit: int = 1
    event: str = ""


NIGHTLY_ARCHIVE = DeploymentDefinition(
    entrypoint="flows.archive:archive",
    name="nightly",
    description="Archives yesterday, and what came late for the month before it.",
    work_pool="storage",
    schedules=(Schedule(slug="nightly", cron="30 1 * * *"),),
    parameters={"params": {"late_days": 30}},
    tags=("archive",),
)

WEEKLY_RETRAIN = DeploymentDefinition(
    entrypoint="flows.retrain:retrain",
    name="weekly",
    description="Trains a version on days like the network's, and activates it where it is better.",
    work_pool="train",
    schedules=(Schedule(slug="weekly", cron="0 3 * * 0"),),
    tags=("retrain",),
    event="fieldpost.drift",
)
DAILY_DRIFT = DeploymentDefinition(
    entrypoint="flows.drift:drift",
    name="daily",
    description="Tells when days are no longer like those that the active version was trained for.",
    work_pool="storage",
    schedules=(Schedule(slug="daily", cron="30 4 * * *"),),
    tags=("retrain",),
)

CATALOGUE = (NIGHTLY_ARCHIVE, WEEKLY_RETRAIN, DAILY_DRIFT)


def to_prefect_yaml(definition: DeploymentDefinition) -> dict[str, object]:
    """The deployment as it stands in deploy/prefect.yaml."""
    triggers = [{"type": "event", "name": definition.event, "expect": [definition.event]}] if definition.event else []
    return {
        "name": definition.name,
        "entrypoint": definition.entrypoint,
        "description": definition.description,
        "work_pool": {"name": definition.work_pool},
        "schedules": [
            {"cron": each.cron, "timezone": each.timezone, "slug": each.slug} for each in definition.schedules
        ],
        "parameters": dict(definition.parameters),
        "tags": list(definition.tags),
        "concurrency_limit": {"limit": definition.concurrency_limit, "collision_strategy": "ENQUEUE"},
        **({"triggers": triggers} if triggers else {}),
    }
