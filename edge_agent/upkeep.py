"""What the buffer needs from time to time: its ledger written down, and what is past its retention deleted."""

from __future__ import annotations

import logging

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.storage.retention import RetentionPolicy
from fieldpost.errors import FieldpostError

logger = logging.getLogger(__name__)

LEDGER_INTERVAL_S = 60.0
LEDGER_OBSERVATIONS = 1000
"""So many newly settled observations are worth a write at once; a crash before costs as many duplicates."""
RETENTION_INTERVAL_S = 3600.0


class Upkeep:
    """When the buffer was last looked after, and when it is due again.

    Args:
        buffer: The buffer.
        alarms: Told where the disk refuses.
        policy: How long delivered observations are kept.
    """

    def __init__(self, buffer: Buffer, alarms: Alarms, policy: RetentionPolicy) -> None:
        self._buffer = buffer
        self._alarms = alarms
        self._policy = policy
        self._unsaved_count = 0
        self._ledger_at_s = self._retention_at_s = 0.0

    @property
    def wake_at_s(self) -> float:
        """When there is work, on the monotonic clock."""
        return min(self._ledger_at_s, self._retention_at_s) if self._unsaved_count else self._retention_at_s

    def note_settled(self, observation_count: int) -> None:
        """So many more observations have been settled since the ledger was saved."""
        self._unsaved_count += observation_count

    def work(self, now_s: float, now_unix_s: float) -> None:
        """Does what is due.

        Args:
            now_s: Monotonic time.
            now_unix_s: Wall time.
        """
        if self._unsaved_count >= LEDGER_OBSERVATIONS or (self._unsaved_count and now_s >= self._ledger_at_s):
            self._save_ledger(now_s)
        if now_s >= self._retention_at_s:
            self._retention_at_s = now_s + RETENTION_INTERVAL_S
            self._delete_expired(now_unix_s)

    def _save_ledger(self, now_s: float) -> None:
        self._ledger_at_s = now_s + LEDGER_INTERVAL_S
        try:
            self._buffer.save()
        except FieldpostError as error:
            self._unsaved_count = 1
            self._alarms.set("ledger", f"what is delivered cannot be written down: {error}")
            return
        self._unsaved_count = 0
        self._alarms.set("ledger", "")

    def _delete_expired(self, now_unix_s: float) -> None:
        try:
            deleted = self._buffer.delete_expired(now_unix_s, self._policy)
        except FieldpostError as error:
            self._alarms.set("retention", f"what is past its retention cannot be deleted: {error}")
            return
        self._alarms.set("retention", "")
        for file in deleted:
            facts = {"first_sequence": file.first_sequence, "last_sequence": file.last_sequence, "day": file.day}
            logger.info("day file past its retention deleted", extra=facts)
