"""What happens to a session, and what it wants done: plain values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from fieldpost.v1 import receipt_pb2

SEQUENCE_MAX = 1 << 53
"""A thousand observations a second for 280,000 years. A receipt that names more is a mistake, and would use them up."""

# --- events ---


@dataclass(frozen=True, slots=True)
class Connected:
    """The link is up, and receipts will be heard."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link is down."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The buffer holds observations up to last_sequence."""

    last_sequence: int


@dataclass(frozen=True, slots=True)
class Published:
    """A bundle was given to the link: (sequence, payload bytes) of each observation."""

    observations: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The buffer has no undamaged record of first..last."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class RefusedObservation:
    """What a receipt says of an observation that the server does not take."""

    sequence: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ReceiptCame:
    """A receipt of this station and epoch."""

    held: tuple[tuple[int, int], ...]
    refused: tuple[RefusedObservation, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplayAsked:
    """The server wants these ranges again; the buffer has them."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class KeepBack:
    """Observations from this sequence on are not to be sent yet; None where none are kept back any more."""

    from_sequence: int | None


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened; it is later."""


Event = Connected | Disconnected | Appended | Published | Unreadable | ReceiptCame | ReplayAsked | KeepBack | TimePassed


# --- actions ---


@dataclass(frozen=True, slots=True)
class MarkDelivered:
    """The server holds these ranges."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class MarkRefused:
    """The server does not take this observation."""

    refused: RefusedObservation


@dataclass(frozen=True, slots=True)
class AppendAgain:
    """Append the bytes of this observation under a new sequence, then mark the old one as refused."""

    refused: RefusedObservation


@dataclass(frozen=True, slots=True)
class SkipTo:
    """Never give a sequence up to this one to an observation: the server knows another one under it."""

    sequence: int


Action = MarkDelivered | MarkRefused | AppendAgain | SkipTo


@dataclass(frozen=True, slots=True)
class SendBundle:
    """Read observations from first_sequence on, as far as the bounds allow, and publish them as one bundle.

    Attributes:
        first_sequence: The first one.
        last_sequence: The last one that may be in it.
        max_bytes: Bound of the sum of payload bytes.
        first_max_bytes: Bound of the first observation, which may be larger than a bundle and then goes alone; None
            for any size. Where it does not fit, nothing is published now.
    """

    first_sequence: int
    last_sequence: int
    max_bytes: int
    first_max_bytes: int | None


def receipt_event(receipt: receipt_pb2.Receipt) -> ReceiptCame:
    """What a receipt says; entries that name no sequence that could ever be reached are left out."""
    held = ((entry.first_sequence, entry.last_sequence) for entry in receipt.held_ranges)
    refused = (
        RefusedObservation(entry.sequence, _reason_name(entry.reason), entry.detail) for entry in receipt.rejections
    )
    return ReceiptCame(
        tuple((first, last) for first, last in held if 1 <= first <= last <= SEQUENCE_MAX),
        tuple(entry for entry in refused if 1 <= entry.sequence <= SEQUENCE_MAX),
    )


def _reason_name(reason: receipt_pb2.RejectionReason.ValueType) -> str:
    try:
        return receipt_pb2.RejectionReason.Name(reason).removeprefix("REJECTION_REASON_")
    except ValueError:
        return f"REASON_{reason}"  # of a newer server
