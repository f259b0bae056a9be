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
from flows import events
from flows.archiving.archivist import ArchivedDay, Archivist, FailedDay, Outcome
from flows.archiving.copies import Copies, copy_bags
from flows.archiving.parameters import ArchiveParams
from flows.archiving.picture import draw_pictures
from flows.archiving.report import to_error, to_markdown, to_rows, to_summary
from flows.archiving.second_copy import CopiedBag, Copyist, CopyOutcome, FailedCopy
from flows.bags.day import DayReader
from flows.limits import array_write
from flows.progress import Progress
from flows.site import Site, open_site
from server.archive.bag_copies import UncopiedBag
from server.archive.bags import InstrumentDay
from server.storage.store import Store

FAILED = "fieldpost.archive.failed"
YESTERDAY = ArchiveParams()


def name_run() -> str:
    """What the run is called on Prefect's page."""
    params = ArchiveParams.model_validate(runtime.flow_run.parameters["params"])
    first, last = params.first_day or "yesterday", params.last_day or "yesterday"
    return f"archive {first}" if first == last else f"archive {first} to {last}"


@flow(name="archive", flow_run_name=name_run)
def archive(params: ArchiveParams = YESTERDAY) -> None:
    """Archives days of instruments: raw observations bit for bit, predictions as CF-NetCDF, read back and verified.

    Running it again is harmless: what is archived already is left as it is.
    """
    first_day, last_day = params.days(due_day())
    with open_site(params.settings_file) as site:
        archivist = Archivist(site)
        outcomes = list(archive_each(archivist, find_days(archivist, params, first_day, last_day)))
        copies = copy_bags(site, outcomes, copy_one, is_new_place=params.new_copy)
        show(site, outcomes, copies)
        drawn = [draw_day(site.store, each.day, return_state=True) for each in outcomes if is_new(each)]
    if error := to_error(outcomes, copies):
        raise error
    for state in drawn:
        state.result()  # a picture that failed fails the run, once everything else is safe


def archive_each(archivist: Archivist, days: list[InstrumentDay]) -> Iterator[Outcome]:
    """Archives the days one after the other; one that fails does not keep the others."""
    progress = Progress("archive-progress", "Instrument-days looked at")
    for number, day in enumerate(days, 1):
        state = archive_day.with_options(task_run_name=f"archive {day}")(archivist, day, return_state=True)
        result = state.result(raise_on_failure=False)
        if isinstance(result, ArchivedDay):
            yield result
        else:
            get_run_logger().error("%s could not be archived: %s", day, result)
            tell_of_failure(day, result)
            yield FailedDay(day, result)
        if len(days) > 1:
            progress(number / len(days), f"{number} of {len(days)} days")


def tell_of_failure(day: InstrumentDay, error: BaseException) -> None:
    """Emits the event that automations wait for."""
    facts = {"station": day.station, "instrument": day.instrument, "day": day.day.isoformat(), "error": str(error)}
    events.tell(FAILED, f"fieldpost.instrument.{day.station}.{day.instrument}", facts)


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
    """Makes sure that the newest bag of a day holds it all; waits for its turn only where there is something to do."""
    if present := archivist.find_present(day):
        return present
    with array_write():
        return archivist.archive(day, time.time_ns())


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=2))
def find_days(archivist: Archivist, params: ArchiveParams, first_day: date, last_day: date) -> list[InstrumentDay]:
    """The days that have observations."""
    return archivist.find_days(first_day, last_day, station=params.station, instrument=params.instrument)


def copy_one(copyist: Copyist, bag: UncopiedBag) -> CopyOutcome:
    """Brings a bag to the second place and says what became of it."""
    state = copy_bag.with_options(task_run_name=f"copy {bag.record.path}")(copyist, bag, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, CopiedBag):
        return result
    get_run_logger().error("%s could not be copied: %s", bag.record.path, result)
    return FailedCopy(bag, result)


@task(
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=10,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
def copy_bag(copyist: Copyist, bag: UncopiedBag) -> CopiedBag:
    """Makes sure that the second place has a bag."""
    return copyist.copy(bag, time.time_ns())


@task(cache_policy=NO_CACHE)
def draw_day(store: Store, day: InstrumentDay) -> None:
    """Draws a day and keeps the pictures as artifacts."""
    for picture in draw_pictures(DayReader(store, day)):
        key = f"archive-{day.station}-{day.instrument}-{day.day}-{picture.analysis}"
        create_markdown_artifact(to_markdown(day, picture), key=key, description=f"{day}: {picture.analysis}")


@task(cache_policy=NO_CACHE)
def show(site: Site, outcomes: list[Outcome], copies: Copies) -> None:
    """Keeps the table and the summary as artifacts."""
    create_table_artifact(to_rows(outcomes, copies), key="archive", description="What the run did with each day")
    page = to_summary(site, outcomes, copies)
    create_markdown_artifact(page, key="archive-summary", description="What the run did, in a few lines")


def is_new(outcome: Outcome) -> bool:
    """Whether this run brought a bag into the archive's record."""
    return isinstance(outcome, ArchivedDay) and outcome.status != "present"


def due_day() -> date:
    """The UTC day on which the run was due: one that starts late, after a night without power, still means its day."""
    due: datetime | None = runtime.flow_run.scheduled_start_time
    return (due or datetime.now(UTC)).astimezone(UTC).date()
