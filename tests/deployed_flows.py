"""Small flows that tests deploy: processes of their own must be able to import them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import BaseModel, Field

from flows.deployments.catalogue import DeploymentDefinition, Schedule

STEPS = 8


class CountParams(BaseModel):
    """What to count, and where to."""

    folder: Path = Field(default=Path(), title="Folder", json_schema_extra={"position": 1})
    step_s: float = Field(default=0.0, ge=0, title="Pause", json_schema_extra={"position": 2})
    late_days: int = Field(default=0, ge=0, title="Days", json_schema_extra={"position": 3})


ONCE = CountParams()


@flow
def count(params: CountParams = ONCE) -> None:
    """Makes the files 0 to 7, each once; goes on where an ended run stopped."""
    (params.folder / "process-id").write_text(str(os.getpid()))
    for step in range(STEPS):
        file = params.folder / f"{step}.step"
        if not file.exists():
            time.sleep(params.step_s)
            with file.open("x") as created:
                created.write(str(os.getpid()))


def define(**changes: Any) -> DeploymentDefinition:
    """A deployment of the flow."""
    usual: dict[str, Any] = {
        "flow": "count",
        "name": "nightly",
        "entrypoint": "deployed_flows:count",
        "params": "deployed_flows:CountParams",
        "description": "Counts.",
        "work_pool": "cpu",
        "schedules": (Schedule(slug="nightly", cron="30 1 * * *"), Schedule(slug="weekly", cron="0 3 * * 0")),
        "parameters": {"params": {"late_days": 30}},
        "tags": ("counting",),
    }
    return DeploymentDefinition(**usual | changes)
