"""What a backfill is to do, and what it has done, in tables and pages for people. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from fieldpost.words import count, span
from flows.backfilling.comparing import Agreement, Quantity
from flows.backfilling.plan import Plan, PlannedSpan
from flows.backfilling.review import BeforeAndAfter
from flows.backfilling.run import Standing
from server.archive.bags import NANOS_PER_DAY
from server.workers.jobs import ModelKey

SPANS_SHOWN = 200
"""Rows of a table: it lies in Prefect's database, and nobody reads more."""


def to_plan_text(plan: Plan) -> str:
    """The plan in a few sentences."""
    key = plan.version.card.key
    piece = "day" if plan.version.course_start is None else "course"
    lines = [
        f"{count(plan.waiting_count, 'observation')} to be predicted by {key}, in {count(len(plan.to_do), piece)} of "
        f"instruments; {count(plan.there_count, 'other')} predicted already.",
    ]
    brought = {key for batch in plan.batches for key in batch.restored}
    if brought:
        lines.append(f"From the archive: {count(len(brought), 'day')}, each archived again as a new version.")
    expected_s = plan.waiting_count * plan.version.card.trial.observation_s
    if expected_s and plan.waiting_count:
        lines.append(f"By its trial, one process would take about {span(expected_s)}, with nobody else there.")
    return "\n".join([*lines, *(f"- {note}" for note in plan.notes)])


def to_plan_rows(plan: Plan) -> list[dict[str, str | int]]:
    """One row a piece, those in which something is to be done first; the first SPANS_SHOWN of them."""
    ordered = sorted(plan.planned, key=lambda each: bool(each.left_because))
    return [_plan_row(each) for each in ordered[:SPANS_SHOWN]]


def _plan_row(planned: PlannedSpan) -> dict[str, str | int]:
    piece = planned.span
    return {
        "station": piece.instrument.station,
        "instrument": piece.instrument.instrument,
        "from": _minute(piece.course.start_unix_nanos),
        "to": _minute(piece.course.end_unix_nanos),
        "observations": planned.counts.observation_count,
        "waiting": planned.counts.waiting_count,
        "failed": planned.counts.failed_count,
        "where": "archive" if planned.is_archived else "hot store",
        "left, because": planned.left_because,
    }


def _minute(unix_nanos: int) -> str:
    at = datetime.fromtimestamp(unix_nanos // 10**9, UTC)
    return at.date().isoformat() if unix_nanos % NANOS_PER_DAY == 0 else f"{at:%Y-%m-%d %H:%M}"


def to_progress_text(standing: Standing) -> str:
    """How far a run is, in one line."""
    done, per_s = standing.tally.done_count, standing.rate.per_s
    text = f"{done:,} of {count(standing.waiting_count, 'observation')}"
    return f"{text}, {per_s:,.0f} a second" if per_s else text


def to_rows(plan: Plan, standing: Standing) -> list[dict[str, str | int]]:
    """What a run did, in numbers."""
    tally = standing.tally
    rows: list[dict[str, str | int]] = [
        {"what": "observations predicted", "count": tally.predicted_count},
        {"what": "observations that the version failed at", "count": tally.failed_count},
        {"what": "observations that had their prediction", "count": plan.there_count},
        {"what": "observations whose payload could not be read", "count": tally.unreadable_count},
        {"what": "days brought back from the archive and archived again", "count": len(standing.archived)},
    ]
    return rows


def to_agreement_rows(agreements: Mapping[Quantity, Agreement]) -> list[dict[str, str | int]]:
    """One row for each instrument and quantity."""
    return [
        {
            "station": quantity.station,
            "instrument": quantity.instrument,
            "quantity": quantity.name,
            "unit": quantity.unit,
            "pairs": agreement.pair_count,
            "only this version": agreement.ours_only_count,
            "only the active one": agreement.theirs_only_count,
            "mean difference": f"{agreement.mean_difference:.4g}",
            "mean absolute difference": f"{agreement.mean_absolute_difference:.4g}",
            "correlation": f"{agreement.correlation:.3f}",
        }
        for quantity, agreement in sorted(agreements.items(), key=lambda each: (each[0].station, each[0].instrument))
    ]


def to_markdown(plan: Plan, standing: Standing, active: ModelKey | None) -> str:
    """A page that says what was done, and what to do with it."""
    card, tally = plan.version.card, standing.tally
    lines = [
        f"# {card.key}, {plan.first_day} to {plan.last_day}",
        f"{count(tally.predicted_count, 'observation')} predicted, {tally.failed_count:,} failed, "
        f"{plan.there_count:,} predicted before; {count(len(standing.archived), 'day')} archived again.",
    ]
    if tally.unreadable_count:
        lines.append(
            f"**{tally.unreadable_count} payloads could not be read**: run the scrub flow, and look at the log."
        )
    lines += ["\n".join(f"- {note}" for note in plan.notes)] if plan.notes else []
    if plan.version.is_served:
        lines.append("The version is or was active: what was predicted is served already.")
    else:
        named = f"`fieldpost predictions --analysis {card.key.analysis} --model-version {card.key.version}`"
        beside = f", beside those that {active} has made" if active is not None else ""
        lines.append(
            f"So far only who names the version is served these predictions: {named} shows them. "
            f"`fieldpost models activate {card.key}` puts it to work, and at once serves the whole range to "
            f"everybody{beside}."
        )
    return "\n\n".join(lines) + "\n"


def to_picture_markdown(picture: BeforeAndAfter, ours: ModelKey, active: ModelKey) -> str:
    """A page with the picture inside."""
    encoded = base64.b64encode(picture.png).decode()
    return (
        f"# {picture.day}\n\nLines: {ours}, after. Points: {active}, which is active, before.\n\n"
        f"![{picture.day}](data:image/png;base64,{encoded})\n"
    )


def to_plan_page(plan: Plan, rows_shown: Sequence[object]) -> str:
    """The plan as a page."""
    more = len(plan.planned) - len(rows_shown)
    hidden = f"\n\n{more} more pieces are not in the table." if more > 0 else ""
    return f"# Backfill of {plan.version.card.key}\n\n{to_plan_text(plan)}{hidden}\n"
