"""The archive flow: every instrument-day becomes a verified bag on the storage array, and the run tells what it did.

A table of contents: what is done stands in archivist.py and the files that it names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from prefect import State, Task, flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import exponential_backoff

from fieldpost.errors import BrokenStateError, RejectedError
from flows.archiving.archivist import ArchivedDay, Archivist, FailedDay, Outcome
from flows.archiving.parameters import ArchiveParams
from flows.archiving.picture import draw_pictures
from flows.archiving.report import to_error, to_markdown, to_rows
from flows.bags.day import DayReader
from flows.site import open_archivist
from server.archive.bags import InstrumentDay

YESTERDAY = ArchiveParams()


def name_run() -> str:
    """What the run is called on Prefect's page."""
    params = ArchiveParams.model_validate(runtime.flow_run.parameters["params"])
    return f"archive {params.first_day or 'yesterday'} to {params.last_day or 'yesterday'}"


@flow(name="archive", flow_run_name=name_run)
def archive(params: ArchiveParams = YESTERDAY) -> None:
    """Archives days of instruments: raw observations bit for bit, predictions as CF-NetCDF, read back and verified.

    Running it again is harmless: what is archived already is left as it is.
    """
    first_day, last_day = params.days(due_day())
    with open_archivist(params.settings_file) as archivist:
        outcomes = list(archive_each(archivist, find_days(archivist, params, first_day, last_day)))
        tell(outcomes)
        drawn = [draw_day(archivist, each.day, return_state=True) for each in outcomes if is_new(each)]
    if error := to_error(outcomes):
        raise error
    for state in drawn:
        state.result()  # a picture that failed fails the run, once everything else is safe


def archive_each(archivist: Archivist, days: list[InstrumentDay]) -> Iterator[Outcome]:
    """Archives the days one after the other; one that fails does not keep the others."""
    for day in days:
        state = archive_day.with_options(task_run_name=f"archive {day}")(archivist, day, return_state=True)
        result = state.result(raise_on_failure=False)
        if isinstance(result, ArchivedDay):
            yield result
        else:
            get_run_logger().error("%s could not be archived: %s", day, result)
            yield FailedDay(day, result)


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
def archive_day(archivist: Archivist, day: InstrumentDay) -> ArchivedDay:
    """Makes sure that the newest bag of a day holds it all."""
    return archivist.archive(day, time.time_ns())


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=2))
def find_days(archivist: Archivist, params: ArchiveParams, first_day: date, last_day: date) -> list[InstrumentDay]:
    """The days that have observations."""
    return archivist.find_days(first_day, last_day, station=params.station, instrument=params.instrument)


@task(cache_policy=NO_CACHE)
def draw_day(archivist: Archivist, day: InstrumentDay) -> None:
    """Draws a day and keeps the pictures as artifacts."""
    for picture in draw_pictures(DayReader(archivist.store, day)):
        key = f"archive-{day.station}-{day.instrument}-{day.day}-{picture.analysis}"
        create_markdown_artifact(to_markdown(day, picture), key=key, description=f"{day}: {picture.analysis}")


@task(cache_policy=NO_CACHE)
def tell(outcomes: list[Outcome]) -> None:
    """Keeps the table of all days as an artifact."""
    create_table_artifact(to_rows(outcomes), key="archive", description="What the run did with each instrument-day")


def is_new(outcome: Outcome) -> bool:
    """Whether this run brought a bag into the archive's record."""
    return isinstance(outcome, ArchivedDay) and outcome.status != "present"


def due_day() -> date:
    """The UTC day on which the run was due: one that starts late, after a night without power, still means its day."""
    due: datetime | None = runtime.flow_run.scheduled_start_time
    return (due or datetime.now(UTC)).astimezone(UTC).date()
