"""What a backfill has to do: which version, which pieces of whose time, and what waits in each.

Work is derived, not remembered: range x instruments x version - predictions there. So a run that was ended is begun
again, and has less to do. Reads, and changes nothing; knows no worker and no Prefect.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import groupby

from fieldpost.errors import InvalidRequestError, UnknownModelError
from flows.backfilling.archived_days import BaggedDay, find_bagged_days
from flows.backfilling.parameters import BackfillParams
from flows.backfilling.predictors import Version
from flows.backfilling.span import Batch, DayKey, Span, find_spans, make_batches
from flows.backfilling.waiting import SpanCounts, count_span
from flows.site import Site
from server.analyses import find_course_start
from server.archive.bags import InstrumentDay, list_instrument_days
from server.models import catalogue
from server.models.card import ModelCard, ModelKind, ModelState
from server.models.files import ModelFiles
from server.workers.jobs import ModelKey

ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PlannedSpan:
    """A piece, what there is of it in the hot store and in bags, and what is to be done about it."""

    span: Span
    counts: SpanCounts
    is_archived: bool
    left_because: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be done.

    Attributes:
        version: Who predicts.
        first_day: Of the range.
        last_day: Of the range.
        planned: The pieces, those too in which nothing is to be done.
        bagged: The days that have to be brought back, by name.
        batches: What is predicted together, in order.
        notes: What a person has to know before, in words.
    """

    version: Version
    first_day: date
    last_day: date
    planned: Sequence[PlannedSpan]
    bagged: dict[DayKey, BaggedDay]
    batches: Sequence[Batch]
    notes: Sequence[str] = field(default=())

    @property
    def to_do(self) -> list[PlannedSpan]:
        """The pieces in which something is to be done."""
        return [each for each in self.planned if not each.left_because]

    @property
    def waiting_count(self) -> int:
        """Observations that are to be predicted."""
        return sum(each.counts.waiting_count for each in self.to_do)

    @property
    def there_count(self) -> int:
        """Observations that have their prediction."""
        return sum(each.counts.observation_count - each.counts.waiting_count for each in self.planned)


def find_version(site: Site, analysis: str, number: int) -> Version:
    """The version that is to predict.

    Raises:
        UnknownModelError: There is none; the message names those there are.
        InvalidRequestError: It is retired, or this checkout cannot run it.
    """
    key = ModelKey(analysis, number)
    with site.store.read() as connection:
        rows = catalogue.list_rows(connection, analysis)
        row = catalogue.find_row(connection, key)
        card = catalogue.find_card(connection, *key)
        if row is None:
            known = ", ".join(f"{each.version} ({each.state})" for each in rows)
            there = f"its versions are {known}" if known else "there is no such analysis"
            raise UnknownModelError(
                f"expected a version of {analysis!r}, but got {number}: {there}",
                hint="`fieldpost models list` shows all",
            )
        if row.state == ModelState.RETIRED:
            raise InvalidRequestError(
                f"expected a version that predicts, but {key} is retired",
                hint="a retired version can be made ready again: docs/models.md says how",
            )
        if card is None:
            raise InvalidRequestError(
                f"expected a version that this installation can run, but it cannot run {key}",
                hint="install the version of Fieldpost that brought it",
            )
        package = catalogue.make_package(connection, ModelFiles(site.settings.models), key)
    course_start = None if card.kind is ModelKind.ONNX else find_course_start(analysis)
    if course_start is not None and course_start(number, time.time_ns(), None) is None:
        course_start = None
    return Version(
        card,
        package,
        course_start,
        is_served=row.first_active_unix_nanos is not None and card.state is not ModelState.SHADOW,
    )


