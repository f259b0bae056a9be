"""What the facts about the station itself mean: its disk, its buffer, its clock. Pure; looks at nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge_agent.link.certificate_facts import SOFTWARE_UNIX_S, day
from fieldpost.findings import Finding
from fieldpost.words import DAY_S, count, size, span

_FORGETS_AT_REBOOT = {"tmpfs", "ramfs", "overlay"}
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """The buffer's disk.

    Attributes:
        kind: "SD card", "SSD" and the like; empty where it is not known.
        file_system: As the kernel calls it.
        free_bytes: Free for the agent.
        floor_bytes: What is to stay free.
        buffer_bytes: Used by day files.
        bytes_per_day: The rate of the last days; None where it is not known yet.
        retention_days: For how long delivered observations are to be kept.
    """

    kind: str
    file_system: str
    free_bytes: int
    floor_bytes: int
    buffer_bytes: int
    bytes_per_day: float | None
    retention_days: int


def judge_disk(facts: DiskFacts) -> Iterator[Finding]:
    """Whether it remembers, and for how long there is room."""
    where = f"{facts.kind or 'disk'}, {facts.file_system}, {size(facts.free_bytes)} free"
    if facts.file_system in _FORGETS_AT_REBOOT:
        hint = "put buffer_folder on a real disk; for Pi OS's read-only overlay: one that is not under it"
        yield Finding("FAIL", "disk", f"{where}: this may forget everything at the next power cut", hint)
    if facts.file_system in _NETWORK:
        yield Finding("WARN", "disk", f"{where}: without its network the station cannot record", "use a local disk")
    if facts.free_bytes < facts.floor_bytes:
        hint = "free space on it, or move the buffer to a larger disk"
        yield Finding("FAIL", "disk", f"{where}: less than the {size(facts.floor_bytes)} that are to stay free", hint)
        return
    if facts.bytes_per_day is None:
        yield Finding("OK", "disk", f"{where}; for how long that lasts is known after the first whole day")
        return
    room_bytes = facts.free_bytes - facts.floor_bytes
    wanted_bytes = facts.bytes_per_day * facts.retention_days
    rate = f"{size(facts.bytes_per_day)} a day"
    if facts.buffer_bytes + room_bytes >= wanted_bytes:
        text = f"{where}; {rate}: room for all {span(facts.retention_days * DAY_S)} of retention"
        yield Finding("OK", "disk", text)
        return
    lasts = span(room_bytes / max(1.0, facts.bytes_per_day) * DAY_S)
    hint = f"retention_days = {facts.retention_days} needs {size(wanted_bytes)}: a larger disk, or fewer days"
    yield Finding("WARN", "disk", f"{where}; {rate}: full in {lasts}, then delivered days go early", hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferFacts:
    """The buffer's folder.

    Attributes:
        folder: Where it is.
        exists: Whether it is there.
        is_usable: Whether the service's user may read and write there.
        account: That user, for the words.
        newest_file: The newest day file; empty where there is none.
        good_count: Its good records.
        damaged_count: Its damaged ones.
        set_aside_count: Damaged parts kept in set-aside/.
        quarantined_count: Inputs kept in quarantine/.
    """

    folder: str
    exists: bool
    is_usable: bool = True
    account: str = ""
    newest_file: str = ""
    good_count: int = 0
    damaged_count: int = 0
    set_aside_count: int = 0
    quarantined_count: int = 0


def judge_buffer(facts: BufferFacts) -> Iterator[Finding]:
    """Whether it can be written and read."""
    if not facts.exists:
        yield Finding("FAIL", "buffer", f"there is no folder {facts.folder}", "sudo fieldpost-agent install makes it")
        return
    if not facts.is_usable:
        hint = f"sudo chown -R {facts.account} {facts.folder}"
        yield Finding("FAIL", "buffer", f"{facts.account} may not write to {facts.folder}", hint)
        return
    if facts.damaged_count:
        text = f"{count(facts.damaged_count, 'record')} of {facts.newest_file} damaged, {facts.good_count:,} good"
        yield Finding("FAIL", "buffer", text, "the disk may be dying: fieldpost-agent buffer check; dmesg")
    else:
        text = f"{facts.newest_file}: {count(facts.good_count, 'record')}, all good" if facts.newest_file else "empty"
        yield Finding("OK", "buffer", f"{facts.folder}: {text}")
    if facts.set_aside_count:
        text = f"{count(facts.set_aside_count, 'damaged part')} kept in {facts.folder}/set-aside"
        yield Finding("WARN", "buffer", text, "power cuts leave such parts; many of them mean a bad disk")
    if facts.quarantined_count:
        text = f"{count(facts.quarantined_count, 'input')} could not be framed"
        yield Finding("WARN", "quarantine", text, f"see the reasons in {facts.folder}/quarantine")


def judge_clock(*, is_synchronised: bool | None, now_unix_s: float, has_battery_clock: bool) -> Iterator[Finding]:
    """Whether times can be trusted, now and after a power cut."""
    if now_unix_s < SOFTWARE_UNIX_S:
        text = f"the clock is wrong by years: it says {day(now_unix_s)}"
        yield Finding(
            "FAIL", "clock", text, "sudo timedatectl set-ntp true; is UDP port 123 open? TLS fails until then"
        )
    elif is_synchronised:
        yield Finding("OK", "clock", "synchronised with a time server")
    else:
        text = "not synchronised with a time server" if is_synchronised is False else "nobody knows whether it is right"
        yield Finding("WARN", "clock", text, "sudo timedatectl set-ntp true; timedatectl timesync-status")
    if not has_battery_clock:
        text = "no battery clock: after a power cut the time is wrong until a time server answers"
        yield Finding("WARN", "clock", text, "where the network may be away for long, add an RTC module")
