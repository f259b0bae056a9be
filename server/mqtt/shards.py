"""Which stations' observations a server process takes, where several share the work: a fixed part of the topics.

Not `$share`: a broker would deal out messages with no regard to their order, and keep those of a process that died.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fieldpost.errors import InvalidRequestError
from fieldpost.names import SHARDS, UP


@dataclass(frozen=True, slots=True)
class ShardPart:
    """One part of count, numbered from 0: the shards k with k % count == index."""

    index: int
    count: int

    def topics(self) -> list[str]:
        """What a process of this part subscribes to.

        The first also takes what belongs to no shard: each station's status, and observations of stations from before
        there were shards. Answers to commands go to all, since the one who asked may wait at any of them.
        """
        own = ["+"] if self.count == 1 else SHARDS[self.index :: self.count]
        topics = [f"{UP}/+/observations/{shard}" for shard in own] + [f"{UP}/+/results"]
        if self.index == 0:
            topics += [f"{UP}/+/observations", f"{UP}/+/status"]
        return topics


ALL_SHARDS = ShardPart(0, 1)


def parse_shard_part(text: str) -> ShardPart:
    """Reads "0/2", the first of two parts.

    Raises:
        InvalidRequestError: It is none.
    """
    found = re.fullmatch(r"(\d{1,2})/(\d{1,2})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 <= index < count <= len(SHARDS):
        raise InvalidRequestError(
            f"expected mqtt_shards as INDEX/COUNT, with INDEX from 0 and COUNT up to {len(SHARDS)}, but got {text!r}",
            hint="with two processes, 0/2 for the one and 1/2 for the other",
        )
    return ShardPart(index, count)
