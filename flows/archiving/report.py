"""What a run of the archive flow did, in words and tables for people. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from fieldpost.words import count, size
from flows.archiving.archivist import ArchivedDay, FailedDay, Outcome
from flows.archiving.copies import Copies, copied_paths
from flows.archiving.picture import Picture
from flows.archiving.second_copy import CopiedBag, FailedCopy
from flows.site import Site
from server.archive.bags import BagRecord, InstrumentDay

Row = dict[str, str | int]
NO_COPIES = Copies()
COLUMNS = (
    "station",
    "instrument",
    "day",
    "outcome",
    "observations",
    "predictions",
    "bytes in",
    "bytes archived",
    "ratio",
    "verified hashes",
    "path",
    "copy",
)


def to_rows(outcomes: Sequence[Outcome], copies: Copies = NO_COPIES) -> list[Row]:
    """A row for each day or bag that the run did something with, and one that counts all others.

    Each says what went in, what lies in the archive, how far it was verified, and whether it has a copy.
    """
    copied, failed = copied_paths(copies), {each.bag.record.path: each for each in copies.outcomes}
    rows: list[Row] = []
    for each in outcomes:
        if isinstance(each, FailedDay):
            rows.append(_row(each.day.station, each.day.instrument, str(each.day.day), f"failed: {each.error}"))
        elif each.status != "present":
            facts = _facts(each.record) | {"verified hashes": each.verified_count}
            row = _row(each.day.station, each.day.instrument, str(each.day.day), each.status, **facts)
            outcome = failed.pop(each.record.path, None)
            rows.append(row | {"copy": _copy_word(outcome, each.record.path in copied)})
    for other in failed.values():
        word = "copied" if isinstance(other, CopiedBag) else "copy failed"
        row = _row(other.bag.station, other.bag.instrument, str(other.bag.day), word, **_facts(other.bag.record))
        rows.append(row | {"copy": _copy_word(other, isinstance(other, CopiedBag))})
    return [*rows, *_remaining_rows(outcomes, copies)]


def _remaining_rows(outcomes: Sequence[Outcome], copies: Copies) -> Iterator[Row]:
    present = [each.record for each in outcomes if isinstance(each, ArchivedDay) and each.status == "present"]
    if present:
        sums: Row = {
            "observations": sum(each.observation_count for each in present),
            "predictions": sum(each.prediction_count for each in present),
            "bytes in": sum(each.payload_bytes or 0 for each in present),
            "bytes archived": sum(each.bag_bytes or 0 for each in present),
        }
        yield _row("", "", count(len(present), "day"), "present", **sums)
    if copies.missing_count:
        yield _row("", "", "", f"{count(copies.missing_count, 'bag')} without a copy")


def _row(station: str, instrument: str, day: str, outcome: str, **facts: str | int) -> Row:
    named: Row = {"station": station, "instrument": instrument, "day": day, "outcome": outcome}
    return dict.fromkeys(COLUMNS, "") | named | facts


def _facts(record: BagRecord) -> Row:
    payload_bytes, bag_bytes = record.payload_bytes, record.bag_bytes
    return {
        "observations": record.observation_count,
        "predictions": record.prediction_count,
        "bytes in": "" if payload_bytes is None else payload_bytes,
        "bytes archived": "" if bag_bytes is None else bag_bytes,
        "ratio": f"{payload_bytes / bag_bytes:.2f}" if payload_bytes is not None and bag_bytes else "",
        "path": record.path,
    }


def _copy_word(outcome: CopiedBag | FailedCopy | None, is_copied: bool) -> str:
    if isinstance(outcome, FailedCopy):
        return f"failed: {outcome.error}"
    return "copied" if is_copied else ""


def to_text(outcomes: Sequence[Outcome], copies: Copies = NO_COPIES) -> str:
    """The same for a terminal."""
    rows = to_rows(outcomes, copies)
    if not rows:
        return "no observations on these days: nothing to archive"
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    lines = [[key.ljust(width) for key, width in widths.items()]]
    lines += [[str(row[key]).ljust(width) for key, width in widths.items()] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def to_summary(site: Site, outcomes: Sequence[Outcome], copies: Copies) -> str:
    """What the run did, in a few lines of Markdown."""
    made = [each for each in outcomes if isinstance(each, ArchivedDay) and each.status != "present"]
    failed = [each for each in outcomes if isinstance(each, FailedDay)]
    payload_bytes = sum(each.record.payload_bytes or 0 for each in made)
    bag_bytes = sum(each.record.bag_bytes or 0 for each in made)
    ratio = f", ratio {payload_bytes / bag_bytes:.2f}" if bag_bytes else ""
    lines = [
        f"- **{count(len(made), 'day')} archived** in `{site.shelf.url}`: "
        f"{count(sum(each.record.observation_count for each in made), 'observation')}, "
        f"{size(payload_bytes)} of the instruments in {size(bag_bytes)}{ratio}; "
        f"{count(sum(each.verified_count for each in made), 'SHA-256 hash', 'SHA-256 hashes')} read back and equal",
        f"- {count(len(outcomes) - len(made) - len(failed), 'day')} archived before and unchanged",
    ]
    lines += [f"- **failed:** {each.day}: {each.error}{_hint(each.error)}" for each in failed]
    if site.copy is not None:
        copied = len(copied_paths(copies))
        lines.append(
            f"- {count(copied, 'bag')} copied to `{site.copy.url}`; {count(copies.missing_count, 'bag')} without a copy"
        )
    if error := _copy_error(copies):
        lines.append(f"- **the copy failed:** {error}{_hint(error)}")
    return "\n".join(["# Archive", "", *lines]) + "\n"


def _hint(error: BaseException) -> str:
    hint = getattr(error, "hint", "")
    return f" ({hint})" if hint else ""


def to_markdown(day: InstrumentDay, picture: Picture) -> str:
    """A page with the picture inside."""
    encoded = base64.b64encode(picture.png).decode()
    title = f"{day.station}/{day.instrument} on {day.day}"
    return f"# {title}\n\n{picture.analysis}@{picture.version}\n\n![{title}](data:image/png;base64,{encoded})\n"


def to_error(outcomes: Sequence[Outcome], copies: Copies = NO_COPIES) -> FieldpostError | None:
    """What a run has to raise at its end; None where every day is in the archive, and every bag tried has a copy."""
    failed = [each for each in outcomes if isinstance(each, FailedDay)]
    copy_error = _copy_error(copies)
    if not failed:
        return None if copy_error is None else _to_copy_error(copies, copy_error)
    first = failed[0]
    errors = [each.error for each in failed] + ([] if copy_error is None else [copy_error])
    is_passing = all(isinstance(each, TryAgainError) for each in errors)
    kind = TryAgainError if is_passing else BrokenStateError
    return kind(
        f"{len(failed)} of {len(outcomes)} instrument-days could not be archived; first {first.day}: {first.error}",
        hint=getattr(first.error, "hint", "") or "the others are archived; run again to complete these",
    )


def _copy_error(copies: Copies) -> BaseException | None:
    failed = (each.error for each in copies.outcomes if isinstance(each, FailedCopy))
    return copies.error or next(failed, None)


def _to_copy_error(copies: Copies, first: BaseException) -> FieldpostError:
    errors = [each.error for each in copies.outcomes if isinstance(each, FailedCopy)] or [first]
    kind = TryAgainError if all(isinstance(each, TryAgainError) for each in errors) else BrokenStateError
    return kind(
        f"every day is in the archive, but {count(copies.missing_count, 'bag')} without a copy: {first}",
        hint=getattr(first, "hint", "") or "run again to complete the copies",
    )
