"""What a run of the archive flow did, in words and tables for people. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from flows.archiving.archivist import ArchivedDay, FailedDay, Outcome
from flows.archiving.picture import Picture
from server.archive.bags import InstrumentDay


def to_rows(outcomes: Sequence[Outcome]) -> list[dict[str, str | int]]:
    """One row a day: what went in, what lies in the archive, and how far it was verified."""
    return [_failed_row(each) if isinstance(each, FailedDay) else _archived_row(each) for each in outcomes]


def _archived_row(archived: ArchivedDay) -> dict[str, str | int]:
    record = archived.record
    return {
        "station": archived.day.station,
        "instrument": archived.day.instrument,
        "day": archived.day.day.isoformat(),
        "outcome": archived.status,
        "observations": record.observation_count,
        "predictions": record.prediction_count,
        "bytes in": archived.payload_bytes,
        "bytes archived": archived.bag_bytes,
        "ratio": f"{archived.payload_bytes / archived.bag_bytes:.2f}" if archived.bag_bytes else "",
        "verified hashes": archived.verified_count,
        "path": record.path,
    }


def _failed_row(failed: FailedDay) -> dict[str, str | int]:
    day = failed.day
    names: dict[str, str | int] = {"station": day.station, "instrument": day.instrument, "day": day.day.isoformat()}
    numbers = ("observations", "predictions", "bytes in", "bytes archived", "ratio", "verified hashes", "path")
    return names | {"outcome": f"failed: {failed.error}"} | dict.fromkeys(numbers, "")


def to_text(outcomes: Sequence[Outcome]) -> str:
    """The same for a terminal."""
    rows = to_rows(outcomes)
    if not rows:
        return "no observations on these days: nothing to archive"
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    lines = [[key.ljust(width) for key, width in widths.items()]]
    lines += [[str(row[key]).ljust(width) for key, width in widths.items()] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def to_markdown(day: InstrumentDay, picture: Picture) -> str:
    """A page with the picture inside."""
    encoded = base64.b64encode(picture.png).decode()
    title = f"{day.station}/{day.instrument} on {day.day}"
    return f"# {title}\n\n{picture.analysis}@{picture.version}\n\n![{title}](data:image/png;base64,{encoded})\n"


def to_error(outcomes: Sequence[Outcome]) -> FieldpostError | None:
    """What a run has to raise at its end; None where every day is in the archive."""
    failed = [each for each in outcomes if isinstance(each, FailedDay)]
    if not failed:
        return None
    first = failed[0]
    is_passing = all(isinstance(each.error, TryAgainError) for each in failed)
    kind = TryAgainError if is_passing else BrokenStateError
    return kind(
        f"{len(failed)} of {len(outcomes)} instrument-days could not be archived; first {first.day}: {first.error}",
        hint=getattr(first.error, "hint", "") or "the others are archived; run again to complete these",
    )
