"""Writes what is archived as text for people, and as facts for JSON lines. Prints nothing itself; reads no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from fieldpost._archive_requests import ArchivedBag
from fieldpost._render import aligned
from fieldpost._render_server import size_text
from fieldpost.words import count, span

_HEAD = ("instrument", "day (UTC)", "v", "observations", "predictions", "measured", "archived", "ratio")


def bag_lines(bags: Iterable[ArchivedBag], now: datetime) -> Iterator[str]:
    """One line for each bag, below a head; what is damaged is named below the table.

    Args:
        bags: Which.
        now: The time.
    """
    bags = list(bags)
    rows = [[*_HEAD, "checked", "copy"]]
    for bag in bags:
        rows.append(
            [
                f"{bag.station}/{bag.instrument}",
                f"{bag.day}",
                f"{bag.version}",
                f"{bag.observation_count:,}",
                f"{bag.prediction_count:,}",
                _size(bag.payload_bytes),
                _size(bag.bag_bytes),
                ratio_text(bag),
                "DAMAGED" if bag.damage else _ago(bag.check_time, now),
                _ago(bag.copy_time, now),
            ]
        )
    yield from aligned(rows, right_from=2)
    yield from (f"damaged: {bag}: {bag.damage}" for bag in bags if bag.damage)


def total_line(bags: Iterable[ArchivedBag]) -> str:
    """All bags together, in one line."""
    bags = list(bags)
    known = [bag for bag in bags if bag.payload_bytes is not None and bag.bag_bytes is not None]
    measured = sum(bag.payload_bytes or 0 for bag in known)
    archived = sum(bag.bag_bytes or 0 for bag in known)
    text = f"{count(len(bags), 'bag')}, {count(sum(bag.observation_count for bag in bags), 'observation')}"
    if archived:
        text += f"; {size_text(measured)} measured, {size_text(archived)} archived, {measured / archived:.2f} to one"
    return text + (f" ({len(bags) - len(known)} of unknown size)" if len(known) < len(bags) else "")


def ratio_text(bag: ArchivedBag) -> str:
    """How many bytes of the instrument lie in one byte of the bag."""
    return "-" if bag.payload_bytes is None or not bag.bag_bytes else f"{bag.payload_bytes / bag.bag_bytes:.2f}"


def bag_facts(bag: ArchivedBag) -> dict[str, object]:
    """A bag as JSON has it: the names of the protocol, instants in ISO 8601, null for what is not known."""
    return {
        "station": bag.station,
        "instrument": bag.instrument,
        "day": bag.day.isoformat(),
        "version": bag.version,
        "path": bag.path,
        "manifest_sha256": bag.manifest_sha256,
        "observation_count": bag.observation_count,
        "prediction_count": bag.prediction_count,
        "payload_bytes": bag.payload_bytes,
        "bag_bytes": bag.bag_bytes,
        "archive_time": bag.archive_time.isoformat(),
        "check_time": bag.check_time and bag.check_time.isoformat(),
        "copy_time": bag.copy_time and bag.copy_time.isoformat(),
        "damage": bag.damage,
    }


def _size(byte_count: int | None) -> str:
    return "-" if byte_count is None else size_text(byte_count)


def _ago(moment: datetime | None, now: datetime) -> str:
    return "-" if moment is None else f"{span((now - moment).total_seconds())} ago"
