"""What is sent when: the rules between a station and its server. Pure; knows no clock, no MQTT and no disk.

The rules:

1. An observation is *settled* once a receipt names it: held, or refused. Nothing else settles it; a broker's
   acknowledgement is not even an event here.
2. What was published and is not settled is *in flight*. At most window_observations and window_bytes are; a single
   observation that is larger than the window travels alone.
3. A receipt settles only what this session has published: where the buffer is a restored copy, the server may hold
   other bytes under the sequences that it will use next. Sequences that a receipt names beyond the last are never used.
4. At every connect, and where no receipt came for a while (with exponential backoff and jitter; longer where receipts
   take long), what is in flight is taken back and published again. Duplicates are harmless, but a slow link is not to
   be filled with them: after such a stall only a little goes ahead until receipts come again, and what was in flight
   steps behind the rest, so that one observation that never arrives does not hold up the others. Where nobody answers
   any more, and very many are behind, the oldest become backlog as any other: a server may be gone for months.
5. What was undelivered at the connect, or when receipts began to come again after a stall, is *backlog*; what came
   later is *fresh*. Fresh goes first; every fourth bundle is backlog, so that it always moves.
6. The same bytes get a new sequence where the server holds other bytes under theirs.
7. On a metered link, payload bytes are paid for at rate_limit_bytes_per_s: after a bundle nothing is sent until the
   time that its bytes cost has passed.
8. Observations whose times may still be corrected are kept back, from a given sequence on, until they are released.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_agent.patience import Awaited, Patience, first_of
from edge_agent.session_events import (
    Action,
    AppendAgain,
    Appended,
    Connected,
    Disconnected,
    Event,
    KeepBack,
    MarkDelivered,
    MarkRefused,
    Published,
    ReceiptCame,
    RefusedObservation,
    ReplayAsked,
    SendBundle,
    SkipTo,
    TimePassed,
    Unreadable,
)
from fieldpost.ranges import RangeSet

IDENTITY_CONFLICT = "IDENTITY_CONFLICT"
METERED_BUNDLE_S = 2.0
SERVER_GONE_STALLS = 8
"""So many in a row, a quarter of an hour, are no observations that never arrive among others that do."""
MAX_BEHIND = 2048
"""Some 300 bytes of memory each."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of a session.

    Attributes:
        window_observations: Most observations in flight.
        window_bytes: Most payload bytes in flight.
        bundle_observations: Most observations in a bundle.
        bundle_bytes: Most payload bytes in a bundle.
        resend_after_s: Time without a receipt after which what is in flight is published again.
        resend_max_s: What that time grows to at most.
        backlog_share: Every so many bundles one is backlog, however much is fresh.
        rate_limit_bytes_per_s: Most payload bytes a second, on average; 0 for no limit.
    """

    window_observations: int = 256
    window_bytes: int = 4 << 20
    bundle_observations: int = 64
    bundle_bytes: int = 512 << 10
    resend_after_s: float = 4.0
    resend_max_s: float = 120.0
    backlog_share: int = 4
    rate_limit_bytes_per_s: int = 0


class Session:
    """The state of one station towards its server, over all connections of one run of the agent.

    Args:
        limits: Bounds.
        last_sequence: The highest sequence in the buffer.
        settled: Sequences that need not be sent.
    """

    def __init__(self, limits: SessionLimits, last_sequence: int, settled: RangeSet) -> None:
        self.limits = limits
        """May be changed at any time."""
        self._last_sequence = last_sequence
        self._settled = RangeSet(settled)
        self._claimed = RangeSet(settled)  # settled or in flight: not to be sent now
        self._published = RangeSet()  # in this session's life: what a receipt may settle
        self._in_flight: dict[int, int] = {}  # sequence -> payload bytes
        self._in_flight_bytes = 0
        self._awaited: dict[int, Awaited] = {}  # published over this connection and not settled
        self._behind: dict[int, None] = {}  # claimed, but not in flight since a stall; the next to be sent first
        self._patience = Patience()
        self._is_connected = False
        self._fresh_from = last_sequence + 1
        self._bundle_count = 0
        self._resend_at_s: float | None = None
        self._keep_back_from: int | None = None
        self._paid_at_s: float | None = None  # when the bytes of the last bundle are paid for, on a metered link

    @property
    def stall_count(self) -> int:
        """How often in a row no receipt came in time; 0 where the last one did."""
        return self._patience.stall_count

    @property
    def backlog_count(self) -> int:
        """Observations for which no receipt has come."""
        return self._last_sequence - len(self._settled)

    @property
    def in_flight_count(self) -> int:
        """Observations published and not settled."""
        return len(self._in_flight)

    @property
    def in_flight_bytes(self) -> int:
        """Their payload bytes."""
        return self._in_flight_bytes

    @property
    def wake_at_s(self) -> float | None:
        """When TimePassed or next_bundle makes a difference, on the clock of now_s; None where it does not."""
        wakes = [self._due_resend_at_s(), self._paid_at_s if self._is_connected and self._choose_range() else None]
        return min((at_s for at_s in wakes if at_s is not None), default=None)

    def handle(self, event: Event, now_s: float, jitter: float) -> list[Action]:
        """Takes an event.

        Args:
            event: What happened.
            now_s: Monotonic time in seconds.
            jitter: A random number of [0, 1).

        Returns:
            What to do, in this order.
        """
        match event:
            case Connected():
                self._is_connected = True
                self._patience.note_connected()
                self._take_back()
            case Disconnected():
                self._is_connected = False
            case Appended(last_sequence):
                self._last_sequence = max(self._last_sequence, last_sequence)
            case Published(observations):
                self._note_published(observations, now_s, jitter)
            case Unreadable(first, last):
                self._settle(first, min(last, self._last_sequence))
            case ReceiptCame(held, refused):
                return self._take_receipt(held, refused, now_s, jitter)
            case ReplayAsked(ranges):
                self._reopen(ranges)
            case KeepBack(from_sequence):
                self._keep_back_from = from_sequence
            case TimePassed():
                self._resend_if_stalled(now_s)
        return []

    def next_bundle(self, now_s: float) -> SendBundle | None:
        """What to publish now; None where there is nothing, or no room for it.

        The caller publishes and reports Published or Unreadable before asking again.

        Args:
            now_s: Monotonic time in seconds.
        """
        if self._paid_at_s is not None:
            if now_s < self._paid_at_s:
                return None
            self._paid_at_s = None
        is_probing = self._patience.stall_count > 0
        window = self.limits.bundle_observations if is_probing else self.limits.window_observations
        room = window - len(self._in_flight)
        room_bytes = self._patience.window_bytes(self.limits.window_bytes) - self._in_flight_bytes
        chosen = self._choose_range() if self._is_connected and room > 0 and room_bytes > 0 else None
        if chosen is None:
            return None
        first, last = chosen
        return SendBundle(
            first_sequence=first,
            last_sequence=min(last, first + min(room, self.limits.bundle_observations) - 1),
            max_bytes=min(room_bytes, self.limits.bundle_bytes, self._metered_bytes()),
            # One that is larger than the window waits until nothing else is in flight.
            first_max_bytes=room_bytes if self._in_flight else None,
        )

    def _metered_bytes(self) -> int:
        """So much on a metered link that what is measured next need not wait long for its turn."""
        rate = self.limits.rate_limit_bytes_per_s
        return int(rate * METERED_BUNDLE_S) if rate else self.limits.bundle_bytes

    def _choose_range(self) -> tuple[int, int] | None:
        last = self._last_sequence
        if self._keep_back_from is not None:
            last = min(last, self._keep_back_from - 1)
        fresh = next(self._claimed.gaps(self._fresh_from, last), None)
        backlog = next(self._claimed.gaps(1, min(last, self._fresh_from - 1)), None)
        is_backlogs_turn = self._bundle_count % self.limits.backlog_share == self.limits.backlog_share - 1
        return backlog or fresh if is_backlogs_turn else fresh or backlog

    def _note_published(self, observations: tuple[tuple[int, int], ...], now_s: float, jitter: float) -> None:
        if not self._in_flight:
            self._set_resend_time(now_s, jitter)
        unsettled = [entry for entry in observations if entry[0] not in self._settled]
        for sequence, payload_bytes in unsettled:
            self._in_flight_bytes += payload_bytes - self._in_flight.get(sequence, 0)
            self._in_flight[sequence] = payload_bytes
            earlier = self._awaited.get(sequence)
            self._awaited[sequence] = earlier.again(now_s) if earlier else Awaited(now_s, now_s, payload_bytes)
        for first, last in RangeSet.of(sequence for sequence, _ in unsettled):
            self._claimed.add(first, last)
            self._published.add(first, last)
        self._bundle_count += 1
        if self.limits.rate_limit_bytes_per_s:
            sent_bytes = sum(payload_bytes for _, payload_bytes in observations)
            self._paid_at_s = now_s + sent_bytes / self.limits.rate_limit_bytes_per_s

    def _take_receipt(
        self, held: tuple[tuple[int, int], ...], refused: tuple[RefusedObservation, ...], now_s: float, jitter: float
    ) -> list[Action]:
        known = [part for first, last in held for part in self._published.common(first, last)]
        refusals = [r for r in refused if r.sequence in self._published and r.sequence not in self._settled]
        named = [*known, *((refusal.sequence, refusal.sequence) for refusal in refusals)]
        settled = [entry for first, last in named for entry in self._settle(first, last)]
        if settled:
            self._note_progress(settled, now_s, jitter)
        actions: list[Action] = [MarkDelivered(tuple(known))] if known else []
        for refusal in refusals:
            actions.append(AppendAgain(refusal) if refusal.reason == IDENTITY_CONFLICT else MarkRefused(refusal))
        highest = max((last for _, last in held), default=0)
        if highest > self._last_sequence:
            self._settle(self._last_sequence + 1, highest)
            self._last_sequence = highest
            actions.insert(0, SkipTo(highest))
        return actions

    def _note_progress(self, settled: list[Awaited], now_s: float, jitter: float) -> None:
        if self._patience.stall_count:
            self._fresh_from = self._last_sequence + 1
        self._patience.note_receipt(settled, now_s, self._wait_s())
        self._release([n for n in self._behind if self._awaited[n].is_lost(now_s, self._wait_s())])
        self._set_resend_time(now_s, jitter)

    def _resend_if_stalled(self, now_s: float) -> None:
        due_at_s = self._due_resend_at_s()
        if due_at_s is None or now_s < due_at_s:
            return
        self._resend_at_s = None  # until something is published
        if self._in_flight:
            self._patience.note_stall()
            self._behind |= dict.fromkeys(self._in_flight)
            self._in_flight.clear()
            self._in_flight_bytes = 0
            if self._patience.stall_count >= SERVER_GONE_STALLS:
                self._forget(list(self._behind)[:-MAX_BEHIND])
        if self._choose_range() is None:
            self._release(first_of(self._behind, self._awaited))

    def _forget(self, sequences: list[int]) -> None:
        """As if they had not been published, though a receipt may still settle them."""
        self._release(sequences)
        for sequence in sequences:
            del self._awaited[sequence]

    def _due_resend_at_s(self) -> float | None:
        return self._resend_at_s if self._is_connected and (self._in_flight or self._behind) else None

    def _set_resend_time(self, now_s: float, jitter: float) -> None:
        self._resend_at_s = now_s + self._wait_s() * (1 + jitter / 2)

    def _wait_s(self) -> float:
        return self._patience.wait_s(self.limits.resend_after_s, self.limits.resend_max_s)

    def _take_back(self) -> None:
        """At a connect: nothing is in flight, and what is undelivered is backlog."""
        self._release_in_flight()
        self._fresh_from = self._last_sequence + 1

    def _release_in_flight(self) -> None:
        self._release(list(self._awaited))
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._awaited.clear()

    def _release(self, sequences: Iterable[int]) -> None:
        """They may be sent again."""
        for sequence in sequences:
            self._behind.pop(sequence, None)
            self._claimed.discard(sequence)

    def _settle(self, first: int, last: int) -> list[Awaited]:
        """Not to be sent any more; returns what was awaited of it."""
        if last < first:
            return []
        self._settled.add(first, last)
        self._claimed.add(first, last)
        sequences = [sequence for sequence in self._awaited if first <= sequence <= last]
        for sequence in sequences:
            self._in_flight_bytes -= self._in_flight.pop(sequence, 0)
            self._behind.pop(sequence, None)
        return [self._awaited.pop(sequence) for sequence in sequences]

    def _reopen(self, ranges: Iterable[tuple[int, int]]) -> None:
        """A receipt from before the request must not settle what is asked for now; hence no longer published."""
        for first, last in ranges:
            last = min(last, self._last_sequence)
            for open_ranges in (self._settled, self._claimed, self._published):
                open_ranges.discard(first, last)
        self._release_in_flight()
        self._fresh_from = self._last_sequence + 1
