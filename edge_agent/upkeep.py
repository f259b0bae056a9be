"""What the buffer needs from time to time: its ledger written, and what has had its time, or has no room, deleted."""

from __future__ import annotations

import logging

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.clock import boot_id, clock_sync, read_capture_clock
from edge_agent.clock_trust import ClockTrust
from edge_agent.storage.durable import disk_free_bytes
from edge_agent.storage.retention import RetentionPolicy, StoredFile
from fieldpost.errors import FieldpostError
from fieldpost.v1 import observation_pb2 as pb

logger = logging.getLogger(__name__)

LEDGER_INTERVAL_S = 60.0
LEDGER_OBSERVATIONS = 5000
"""So many newly settled observations are worth a write at once; a crash before costs as many duplicates."""
RETENTION_INTERVAL_S = 3600.0
ROOM_INTERVAL_S = 30.0


class Upkeep:
    """When the buffer was last looked after, and when it is due again.

    Args:
        buffer: The buffer.
        alarms: Told where the disk refuses, and what had to go.
        policy: How long observations are kept, and what goes where there is no room.
    """

    def __init__(self, buffer: Buffer, alarms: Alarms, policy: RetentionPolicy) -> None:
        self._buffer = buffer
        self._alarms = alarms
        self.policy = policy
        """May be changed at any time."""
        self._unsaved_count = 0
        self._ledger_at_s = self._retention_at_s = self._room_at_s = 0.0
        self._gone: list[tuple[int, int]] = []
        self.is_full = False
        """Whether the buffer is at its ceiling, and nothing may go: new observations have to wait."""
        self._clock_trust = ClockTrust(next((file.day for file in reversed(buffer.files())), None))

    @property
    def wake_at_s(self) -> float:
        """When there is work, on the monotonic clock."""
        ledger_at_s = [self._ledger_at_s] if self._unsaved_count else []
        return min([self._retention_at_s, self._room_at_s, *ledger_at_s])

    def note_settled(self, observation_count: int) -> None:
        """So many more observations have been settled since the ledger was saved."""
        self._unsaved_count += observation_count

    def take_gone(self) -> list[tuple[int, int]]:
        """Ranges of sequences that were deleted since the last call, whether delivered or not."""
        gone, self._gone = self._gone, []
        return gone

    def work(self, now_s: float, now_unix_s: float, *, is_synchronised: bool | None = None) -> None:
        """Does what is due.

        Args:
            now_s: Monotonic time.
            now_unix_s: Wall time.
            is_synchronised: Whether wall time is synchronised; None to ask the kernel.
        """
        if is_synchronised is None:
            is_synchronised = clock_sync() != pb.CLOCK_SYNC_UNSYNCHRONISED
        is_clock_trusted = self._clock_trust.note(now_s, now_unix_s, is_synchronised=is_synchronised)
        if is_synchronised and boot_id() not in self._buffer.clock_marks.boots:
            # What was captured before the clock was right is corrected even where nothing is captured after.
            self._buffer.clock_marks.note(read_capture_clock())
        if self._unsaved_count >= LEDGER_OBSERVATIONS or (self._unsaved_count and now_s >= self._ledger_at_s):
            self._save_ledger(now_s)
        if now_s >= self._retention_at_s:
            self._retention_at_s = now_s + RETENTION_INTERVAL_S
            self._delete_expired(now_unix_s, is_clock_trusted=is_clock_trusted)
        is_beyond_ceiling = self.policy.excess_bytes(self._buffer.size_bytes()) > 0
        if now_s >= self._room_at_s or (is_beyond_ceiling and not self.is_full):
            self._room_at_s = now_s + ROOM_INTERVAL_S
            self._keep_room()

    def make_room(self, wanted_bytes: int) -> bool:
        """On a full disk: deletes day files before their time, as the policy allows.

        Returns:
            Whether any went.
        """
        return self._delete(wanted_bytes, may_drop=self.policy.drops_undelivered)

    def _keep_room(self) -> None:
        """Holds ceiling and floor. For the floor's sake nothing undelivered goes: others may have filled the disk."""
        excess_bytes = self.policy.excess_bytes(self._buffer.size_bytes())
        if excess_bytes > 0:
            self._delete(excess_bytes, may_drop=self.policy.drops_undelivered)
        is_beyond = self.policy.excess_bytes(self._buffer.size_bytes()) > 0
        self.is_full = is_beyond and not self.policy.drops_undelivered
        lacking_bytes = self.policy.disk_free_floor_bytes - disk_free_bytes(self._buffer.folder)
        if lacking_bytes > 0:
            self._delete(lacking_bytes, may_drop=False)

    def _save_ledger(self, now_s: float) -> None:
        self._ledger_at_s = now_s + LEDGER_INTERVAL_S
        try:
            self._buffer.save()
            self._buffer.save_clock_marks()
        except FieldpostError as error:
            self._unsaved_count = 1
            self._alarms.set("ledger", f"what is delivered cannot be written down: {error}")
            return
        self._unsaved_count = 0
        self._alarms.set("ledger", "")

    def _delete_expired(self, now_unix_s: float, *, is_clock_trusted: bool) -> None:
        try:
            deleted = self._buffer.delete_expired(now_unix_s, self.policy, is_clock_trusted=is_clock_trusted)
        except FieldpostError as error:
            self._alarms.set("retention", f"what is past its retention cannot be deleted: {error}")
            return
        self._alarms.set("retention", "")
        self._note_deleted(deleted, "past its retention")

    def _delete(self, wanted_bytes: int, *, may_drop: bool) -> bool:
        try:
            deleted = self._buffer.make_room(wanted_bytes, may_drop=may_drop)
        except FieldpostError as error:
            self._alarms.set("room", f"the disk is full, and nothing can be deleted: {error}")
            return False
        self._alarms.set("room", "")
        self._note_deleted(deleted, "no room")
        dropped_count = len(self._buffer.ledger.dropped)
        if any(not file.is_delivered for file in deleted):
            last_day = max(file.day for file in deleted if not file.is_delivered)
            self._alarms.set(
                "dropped",
                f"the disk is full: {dropped_count} undelivered observations had to go, the latest of {last_day}; "
                "give the station a larger disk, or a better link",
            )
        return bool(deleted)

    def _note_deleted(self, files: list[StoredFile], reason: str) -> None:
        for file in files:
            self._gone.append((file.first_sequence, file.last_sequence))
            facts = {"first_sequence": file.first_sequence, "last_sequence": file.last_sequence, "day": file.day}
            logger.info("day file deleted", extra=facts | {"reason": reason, "is_delivered": file.is_delivered})
