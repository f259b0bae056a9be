"""Keeps what came over MQTT and could not be read at all, so that somebody can find out what it was.

A message that cannot be read has no station to send a receipt to. It is kept once, with its reason; the folder is
bounded, so that nobody can fill the disk with noise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from contextlib import suppress
from pathlib import Path

from server.ingest.repeats import Repeats

logger = logging.getLogger(__name__)

MESSAGES_MAX = 1000
BYTES_MAX = 64 * 1024 * 1024


class RefusedMessages:
    """The folder of refused messages, and how many there were."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._kept = {path.stem: path.stat().st_size for path in folder.glob("*.bin")}
        self._repeats = Repeats()
        self.count = 0

    def keep(self, topic: str, content: bytes, reason: str) -> None:
        """Counts the message; logs and keeps it, if the same was not kept before and there is room."""
        self.count += 1
        name = hashlib.sha256(content).hexdigest()
        is_new = name not in self._kept
        is_kept = is_new and len(self._kept) < MESSAGES_MAX and sum(self._kept.values()) + len(content) <= BYTES_MAX
        if is_new and (count := self._repeats.note(topic, 1, time.monotonic())):
            facts = {"topic": topic, "reason": reason, "message_bytes": len(content), "sha256": name}
            logger.warning(
                "message refused", extra={**facts, "is_kept": is_kept, "new_count": count, "refused_count": self.count}
            )
        if not is_kept:
            return
        facts = {"topic": topic, "reason": reason, "unix_s": time.time()}
        message, words = self._folder / f"{name}.bin", self._folder / f"{name}.json"
        try:
            message.write_bytes(content)
            words.write_text(json.dumps(facts))
            self._kept[name] = len(content)
        except OSError as error:  # whoever waits behind this message is not to suffer from it
            logger.error("refused message not kept", extra={"topic": topic, "sha256": name, "error": str(error)})
            with suppress(OSError):
                message.unlink(missing_ok=True)
                words.unlink(missing_ok=True)
