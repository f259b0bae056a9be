"""How far each source has come, by the names that sources give to their bytes. Plain values; no file.

After a `kill -9` between the buffer's write and the source's own clean-up, this is what keeps the same bytes from being
handed over twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from edge_agent.capture import parse_origin
from fieldpost.errors import BrokenStateError

MAX_NAMES = 10_000
"""A drop folder makes one name a file, and needs it only until the file is gone; the oldest names are forgotten."""


class Origins:
    """The highest index of each origin name, the most recent names last.

    Args:
        highest: What is known already.
        through_sequence: The last sequence that it accounts for.
    """

    def __init__(self, highest: Mapping[str, int] | None = None, through_sequence: int = 0) -> None:
        self._highest = dict(highest or {})
        self.through_sequence = through_sequence

    def add(self, origin: str, sequence: int) -> None:
        """Takes note of an observation's origin."""
        self.through_sequence = max(self.through_sequence, sequence)
        parsed = parse_origin(origin)
        if parsed is None:
            return
        name, index = parsed
        self._highest[name] = max(index, self._highest.pop(name, -1))
        if len(self._highest) > MAX_NAMES:
            del self._highest[next(iter(self._highest))]

    def highest(self) -> dict[str, int]:
        """The highest index by name; a copy."""
        return dict(self._highest)

    def to_json(self) -> bytes:
        """The text of origins.json."""
        return json.dumps({"through_sequence": self.through_sequence, "highest": self._highest}).encode()


def origins_from_json(content: bytes) -> Origins:
    """Reads origins.json.

    Raises:
        BrokenStateError: It is not what to_json writes.
    """
    try:
        fields = json.loads(content)
        highest = {str(name): int(index) for name, index in fields["highest"].items()}
        return Origins(highest, int(fields["through_sequence"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenStateError(f"expected the list of origins, but got {content[:60]!r}: {error}") from error
