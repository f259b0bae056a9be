"""The watch flow: a look at the whole network every few minutes, and an event when something begins or ends.

A table of contents: what is worth telling is decided in looks.py, and read in network.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from flows import events
from flows.gap_filling import told
from flows.memory_file import FOLDER, read_memory, write_memory
from flows.site import open_store
from flows.watching import memory as kept
from flows.watching.looks import News, Rules, StationMemory, judge
from flows.watching.memory import Memory
from flows.watching.network import NetworkSeen, see_network
from flows.watching.parameters import WatchParams
from flows.watching.report import to_rows
from server.storage.store import Store

USUAL = WatchParams()
GAP_EVENT, ARCHIVE_EVENT = "fieldpost.gap.found", "fieldpost.archive.behind"


@flow(name="watch")
def watch(params: WatchParams = USUAL) -> None:
    """Looks at every station, every instrument and the archive, and tells what has begun or ended since the last look.

    It changes nothing but its own memory. What it could not tell, it tells at the next look.
    """
    with open_store(params.settings_file) as (settings, store):
        folder = settings.data_folder / FOLDER
        before = kept.from_json(read_memory(folder / kept.FILE_NAME))
        seen = look(store, before, params)
    rules = Rules(60.0 * params.silent_minutes, params.missed_intervals, params.growing_looks)
    stations = tell_stations(seen, before.stations, rules)
    show(seen, stations)
    is_behind = tell_archive(seen, before.is_archive_behind, params.archive_days)
    tell_gaps(folder / told.FILE_NAME, seen)
    write_memory(folder / kept.FILE_NAME, kept.to_json(Memory(stations, seen.epochs, is_behind)))


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=exponential_backoff(backoff_factor=5))
def look(store: Store, before: Memory, params: WatchParams) -> NetworkSeen:
    """How the network stands now."""
    return see_network(store, before.epochs, archive_days=params.archive_days, now_unix_nanos=time.time_ns())


@task(cache_policy=NO_CACHE)
def tell_stations(seen: NetworkSeen, before: Mapping[str, StationMemory], rules: Rules) -> dict[str, StationMemory]:
    """Tells what is new of stations; what could not be told is taken to be as it was, and told at the next look."""
    after, news = {}, []
    for station in seen.stations:
        after[station.name], more = judge(station, before.get(station.name, StationMemory()), rules)
        news += more
    for each in news:
        get_run_logger().warning("%s: %s %s", each.station, each.event, dict(each.facts))
    if events.tell_all([to_event(each) for each in news]):
        return after
    return {
        name: replace(before.get(name, StationMemory()), backlogs=memory.backlogs) for name, memory in after.items()
    }


def to_event(news: News) -> events.Event:
    """As Prefect is told of it."""
    return events.Event(news.event, f"fieldpost.station.{news.station}", {"station": news.station, **news.facts})


@task(cache_policy=NO_CACHE)
def show(seen: NetworkSeen, stations: Mapping[str, StationMemory]) -> None:
    """Keeps the table of the stations as an artifact."""
    create_table_artifact(to_rows(seen.stations, stations), key="stations", description="How the stations are")


@task(cache_policy=NO_CACHE)
def tell_archive(seen: NetworkSeen, was_behind: bool, archive_days: int) -> bool:
    """Tells once that days have no bag; returns whether that is so, and told."""
    if not seen.unarchived or was_behind:
        return bool(seen.unarchived)
    oldest = seen.unarchived[0]
    get_run_logger().warning("%d instrument-days have no bag, the oldest is of %s", len(seen.unarchived), oldest.day)
    facts = {"days": len(seen.unarchived), "oldest_day": oldest.day.isoformat(), "archive_days": archive_days}
    return events.tell(ARCHIVE_EVENT, "fieldpost.archive", facts)


@task(cache_policy=NO_CACHE)
def tell_gaps(path: Path, seen: NetworkSeen) -> None:
    """Tells of each station that lacks observations, once for each gap; fill-gaps tells of none a second time."""
    known = told.from_json(read_memory(path))
    news = []
    for station, gaps in seen.gaps.items():
        if told.is_news(gaps, known.get(station, {})):
            missing = sum(map(len, gaps.values()))
            get_run_logger().warning("%s: %d observations are missing", station, missing)
            facts = {"station": station, "missing": missing}
            news.append(events.Event(GAP_EVENT, f"fieldpost.station.{station}", facts))
    if not events.tell_all(news):
        return  # the next look tells
    after = {
        station: told.remember(gaps, seen.missing[station], known.get(station, {}))
        for station, gaps in seen.gaps.items()
    }
    write_memory(path, told.to_json(after))
