"""What a buffer finds out about itself when it is opened: its folders, its epoch, how far its sources have come."""

from __future__ import annotations

import secrets
from pathlib import Path

from edge_agent.storage.day_files import DayFiles
from edge_agent.storage.durable import disk_error, replace_file, sync_folder
from edge_agent.storage.origins import Origins
from fieldpost.errors import InvalidRequestError
from fieldpost.names import EPOCH_PATTERN


def make_folders(*folders: Path) -> None:
    """Makes folders, and their parents, that survive a power cut.

    Raises:
        TryAgainError: The disk is full.
        BrokenStateError: The disk refuses for another reason.
    """
    for folder in folders:
        try:
            missing = [parent for parent in folder.parents if not parent.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for parent in [folder.parent, *(parent.parent for parent in missing)]:
                sync_folder(parent)
        except OSError as error:
            raise disk_error(error, folder) from error


def load_epoch(folder: Path, station: str, files: DayFiles) -> str:
    """The epoch; told by the records where its own file is lost, and made anew only where there are none.

    Raises:
        InvalidRequestError: The records are of another station.
        TryAgainError: The disk is full.
        BrokenStateError: The disk refuses for another reason.
    """
    path = folder / "epoch"
    written = path.read_text(errors="replace").strip() if path.exists() else ""
    newest = files.newest_record()
    if newest is not None and newest.header.station != station:
        raise InvalidRequestError(
            f"expected a buffer of station {station}, but {folder} holds that of {newest.header.station}",
            hint="set another buffer_folder, or the station's old name",
        )
    epoch = newest.header.epoch if newest else written
    if not EPOCH_PATTERN.fullmatch(epoch):
        epoch = secrets.token_hex(16)
    if epoch != written:
        replace_file(path, epoch.encode() + b"\n")
    return epoch


def load_origins(saved: Origins | None, files: DayFiles) -> Origins:
    """What was saved, and the headers of the records behind it; where nothing was, those of the last two files."""
    through = files.names[-2].first_sequence - 1 if len(files.names) > 1 else 0
    origins = saved or Origins(through_sequence=through)
    for record in files.read_from(origins.through_sequence + 1):
        # Behind a hole that a power cut tore into the last write, the sources begin again: twice is better than never.
        if files.hole_in_tail is not None and record.header.sequence >= files.hole_in_tail:
            break
        origins.add(record.header.origin, record.header.sequence)
    return origins
