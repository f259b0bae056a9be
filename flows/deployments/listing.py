"""What is registered at the Prefect server, for a person or a script: when each deployment runs next, and how it went.

Reads only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows.deployments.catalogue import DeploymentDefinition

ENDED = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]


@dataclass(frozen=True, slots=True)
class Row:
    """A deployment of the catalogue.

    Attributes:
        deployment: Its name, archive/nightly.
        status: active, paused, or absent where the server has none.
        next_run: ISO 8601, UTC; empty where none is planned.
        running: So many runs now.
        last_state: Of the run that ended last; empty where none did.
        last_run: When that ended, ISO 8601, UTC.
    """

    deployment: str
    status: str
    next_run: str = ""
    running: int = 0
    last_state: str = ""
    last_run: str = ""


def list_deployments(catalogue: Sequence[DeploymentDefinition]) -> list[Row]:
    """Asks the Prefect server for each deployment."""
    with get_client(sync_client=True) as client:
        return [_read(client, each) for each in catalogue]


def to_text(rows: Sequence[Row]) -> str:
    """A table for a terminal."""
    lines = [("deployment", "status", "next run", "running", "last ended", "as")]
    lines += [
        (each.deployment, each.status, each.next_run, str(each.running or ""), each.last_run, each.last_state)
        for each in rows
    ]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def to_json(rows: Sequence[Row]) -> str:
    """An array of objects."""
    return json.dumps([asdict(each) for each in rows], indent=2)


def _read(client: SyncPrefectClient, definition: DeploymentDefinition) -> Row:
    try:
        deployment = client.read_deployment_by_name(definition.full_name)
    except ObjectNotFound:
        return Row(definition.full_name, "absent")
    planned = _read_runs(client, deployment, [StateType.SCHEDULED], FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC)
    ended = _read_runs(client, deployment, ENDED, FlowRunSort.END_TIME_DESC)
    running = _read_runs(client, deployment, [StateType.RUNNING], FlowRunSort.ID_DESC, limit=100)
    schedules = [each for each in deployment.schedules if each.active]
    is_paused = deployment.paused or (bool(deployment.schedules) and not schedules)
    return Row(
        deployment=definition.full_name,
        status="paused" if is_paused else "active",
        next_run=_say(planned[0].next_scheduled_start_time) if planned else "",
        running=len(running),
        last_state=ended[0].state_name or "" if ended else "",
        last_run=_say(ended[0].end_time) if ended else "",
    )


def _read_runs(
    client: SyncPrefectClient,
    deployment: DeploymentResponse,
    states: list[StateType],
    sort: FlowRunSort,
    limit: int = 1,
) -> list[FlowRun]:
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        sort=sort,
        limit=limit,
    )


def _say(instant: datetime | None) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if instant else ""
