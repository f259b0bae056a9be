"""The scrub flow: reads every bag of the archive from the first to the last byte, and mends it from its copy.

A table of contents: what is done stands in scrubber.py and the files that it names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from flows.events import tell
from flows.limits import array_write
from flows.progress import Progress
from flows.scrubbing.order import Plan, in_chunks
from flows.scrubbing.parameters import ScrubParams
from flows.scrubbing.records import RecordedBag
from flows.scrubbing.report import Report, to_error, to_markdown, to_rows
from flows.scrubbing.scrubber import Outcome, Scrubber, UnreadBag
from flows.site import open_site

ALL = ScrubParams()
CHUNK_COUNT = 50
"""Bags of one task: an archive of many years has a hundred thousand, and Prefect keeps each task's row."""
UNREAD_IN_A_ROW_MAX = 3
"""After so many the storage is away, and the run ends; the next one goes on where it was."""
TELL_EVERY_S = 2.0


def name_run() -> str:
    """What the run is called on Prefect's page."""
    params = ScrubParams.model_validate(runtime.flow_run.parameters["params"])
    return f"scrub {params.first_day or 'the oldest'} to {params.last_day or 'the newest'}"


@flow(name="scrub", flow_run_name=name_run)
def scrub(params: ScrubParams = ALL) -> None:
    """Reads the bags of the archive and of its copy, compares every hash, and mends what is damaged on one side.

    Running it again is harmless: the bags that were not read for longest come first.
    """
    params.check()
    with open_site(params.settings_file) as site:
        scrubber = Scrubber(site, is_repairing=params.repair, writing=array_write)
        plan = make_plan(scrubber, params)
        began_s = time.monotonic()
        outcomes = scrub_all(scrubber, plan)
        elapsed_s = time.monotonic() - began_s
        report = Report(plan, outcomes, find_unrecorded(scrubber, params), elapsed_s, time.time_ns())
    show(report)
    if error := to_error(report):
        raise error


def scrub_all(scrubber: Scrubber, plan: Plan) -> list[Outcome]:
    """Scrubs chunk by chunk; what the storage did not let be read is tried once more at the end."""
    done = Done(plan.due_bytes)
    first: list[Outcome] = []
    for number, chunk in enumerate(in_chunks(plan.due, CHUNK_COUNT)):
        name = f"scrub from {chunk[0].path}"
        first += scrub_chunk.with_options(task_run_name=name)(scrubber, chunk, done)
        get_run_logger().info("%s of %s bags looked at", number * CHUNK_COUNT + len(chunk), len(plan.due))
        if is_storage_away(first):
            return first
    done.tell(1.0)
    unread = [each.bag for each in first if isinstance(each, UnreadBag)]
    again = scrub_chunk.with_options(task_run_name="scrub again")(scrubber, unread, done) if unread else []
    return [each for each in first if not isinstance(each, UnreadBag)] + list(again)


class Done:
    """How far the run is, by bytes; tells now and then."""

    def __init__(self, due_bytes: int) -> None:
        self._due_bytes = max(due_bytes, 1)
        self._done_bytes = 0
        self._told_s = 0.0
        self._progress = Progress("scrub-progress", "Bytes of the archive read")

    def add(self, byte_count: int) -> None:
        """Counts bytes that were read."""
        self._done_bytes += byte_count
        if time.monotonic() - self._told_s >= TELL_EVERY_S:
            self.tell(min(0.999, self._done_bytes / self._due_bytes))  # what is due is an estimate

    def tell(self, share: float) -> None:
        """Shows a share."""
        self._told_s = time.monotonic()
        self._progress(share, f"{self._done_bytes / 1e9:,.1f} of about {self._due_bytes / 1e9:,.1f} GB")


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=2))
def make_plan(scrubber: Scrubber, params: ScrubParams) -> Plan:
    """Decides which bags to read."""
    return scrubber.plan(params, time.time_ns())


@task(cache_policy=NO_CACHE)
def scrub_chunk(scrubber: Scrubber, bags: list[RecordedBag], done: Done) -> list[Outcome]:
    """Reads some bags, and tells of those that cannot be trusted as soon as they are found."""
    outcomes = []
    for outcome in scrub_each(scrubber, bags, done):
        outcomes.append(outcome)
        if is_storage_away(outcomes):
            break
    return outcomes


def scrub_each(scrubber: Scrubber, bags: list[RecordedBag], done: Done) -> Iterator[Outcome]:
    """Reads the bags one after the other; one that fails does not keep the others."""
    for bag in bags:
        outcome = scrubber.scrub(bag, time.time_ns(), done.add)
        if isinstance(outcome, UnreadBag):
            get_run_logger().warning("%s could not be read: %s", bag.path, outcome.error)
        elif outcome.damage and not outcome.is_superseded:
            get_run_logger().error("%s is damaged: %s", bag.path, outcome.damage)
            payload = {"path": bag.path, "damage": outcome.damage, "advice": outcome.advice}
            tell("fieldpost.scrub.damaged", f"fieldpost.bag.{bag.path}", payload)
        elif outcome.problems:
            get_run_logger().warning("%s: %s: %s", bag.path, outcome.word, "; ".join(outcome.problems))
        yield outcome


def is_storage_away(outcomes: list[Outcome]) -> bool:
    """Whether the last bags could not be read, one after the other."""
    last = outcomes[-UNREAD_IN_A_ROW_MAX:]
    return len(last) == UNREAD_IN_A_ROW_MAX and all(isinstance(each, UnreadBag) for each in last)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=2))
def find_unrecorded(scrubber: Scrubber, params: ScrubParams) -> list[str]:
    """Names the bags that the database does not know."""
    return scrubber.find_unrecorded(params)


@task(cache_policy=NO_CACHE)
def show(report: Report) -> None:
    """Keeps the summary and the table of what is not as it should be as artifacts."""
    create_markdown_artifact(to_markdown(report), key="scrub", description="What was read, and what failed")
    if rows := to_rows(report):
        create_table_artifact(rows, key="scrub-found", description="Bags that are not as they should be")