def make_plan(site: Site, params: BackfillParams, version: Version) -> Plan:
    """Looks at the range, and says what is to be done in it.

    Raises:
        InvalidRequestError: There is no observation in the range that the version answers for.
    """
    card = version.card
    with site.store.read() as connection:
        hot_days = list_instrument_days(
            connection,
            params.first_day,
            params.last_day,
            station=params.station or "",
            instrument=params.instrument or "",
        )
    # A course may begin the day before the range and end the day after it.
    bagged = find_bagged_days(
        site,
        card,
        params.first_day - ONE_DAY,
        params.last_day + ONE_DAY,
        station=params.station,
        instrument=params.instrument,
        is_read=params.where != "hot store",
    )
    in_range = [each.day for each in bagged if params.first_day <= each.day.day <= params.last_day]
    days = {(day.instrument_id, day.day): day for day in (*in_range, *hot_days)}
    meant, notes = choose_meant(card, list(days.values()))
    if not meant:
        raise InvalidRequestError(
            f"expected observations between {params.first_day} and {params.last_day} that {card.key} answers for, but "
            + (f"got none: {'; '.join(notes)}" if notes else "there are none"),
            hint="`fieldpost status` shows what there is; look at station, instrument and days",
        )
    by_key = {each.key: each for each in bagged}
    planned = []
    spans = find_spans(meant, card.key.version, version.course_start)
    for _, of_instrument in groupby(spans, key=lambda each: each.instrument.instrument_id):
        with site.store.read() as connection:
            counted = [(span, count_span(connection, card.row_id, span)) for span in of_instrument]
        for span, counts in counted:
            touched = [by_key[key] for day in span.days if (key := (span.instrument.instrument_id, day)) in by_key]
            planned.append(plan_span(params, card, span, counts, touched))
    to_do = [each.span for each in planned if not each.left_because]
    batches = make_batches(to_do, by_key, params.days_at_once)
    return Plan(version, params.first_day, params.last_day, planned, by_key, batches, [*notes, *_reasons(planned)])


def choose_meant(card: ModelCard, days: Iterable[InstrumentDay]) -> tuple[list[InstrumentDay], list[str]]:
    """The days of instruments that a version answers for, and in words which ones it does not. Pure."""
    meant, notes = [], {}
    for day in days:
        name = f"{day.station}/{day.instrument}"
        if day.instrument_model not in card.instrument_models:
            models = ", ".join(sorted(card.instrument_models))
            notes[name] = f"{card.key} does not answer for {name}, a {day.instrument_model}, but for {models}"
        elif not card.restriction.allows(day.station, day.instrument):
            notes[name] = f"{card.key} is restricted, and not to {name}"
        else:
            meant.append(day)
    return meant, list(notes.values())


def plan_span(
    params: BackfillParams, card: ModelCard, span: Span, hot: SpanCounts, bagged: Sequence[BaggedDay]
) -> PlannedSpan:
    """Decides about a piece. Pure.

    Args:
        params: What a person chose.
        card: The version.
        span: The piece.
        hot: What the hot store has of it.
        bagged: The days that it touches and that only the archive has.
    """
    away = [each for each in bagged if not each.is_here]
    counts = SpanCounts(
        hot.observation_count + sum(each.observation_count for each in away),
        hot.waiting_count + sum(each.waiting_count for each in away),
        hot.failed_count + sum(each.failed_count for each in away),
    )
    if params.retry_failures:
        counts = SpanCounts(counts.observation_count, counts.waiting_count + counts.failed_count, counts.failed_count)
    left = ""
    if not counts.waiting_count and not any(each.waiting_count for each in bagged):
        left = "everything is predicted"
    elif bagged and params.where == "hot store":
        left = "a part of it is in the archive alone, which was not to be looked at"
    elif not bagged and params.where == "archive":
        left = "it is in the hot store, which was not to be looked at"
    elif not bagged and card.state in (ModelState.ACTIVE, ModelState.SHADOW):
        left = f"{card.key} is {card.state}: the server itself predicts what is in the hot store"
    return PlannedSpan(span, counts, bool(bagged), left)


def _reasons(planned: Iterable[PlannedSpan]) -> list[str]:
    """Why some pieces are left as they are, once each."""
    counts: dict[str, int] = {}
    for each in planned:
        if each.left_because:
            counts[each.left_because] = counts.get(each.left_because, 0) + each.counts.waiting_count
    return [f"{reason} ({count} observations wait)" if count else reason for reason, count in counts.items()]
