"""Gathers the facts about the buffer and its disk. Changes nothing, takes no lock, judges nothing."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from edge_agent.operation.findings import BufferFacts, DiskFacts
from edge_agent.operation.privileges import may_use
from edge_agent.settings import AgentSettings
from edge_agent.storage.day_file import DayFile
from edge_agent.storage.day_files import list_day_files
from fieldpost.errors import FieldpostError

RATE_DAYS = 7
LOOK_BACK_OBSERVATIONS = 2000
"""So many of the newest observations are looked through for those of a silent instrument."""


def disk_facts(settings: AgentSettings, now_unix_s: float) -> DiskFacts:
    """The disk below the buffer's folder, or below what there is of its path."""
    place = settings.buffer_folder
    while not place.exists():
        place = place.parent
    numbers = os.statvfs(place)
    sizes = _bytes_by_day(settings.buffer_folder)
    file_system, device = _mount_of(place)
    return DiskFacts(
        kind=_kind_of(device),
        file_system=file_system,
        free_bytes=numbers.f_bavail * numbers.f_frsize,
        floor_bytes=settings.disk_free_floor_bytes,
        buffer_bytes=sum(sizes.values()),
        bytes_per_day=bytes_per_day(sizes, datetime.fromtimestamp(now_unix_s, UTC).date()),
        retention_days=settings.retention_days,
    )


def bytes_per_day(sizes: Counter[date], today: date) -> float | None:
    """The rate of the last whole days, a week at most; None where there is none yet. Pure."""
    days = [today - timedelta(days=back) for back in range(1, RATE_DAYS + 1)]
    known = [day for day in days if day in sizes]
    if not known:
        return None
    # A day without any observation between two others counts: the instrument may be off every weekend.
    return sum(sizes[day] for day in known) / ((today - min(known)).days)


def buffer_facts(settings: AgentSettings, account: str) -> BufferFacts:
    """What lies in the buffer; the newest day file is read whole."""
    folder = settings.buffer_folder
    who = account or "this user"
    if not folder.is_dir():
        return BufferFacts(folder=str(folder), exists=False)
    if not all(may_use([(folder, os.R_OK | os.W_OK | os.X_OK)], account)):
        return BufferFacts(folder=str(folder), exists=True, is_usable=False, account=who)
    days = folder / "days"
    names = list_day_files(days) if days.is_dir() else []
    good_count = damaged_count = 0
    if names:
        file = DayFile(days / str(names[-1]))
        try:
            good_count = sum(1 for _ in file.read_all())
            damaged_count = file.last_sequence - file.name.first_sequence + 1 - good_count
        finally:
            file.close()
    return BufferFacts(
        folder=str(folder),
        exists=True,
        newest_file=str(names[-1]) if names else "",
        good_count=good_count,
        damaged_count=damaged_count,
        set_aside_count=_file_count(folder / "set-aside"),
        quarantined_count=_file_count(folder / "quarantine", ".json"),
    )


def last_captures(folder: Path, instruments: set[str]) -> dict[str, float]:
    """When each instrument gave something last, as far as the newest observations tell."""
    found: dict[str, float] = {}
    days = folder / "days"
    names = list_day_files(days) if days.is_dir() else []
    left = LOOK_BACK_OBSERVATIONS
    for name in reversed(names):
        try:
            file = DayFile(days / str(name))
        except FieldpostError:
            continue
        try:
            for sequence in range(file.last_sequence, name.first_sequence - 1, -1):
                if not left or set(found) >= instruments:
                    return found
                left -= 1
                record = file.read(sequence)
                if record is not None:
                    wall = record.header.capture_clock.wall_time
                    found.setdefault(record.header.instrument, wall.seconds + wall.nanos / 1e9)
        finally:
            file.close()
    return found


def is_locked(folder: Path) -> bool:
    """Whether an agent holds the buffer. A look of microseconds, which an agent that starts just then survives."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _bytes_by_day(folder: Path) -> Counter[date]:
    sizes: Counter[date] = Counter()
    days = folder / "days"
    for name in list_day_files(days) if days.is_dir() else []:
        sizes[name.day] += (days / str(name)).stat().st_size
    return sizes


def _file_count(folder: Path, suffix: str = "") -> int:
    try:
        return sum(1 for entry in os.scandir(folder) if entry.name.endswith(suffix))
    except OSError:
        return 0


def _mount_of(place: Path) -> tuple[str, str]:
    """(file system, device numbers "major:minor") of the mount that holds the path."""
    best, found = "", ("unknown file system", "")
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        mount, _, rest = line.partition(" - ")
        fields = mount.split()
        point = fields[4].encode().decode("unicode_escape")
        if place.resolve().is_relative_to(point) and len(point) >= len(best):
            best, found = point, (rest.split()[0], fields[2])
    return found


def _kind_of(device: str) -> str:
    """What kind of disk it is, by the name of the kernel's driver; empty where that tells nothing."""
    name = Path(f"/sys/dev/block/{device}").resolve().name if device else ""
    for prefix, kind in (
        ("mmcblk", "SD card or eMMC"),
        ("nvme", "NVMe SSD"),
        ("sd", "SATA or USB disk"),
        ("vd", "virtual disk"),
    ):
        if name.startswith(prefix):
            return f"{kind} ({name})"
    return ""
