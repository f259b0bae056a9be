"""What a run of the restore flow is to do and did, in words and tables for people. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from fieldpost.words import count, size
from flows.restoring.outcomes import DayPlan, Outcome, RestoredDay, UnrestoredDay
from server.archive.bags import InstrumentDay
from server.archive.bring_back import ModelName

Row = dict[str, str | int]
DAYS_LISTED_MAX = 20


def to_plan_rows(plans: Sequence[DayPlan]) -> list[Row]:
    """One row a day: what would come back."""
    return [
        _names(plan.day)
        | {
            "versions": ", ".join(f"v{bag.version}" for bag in plan.bags),
            "observations": max(bag.observation_count for bag in plan.bags),
            "predictions": max(bag.prediction_count for bag in plan.bags),
            "bytes": plan.payload_bytes,
            "bytes archived": sum(bag.bag_bytes or 0 for bag in plan.bags),
        }
        for plan in plans
    ]


def to_plan_text(plans: Sequence[DayPlan]) -> str:
    """A dry run in a line."""
    return f"{count(len(plans), 'instrument-day')} with about {size(sum(each.payload_bytes for each in plans))}"


def to_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row a day: what came back, and how far it was checked."""
    return [_failed_row(each) if isinstance(each, UnrestoredDay) else _restored_row(each) for each in outcomes]


def _restored_row(each: RestoredDay) -> Row:
    return _names(each.day) | {
        "outcome": "restored" if each.observation_count or each.prediction_count else "present",
        "brought back": each.observation_count,
        "already there": each.present_count,
        "predictions": each.prediction_count,
        "bytes": each.payload_bytes,
        "hashes checked": each.checked_count,
        "from": " and ".join(sorted(each.places)),
    }


def _failed_row(each: UnrestoredDay) -> Row:
    numbers = ("brought back", "already there", "predictions", "bytes", "hashes checked", "from")
    return _names(each.day) | {"outcome": f"failed: {each.error}"} | dict.fromkeys(numbers, "")


def _names(day: InstrumentDay) -> Row:
    return {"station": day.station, "instrument": day.instrument, "day": day.day.isoformat()}


def to_markdown(
    outcomes: Sequence[Outcome], folder: Path | None, keep_until_unix_nanos: int, *, with_predictions: bool
) -> str:
    """A page: what is back, what is not and why, and what to do next."""
    restored = [each for each in outcomes if isinstance(each, RestoredDay)]
    failed = [each for each in outcomes if isinstance(each, UnrestoredDay)]
    observation_count = sum(each.observation_count for each in restored)
    present_count = sum(each.present_count for each in restored)
    place = "the hot store" if folder is None else f"`{folder}`"
    lines = [
        "# Restore",
        f"{count(len(restored), 'instrument-day')} in {place}: {count(observation_count, 'observation')} brought back "
        f"({size(sum(each.payload_bytes for each in restored))}), {present_count:,} already there; "
        f"{count(sum(each.checked_count for each in restored), 'SHA-256 hash', 'SHA-256 hashes')} checked.",
    ]
    if folder is None:
        lines.append(_next_in_store(restored, keep_until_unix_nanos, with_predictions=with_predictions))
    elif restored:
        lines.append("Each day has a folder `<station>/<instrument>/<day>`; `observations.csv` says what each file is.")
    if any("copy" in each.places for each in restored):
        lines.append(
            "**Some bags were taken from the copy, since the archive's own are damaged. Run the scrub flow.** They are "
            "in the table's column *from*."
        )
    if failed:
        lines.append(f"**{count(len(failed), 'day')} could not be restored:**")
        lines.append("\n".join(f"- {each.day}: {each.error}" for each in failed[:DAYS_LISTED_MAX]))
        lines.append("Run it again for these days once that is mended; what is back stays as it is.")
    return "\n\n".join(lines) + "\n"


def _next_in_store(restored: Sequence[RestoredDay], keep_until_unix_nanos: int, *, with_predictions: bool) -> str:
    until = datetime.fromtimestamp(keep_until_unix_nanos // 10**9, UTC)
    unknown: Counter[ModelName] = sum((each.unknown for each in restored), Counter())
    lines = [f"- They stay until {until:%Y-%m-%d %H:%M} UTC at least. To keep them longer, restore them again."]
    if with_predictions:
        lines.append(f"- {count(sum(each.prediction_count for each in restored), 'prediction')} came back with them.")
    else:
        lines.append("- The active model versions predict them anew; watch the backlog with `fieldpost status`.")
    lines += [
        f"- {count(number, 'prediction')} of {analysis}@{version} stay in the archive: this server does not know that "
        "model version. Submit it under this number, and restore the days again."
        for (analysis, version), number in sorted(unknown.items())
    ]
    lines.append("- To predict them with another model version, run the backfill flow over these days.")
    return "\n".join(lines)


def to_error(outcomes: Sequence[Outcome]) -> FieldpostError | None:
    """What a run has to raise at its end; None where every day is back."""
    failed = [each for each in outcomes if isinstance(each, UnrestoredDay)]
    if not failed:
        return None
    first = failed[0]
    kind = TryAgainError if all(isinstance(each.error, TryAgainError) for each in failed) else BrokenStateError
    return kind(
        f"{len(failed)} of {len(outcomes)} instrument-days could not be restored; first {first.day}: {first.error}",
        hint=getattr(first.error, "hint", "") or "the others are back; run again to complete these",
    )
