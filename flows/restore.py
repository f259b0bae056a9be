"""The restore flow: days come back from the archive, into the hot store or a folder, and the run tells what it did.

A table of contents: what is done stands in restorer.py and the files that it names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prefect import State, Task, flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import exponential_backoff

from fieldpost.errors import BrokenStateError, RejectedError
from flows.limits import array_write
from flows.progress import Progress
from flows.restoring.outcomes import DayPlan, Outcome, RestoredDay, UnrestoredDay
from flows.restoring.parameters import RestoreParams
from flows.restoring.report import to_error, to_markdown, to_plan_rows, to_plan_text, to_rows
from flows.restoring.restorer import Restorer
from flows.site import open_site
from server.archive.bags import NANOS_PER_DAY, InstrumentDay


def name_run() -> str:
    """What the run is called on Prefect's page."""
    params = RestoreParams.model_validate(runtime.flow_run.parameters["params"])
    return f"restore {params.first_day} to {params.last_day}"


@flow(name="restore", flow_run_name=name_run)
def restore(params: RestoreParams) -> None:
    """Brings days back from the archive, bit for bit, every hash checked.

    Running it again is harmless: what is there already is compared and left as it is.
    """
    folder = params.target_folder()
    keep_until = time.time_ns() + params.keep_days * NANOS_PER_DAY
    with open_site(params.settings_file) as site:
        restorer = Restorer(site)
        plans = find_plans(restorer, params)
        if params.dry_run:
            tell_plan(plans)
            return
        restorer.check_room(plans, folder)
        outcomes = list(restore_each(restorer, plans, params, keep_until))
        tell(outcomes, params, keep_until)
    if error := to_error(outcomes):
        raise error


def restore_each(restorer: Restorer, plans: list[DayPlan], params: RestoreParams, keep_until: int) -> Iterator[Outcome]:
    """Restores the days one after the other; one that fails does not keep the others."""
    progress = Progress("restore-progress", "Restored")
    done_bytes, total_bytes = 0, sum(each.payload_bytes for each in plans)
    for number, plan in enumerate(plans, 1):
        day = plan.day
        named = restore_day.with_options(task_run_name=f"restore {day}")
        state = named(restorer, day, params, keep_until, return_state=True)
        result = state.result(raise_on_failure=False)
        if isinstance(result, RestoredDay):
            yield result
        else:
            get_run_logger().error("%s could not be restored: %s", day, result)
            yield UnrestoredDay(day, result)
        done_bytes += plan.payload_bytes
        progress(done_bytes / total_bytes if total_bytes else 1.0, f"{number} of {len(plans)} days")


def is_worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """A full disk or a busy database passes; damage and wrong parameters do not."""
    return not isinstance(state.result(raise_on_failure=False), RejectedError | BrokenStateError)


@task(
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=10),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
def restore_day(restorer: Restorer, day: InstrumentDay, params: RestoreParams, keep_until: int) -> RestoredDay:
    """Brings one day back. A folder may well lie on the array whose writers take turns."""
    folder = params.target_folder()
    if folder is None:
        return restorer.restore(day, keep_until_unix_nanos=keep_until, with_predictions=params.with_predictions)
    with array_write():
        return restorer.restore_to_folder(day, folder)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=2))
def find_plans(restorer: Restorer, params: RestoreParams) -> list[DayPlan]:
    """The days that have a bag."""
    names = {"station": params.station, "instrument": params.instrument}
    return restorer.plan(restorer.find_days(params.first_day, params.last_day, **names))


@task(cache_policy=NO_CACHE)
def tell_plan(plans: list[DayPlan]) -> None:
    """Keeps what would be done as an artifact."""
    get_run_logger().info("dry run: %s", to_plan_text(plans))
    create_table_artifact(to_plan_rows(plans), key="restore", description=f"Dry run: {to_plan_text(plans)}")


@task(cache_policy=NO_CACHE)
def tell(outcomes: list[Outcome], params: RestoreParams, keep_until: int) -> None:
    """Keeps the table of all days, and what to do next, as artifacts."""
    create_table_artifact(to_rows(outcomes), key="restore", description="What the run did with each instrument-day")
    page = to_markdown(outcomes, params.target_folder(), keep_until, with_predictions=params.with_predictions)
    create_markdown_artifact(page, key="restore-summary", description="What came back, and what to do next")
