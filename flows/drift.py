"""The drift flow: tells Prefect when days are no longer like those that the active version was trained for.

The event `fieldpost.drift` starts a retrain, where a deployment's trigger says so. It is quiet for a while after a
version was trained, whatever became of that: the same days would only give the same version again.
"""

from __future__ import annotations

import time
from datetime import date, timedelta
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from fieldpost.names import NAME_PATTERN
from flows import events
from flows.archive import due_day
from flows.parameters import Form
from flows.retraining.drift_core import Deviation, describe_network, find_drift
from flows.retraining.versions import only_analysis, open_watch

EVENT = "fieldpost.drift"


class DriftParams(Form):
    """Which days are held against the training's."""

    analysis: str | None = Field(
        default=None,
        pattern=f"^{NAME_PATTERN.pattern}$",
        title="Analysis",
        description="Which analysis to watch; without it, the only one that can be retrained.",
        json_schema_extra={"position": 1},
    )
    days: int = Field(
        default=7,
        ge=3,
        le=366,
        title="Days to look at",
        description="So many days before the run; what counts is the middle one, so that one odd day is no drift.",
        json_schema_extra={"position": 2},
    )
    quiet_days: int = Field(
        default=21,
        ge=0,
        le=3660,
        title="Quiet days",
        description="So many days after a version was trained nothing is told.",
        json_schema_extra={"position": 3},
    )
    settings_file: Path | None = Field(
        default=None,
        title="Settings file",
        description="The server's TOML settings; without it, the environment (FIELDPOST_...) and the defaults.",
        json_schema_extra={"position": 4},
    )


USUAL = DriftParams()


@flow(name="drift")
def drift(params: DriftParams = USUAL) -> None:
    """Holds the last days of each instrument against the days that the active version was trained for."""
    analysis = params.analysis or only_analysis()
    last_day = due_day() - timedelta(days=1)
    deviations = look(params, analysis, last_day - timedelta(days=params.days - 1), last_day)
    for each in deviations:
        get_run_logger().warning("%s", each)
    if deviations:
        tell(params, analysis, deviations)


@task(cache_policy=NO_CACHE)
def look(params: DriftParams, analysis: str, first_day: date, last_day: date) -> list[Deviation]:
    """Describes the days, and finds what deviates."""
    with open_watch(params.settings_file, analysis) as watch:
        days = describe_network(watch, first_day, last_day)
        deviations = find_drift(days, watch.usual(sorted({each.instrument_model for each in days})))
    rows = [each.to_row() for each in deviations]
    create_table_artifact(rows, key="drift", description=f"{first_day} to {last_day}: what is not as in the training")
    return deviations


@task(cache_policy=NO_CACHE)
def tell(params: DriftParams, analysis: str, deviations: list[Deviation]) -> None:
    """Emits one event for all instruments, so that one retrain follows."""
    with open_watch(params.settings_file, analysis) as watch:
        trained_unix_nanos = watch.last_trained_unix_nanos
    if time.time_ns() - trained_unix_nanos < params.quiet_days * 86_400 * 10**9:
        get_run_logger().info("a version was trained less than %d days ago: nothing is told", params.quiet_days)
        return
    facts = {"analysis": analysis, "deviations": [each.to_row() for each in deviations]}
    events.tell(EVENT, f"fieldpost.analysis.{analysis}", facts)
