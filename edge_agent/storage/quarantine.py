"""Where bytes go that cannot be framed: as they came, beside a reason. Nothing is ever removed from here by the agent.

A file is named by the hash of its content, so that setting the same bytes aside again, after a crash, changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.storage.durable import disk_error, replace_file, sync_folder

NAME_DIGITS = 32


class Quarantine:
    """A folder of set-aside bytes. May be used by several threads: no two write different bytes under one name.

    Args:
        folder: Made where absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        except OSError as error:
            raise disk_error(error, folder) from error

    def put(self, content: bytes, *, instrument: str, source_name: str, reason: str, now_unix_s: float) -> bool:
        """Sets bytes aside; returns once the disk has them.

        Args:
            content: The bytes.
            instrument: Whose they are.
            source_name: Where they came from: a file name, for example.
            reason: What was expected, and what came.
            now_unix_s: The time now.

        Returns:
            Whether they were new here.

        Raises:
            TryAgainError: The disk is full.
            BrokenStateError: The disk refuses for another reason.
        """
        # The instrument is in the name, since two instruments may fail with the same bytes.
        digest = hashlib.sha256(instrument.encode() + b"\0" + content).hexdigest()[:NAME_DIGITS]
        note_path = self.folder / f"{digest}.json"
        if note_path.exists():
            return False
        note = {
            "instrument": instrument,
            "source": source_name,
            "reason": reason,
            "time": datetime.fromtimestamp(now_unix_s, UTC).isoformat(timespec="seconds"),
            "content_bytes": len(content),
        }
        replace_file(self.folder / f"{digest}.bin", content)
        # The note is written last: where it is, the bytes are.
        replace_file(note_path, json.dumps(note, indent=1).encode())
        return True

    def count(self) -> int:
        """How many inputs lie here."""
        return sum(1 for _ in self.folder.glob("*.json"))
