"""What became of the sequences of one epoch: delivered, refused, without an observation. Plain values; no file.

Kept on disk as `delivered.json`. Losing it costs duplicates, which the server drops, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from fieldpost.errors import BrokenStateError
from fieldpost.ranges import RangeSet

# Reasons that may be gone after a visit to the server: offered again (second_chance.py), and at every start.
OFFERED_AGAIN = frozenset({"UNKNOWN_INSTRUMENT"})
# The bytes live on under another sequence.
REPLACED = "IDENTITY_CONFLICT"


@dataclass(slots=True)
class Refusal:
    """Sequences that the server refused for one reason.

    Attributes:
        sequences: Which.
        detail: What the server said of the latest of them.
    """

    sequences: RangeSet = field(default_factory=RangeSet)
    detail: str = ""


@dataclass(slots=True)
class Ledger:
    """The fate of sequences.

    Attributes:
        epoch: The epoch that they belong to.
        delivered: Held by the server.
        refusals: Refused by the server, by the name of the reason.
        skipped: Without an observation in this buffer: never given to one, or deleted.
        dropped: Those of them that were deleted undelivered, since there was no room for newer ones.
    """

    epoch: str
    delivered: RangeSet = field(default_factory=RangeSet)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    skipped: RangeSet = field(default_factory=RangeSet)
    dropped: RangeSet = field(default_factory=RangeSet)

    def deliver(self, first: int, last: int) -> None:
        """Marks a range as held by the server, whatever was said of it before."""
        self.delivered.add(first, last)
        for refusal in self.refusals.values():
            refusal.sequences.discard(first, last)

    def refuse(self, sequence: int, reason: str, detail: str) -> None:
        """Marks one sequence as refused."""
        refusal = self.refusals.setdefault(reason, Refusal())
        refusal.sequences.add(sequence)
        refusal.detail = detail

    def reopen(self, first: int, last: int) -> None:
        """Marks a range as neither delivered nor refused, so that it is sent again."""
        self.delivered.discard(first, last)
        for refusal in self.refusals.values():
            refusal.sequences.discard(first, last)

    def delete(self, first: int, last: int) -> int:
        """Marks a range as deleted from the buffer.

        Returns:
            How many observations of it were undelivered.
        """
        undelivered = list(self._open_ranges(first, last))
        for open_first, open_last in undelivered:
            self.dropped.add(open_first, open_last)
        self.skipped.add(first, last)
        return sum(open_last - open_first + 1 for open_first, open_last in undelivered)

    def settled(self) -> RangeSet:
        """What need not be sent after a start: delivered, refused for good, without an observation."""
        result = RangeSet(self.delivered)
        for first, last in self.skipped:
            result.add(first, last)
        for reason, refusal in self.refusals.items():
            if reason not in OFFERED_AGAIN:
                for first, last in refusal.sequences:
                    result.add(first, last)
        return result

    def is_done(self, first: int, last: int) -> bool:
        """Whether no sequence of the range is needed for delivery any more."""
        return not self._open_ranges(first, last)

    def _open_ranges(self, first: int, last: int) -> RangeSet:
        """The part of the range whose observations exist here alone."""
        done = [self.delivered, self.skipped]
        if REPLACED in self.refusals:
            done.append(self.refusals[REPLACED].sequences)
        rest = RangeSet([(first, last)])
        for ranges in done:
            for done_first, done_last in ranges.common(first, last):
                rest.discard(done_first, done_last)
        return rest

    def refused_count(self) -> int:
        """How many observations are refused and have not been replaced."""
        return sum(len(refusal.sequences) for reason, refusal in self.refusals.items() if reason != REPLACED)

    def highest(self) -> int:
        """The highest sequence that anything is known of; 0 where there is none."""
        sets = [self.delivered, self.skipped, *(refusal.sequences for refusal in self.refusals.values())]
        return max((last for ranges in sets for _, last in ranges), default=0)

    def to_json(self) -> bytes:
        """The text of delivered.json."""
        refusals = {
            reason: {"sequences": list(refusal.sequences), "detail": refusal.detail}
            for reason, refusal in self.refusals.items()
            if refusal.sequences
        }
        content = {
            "epoch": self.epoch,
            "delivered": list(self.delivered),
            "refusals": refusals,
            "skipped": list(self.skipped),
            "dropped": list(self.dropped),
        }
        return json.dumps(content, separators=(",", ":")).encode()


def ledger_from_json(content: bytes, epoch: str) -> Ledger:
    """Reads delivered.json.

    Raises:
        BrokenStateError: It is not what to_json writes, or of another epoch.
    """
    try:
        fields = json.loads(content)
        ledger = Ledger(
            epoch=fields["epoch"],
            delivered=_ranges(fields["delivered"]),
            refusals={
                str(reason): Refusal(_ranges(refusal["sequences"]), str(refusal["detail"]))
                for reason, refusal in fields["refusals"].items()
            },
            skipped=_ranges(fields["skipped"]),
            dropped=_ranges(fields.get("dropped", [])),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenStateError(
            f"expected the ledger of delivered sequences, but got {content[:60]!r}: {error}"
        ) from error
    if ledger.epoch != epoch:
        raise BrokenStateError(f"expected the ledger of epoch {epoch}, but got that of {ledger.epoch[:40]!r}")
    return ledger


def _ranges(pairs: list[list[int]]) -> RangeSet:
    return RangeSet((int(first), int(last)) for first, last in pairs)
