"""How much room a restore needs, and whether the disks have it: a full disk would stop what stations send. Pure but for
a look at the disks.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from fieldpost.errors import TryAgainError
from fieldpost.words import size
from server.archive.bags import BagRecord

FREE_SHARE = 0.05
"""So much of a disk stays free: what stations send must have its place."""
OBSERVATION_BYTES, PREDICTION_BYTES = 600, 700
"""About what a row takes with its indexes, and the header beside a payload."""


def payload_bytes(bags: Sequence[BagRecord]) -> int:
    """About the instrument's bytes of a day, all its versions together.

    A version holds the whole day as the server had it. So it holds all of the version before it, unless it has fewer
    observations: then the server had let go of the day in between.

    Args:
        bags: The day's bags, the newest first, each with its payload_bytes.
    """
    following = [None, *bags]
    return sum(
        bag.payload_bytes or 0
        for bag, after in zip(bags, following, strict=False)
        if after is None or after.observation_count < bag.observation_count
    )


def row_bytes(bags: Sequence[BagRecord]) -> int:
    """About what the rows of a day take in the database, at most."""
    return sum(OBSERVATION_BYTES * bag.observation_count + PREDICTION_BYTES * bag.prediction_count for bag in bags)


def check_room(needed_bytes: Mapping[Path, int]) -> None:
    """Looks whether there is room for so many bytes in each folder, made or not.

    Raises:
        TryAgainError: There is not; the message says how much is needed and how much there is.
    """
    by_disk: defaultdict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for folder, needed in needed_bytes.items():
        there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        disk = there.stat().st_dev
        by_disk[disk] += needed
        folders.setdefault(disk, there)
    for disk, folder in folders.items():
        usage = shutil.disk_usage(folder)
        room = max(usage.free - round(FREE_SHARE * usage.total), 0)
        if by_disk[disk] > room:
            raise TryAgainError(
                f"expected room for {size(by_disk[disk])} on the disk of {folder}, but there is {size(room)} "
                f"({FREE_SHARE:.0%} of the disk stay free)",
                hint="restore fewer days at once, or to a folder on another disk; or make room, and run again",
            )
