"""The fill-gaps flow: finds observations that never arrived, asks their stations for them, and says what is lost.

A table of contents: what is done stands in the folder gap_filling.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from fieldpost.v1 import command_pb2
from flows import events
from flows.gap_filling import told
from flows.gap_filling.filling import FilledEpoch, Filler, Patience
from flows.gap_filling.finding import StationGaps, find_gaps
from flows.gap_filling.gaps import common
from flows.gap_filling.parameters import FillGapsParams
from flows.gap_filling.report import format_ranges, to_error, to_markdown, to_rows
from flows.memory_file import FOLDER, read_memory, write_memory
from flows.progress import Progress
from flows.server_client import open_client
from flows.site import open_store
from server.storage.store import Store

EVENT = "fieldpost.gap.found"
ALL_STATIONS = FillGapsParams()
STATIONS_AT_ONCE = 16
"""A station spends its time sending; here it costs a thread that waits."""
ANSWER_S = 60.0
PROGRESS_S = 5.0


THREADS = ThreadPoolTaskRunner(max_workers=STATIONS_AT_ONCE)  # type: ignore[var-annotated]  # never told by Prefect


@flow(name="fill-gaps", task_runner=THREADS)  # type: ignore[arg-type]  # Prefect's own types do not fit each other
def fill_gaps(params: FillGapsParams = ALL_STATIONS) -> None:
    """Finds observations that never arrived, asks their stations to send them again, and waits for them.

    Running it again is harmless: what comes twice is dropped. What a station no longer has is recorded as lost.
    """
    with open_store(params.settings_file) as (settings, store), open_client(settings, params.server) as client:
        came = Tally()

        def ask(station: str, command: command_pb2.Command) -> command_pb2.CommandResult:
            return client.ask(station, command, timeout_s=ANSWER_S)

        filler = Filler(
            store,
            ask,
            Patience(60.0 * params.max_wait_minutes),
            give_up_old_epochs=params.give_up_old_epochs,
            is_dry_run=params.dry_run,
            on_came=came.add,
        )
        gaps = find(store, params)
        futures = [
            fill_station.with_options(task_run_name=f"fill {each.station}").submit(filler, each) for each in gaps
        ]
        show_progress(futures, came, sum(len(epoch.gap) for each in gaps for epoch in each.epochs))
        outcomes = [epoch for future in futures for epoch in future.result()]
        report(outcomes)
        if not params.dry_run:
            tell(settings.data_folder / FOLDER / told.FILE_NAME, outcomes, params.station)
    if error := to_error(outcomes):
        raise error


class Tally:
    """How many observations have come, told by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, count: int) -> None:
        """So many more."""
        with self._lock:
            self.count += count


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=2))
def find(store: Store, params: FillGapsParams) -> list[StationGaps]:
    """The stations that lack something."""
    grace_s = 60.0 * params.grace_minutes
    gaps = find_gaps(store, station=params.station or "", grace_s=grace_s, now_unix_nanos=time.time_ns())
    for each in gaps:
        for epoch in each.epochs:
            get_run_logger().info("%s lacks %s", each.station, format_ranges(epoch.missing))
    return gaps


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=exponential_backoff(backoff_factor=10))
def fill_station(filler: Filler, gaps: StationGaps) -> list[FilledEpoch]:
    """Asks one station, and waits; what does not come stays for the next run."""
    outcomes = filler.fill(gaps)
    for each in outcomes:
        get_run_logger().info(
            "%s: %d came, %d lost, %d still missing %s",
            gaps.station,
            each.came_count,
            len(each.lost),
            len(each.still),
            each.why and f"({each.why})",
        )
    return outcomes


def show_progress(futures: list[PrefectFuture[list[FilledEpoch]]], came: Tally, wanted_count: int) -> None:
    """Until all stations are done; the page shows how far they are."""
    if not futures:
        return
    progress = Progress("fill-gaps-progress", "Observations that came of those asked for")
    waiting = set(futures)
    while waiting:
        waiting = wait(list(waiting), timeout=PROGRESS_S).not_done
        share = min(1.0, came.count / wanted_count) if waiting and wanted_count else 1.0
        stations = f"{len(futures) - len(waiting)} of {len(futures)} stations"
        progress(share, f"{came.count} of {wanted_count}, {stations}")


@task(cache_policy=NO_CACHE)
def report(outcomes: Sequence[FilledEpoch]) -> None:
    """Keeps the table and the summary as artifacts."""
    create_table_artifact(to_rows(outcomes), key="fill-gaps", description="What was missing, and what became of it")
    create_markdown_artifact(to_markdown(outcomes), key="fill-gaps-summary", description="What is lost, and what stays")


@task(cache_policy=NO_CACHE)
def tell(path: Path, outcomes: Sequence[FilledEpoch], only_station: str | None) -> None:
    """Tells of each station whose gap stays, once for each gap."""
    stations = {each.found.facts.station for each in outcomes}
    known = {
        name: gaps
        for name, gaps in told.from_json(read_memory(path)).items()
        if name in stations or only_station not in (None, name)  # of a station that lacks nothing, all is forgotten
    }
    for station in sorted(stations):
        mine = [each for each in outcomes if each.found.facts.station == station]
        gaps = {each.found.facts.epoch: common(each.still, each.found.gap) for each in mine}
        before = known.get(station, {})
        if told.is_news(gaps, before):
            rows = to_rows([each for each in mine if each.is_gap])
            if not events.tell(EVENT, f"fieldpost.station.{station}", {"station": station, "gaps": rows}):
                continue  # the next run tells
        known[station] = told.remember(gaps, {each.found.facts.epoch: each.still for each in mine}, before)
    write_memory(path, told.to_json(known))
