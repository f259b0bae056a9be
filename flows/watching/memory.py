"""What the watch flow keeps from look to look, as one JSON file: it may be deleted, and is then made anew.

It knows neither rules nor events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fieldpost.ranges import RangeSet
from flows.watching.looks import StationMemory, memory_from_json, memory_to_json
from server.queries.gaps import EpochLook

FILE_NAME = "watch.json"


@dataclass(frozen=True, slots=True)
class Memory:
    """What was seen at the last look.

    Attributes:
        stations: By name.
        epochs: How far sequences were looked through, by station and epoch.
        is_archive_behind: Whether the archive was told of as behind.
    """

    stations: Mapping[str, StationMemory] = field(default_factory=dict)
    epochs: Mapping[tuple[str, str], EpochLook] = field(default_factory=dict)
    is_archive_behind: bool = False


def from_json(content: object) -> Memory:
    """What was kept; nothing where nothing was."""
    if not isinstance(content, dict):
        return Memory()
    return Memory(
        {name: memory_from_json(each) for name, each in content.get("stations", {}).items()},
        {
            (station, epoch): EpochLook(through, RangeSet((first, last) for first, last in missing))
            for station, epoch, through, missing in content.get("epochs", [])
        },
        bool(content.get("is_archive_behind")),
    )


def to_json(memory: Memory) -> dict[str, object]:
    """As JSON can hold it."""
    return {
        "stations": {name: memory_to_json(each) for name, each in memory.stations.items()},
        "epochs": [
            (station, epoch, look.through, list(look.missing)) for (station, epoch), look in memory.epochs.items()
        ],
        "is_archive_behind": memory.is_archive_behind,
    }
