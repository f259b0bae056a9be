"""What is sent when: the rules between a station and its server. Pure; knows no clock, no MQTT and no disk.

The rules:

1. An observation is *settled* once a receipt names it: held, or refused. Nothing else settles it; a broker's
   acknowledgement is not even an event here.
2. What was published and is not settled is *in flight*. At most window_observations and window_bytes are; a single
   observation that is larger than the window travels alone.
3. A receipt settles only what this session has published: where the buffer is a restored copy, the server may hold
   other bytes under the sequences that it will use next. Sequences that a receipt names beyond the last are never used.
4. At every connect, and where no receipt came for a while (with exponential backoff and jitter), what is in flight is
   taken back and published again. Duplicates are harmless.
5. What was undelivered at the connect, or when receipts began to come again after a stall, is *backlog*; what came
   later is *fresh*. Fresh goes first; every fourth bundle is backlog, so that it always moves.
6. The same bytes get a new sequence where the server holds other bytes under theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_agent.session_events import (
    Action,
    AppendAgain,
    Appended,
    Connected,
    Disconnected,
    Event,
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
    """

    window_observations: int = 256
    window_bytes: int = 4 << 20
    bundle_observations: int = 64
    bundle_bytes: int = 512 << 10
    resend_after_s: float = 4.0
    resend_max_s: float = 120.0
    backlog_share: int = 4


class Session:
    """The state of one station towards its server, over all connections of one run of the agent.

    Args:
        limits: Bounds.
        last_sequence: The highest sequence in the buffer.
        settled: Sequences that need not be sent.
    """

    def __init__(self, limits: SessionLimits, last_sequence: int, settled: RangeSet) -> None:
        self._limits = limits
        self._last_sequence = last_sequence
        self._settled = RangeSet(settled)
        self._claimed = RangeSet(settled)  # settled or in flight: not to be sent now
        self._published = RangeSet()  # in this session's life: what a receipt may settle
        self._in_flight: dict[int, int] = {}  # sequence -> payload bytes
        self._in_flight_bytes = 0
        self._is_connected = False
        self._fresh_from = last_sequence + 1
        self._bundle_count = 0
        self._stall_count = 0
        self._resend_at_s: float | None = None

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
        """When TimePassed makes a difference, on the clock of now_s; None where it does not."""
        return self._resend_at_s if self._is_connected and self._in_flight else None

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
                self._stall_count = 0
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
            case TimePassed():
                self._resend_if_stalled(now_s)
        return []

    def next_bundle(self) -> SendBundle | None:
        """What to publish now; None where there is nothing, or no room for it.

        The caller publishes and reports Published or Unreadable before asking again.
        """
        room = self._limits.window_observations - len(self._in_flight)
        room_bytes = self._limits.window_bytes - self._in_flight_bytes
        chosen = self._choose_range() if self._is_connected and room > 0 and room_bytes > 0 else None
        if chosen is None:
            return None
        first, last = chosen
        return SendBundle(
            first_sequence=first,
            last_sequence=min(last, first + min(room, self._limits.bundle_observations) - 1),
            max_bytes=min(room_bytes, self._limits.bundle_bytes),
            # One that is larger than the window waits until nothing else is in flight.
            first_max_bytes=room_bytes if self._in_flight else None,
        )

    def _choose_range(self) -> tuple[int, int] | None:
        fresh = next(self._claimed.gaps(self._fresh_from, self._last_sequence), None)
        backlog = next(self._claimed.gaps(1, self._fresh_from - 1), None)
        is_backlogs_turn = self._bundle_count % self._limits.backlog_share == self._limits.backlog_share - 1
        return backlog or fresh if is_backlogs_turn else fresh or backlog

    def _note_published(self, observations: Iterable[tuple[int, int]], now_s: float, jitter: float) -> None:
        if not self._in_flight:
            self._set_resend_time(now_s, jitter)
        for sequence, payload_bytes in observations:
            if sequence in self._settled:
                continue
            self._in_flight_bytes += payload_bytes - self._in_flight.get(sequence, 0)
            self._in_flight[sequence] = payload_bytes
            self._claimed.add(sequence)
            self._published.add(sequence)
        self._bundle_count += 1

    def _take_receipt(
        self, held: tuple[tuple[int, int], ...], refused: tuple[RefusedObservation, ...], now_s: float, jitter: float
    ) -> list[Action]:
        known = [part for first, last in held for part in self._published.common(first, last)]
        refusals = [r for r in refused if r.sequence in self._published and r.sequence not in self._settled]
        in_flight_before = len(self._in_flight)
        for first, last in known:
            self._settle(first, last)
        for refusal in refusals:
            self._settle(refusal.sequence, refusal.sequence)
        if len(self._in_flight) < in_flight_before:
            self._note_progress(now_s, jitter)
        actions: list[Action] = [MarkDelivered(tuple(known))] if known else []
        for refusal in refusals:
            actions.append(AppendAgain(refusal) if refusal.reason == IDENTITY_CONFLICT else MarkRefused(refusal))
        highest = max((last for _, last in held), default=0)
        if highest > self._last_sequence:
            self._settle(self._last_sequence + 1, highest)
            self._last_sequence = highest
            actions.insert(0, SkipTo(highest))
        return actions

    def _note_progress(self, now_s: float, jitter: float) -> None:
        if self._stall_count:
            self._stall_count = 0
            self._fresh_from = self._last_sequence + 1
        self._set_resend_time(now_s, jitter)

    def _resend_if_stalled(self, now_s: float) -> None:
        wake_at_s = self.wake_at_s
        if wake_at_s is not None and now_s >= wake_at_s:
            self._stall_count += 1
            self._release_in_flight()

    def _set_resend_time(self, now_s: float, jitter: float) -> None:
        wait_s = min(self._limits.resend_after_s * 2**self._stall_count, self._limits.resend_max_s)
        self._resend_at_s = now_s + wait_s * (1 + jitter / 2)

    def _take_back(self) -> None:
        """At a connect: nothing is in flight, and what is undelivered is backlog."""
        self._release_in_flight()
        self._fresh_from = self._last_sequence + 1

    def _release_in_flight(self) -> None:
        for sequence in self._in_flight:
            self._claimed.discard(sequence)
        self._in_flight.clear()
        self._in_flight_bytes = 0

    def _settle(self, first: int, last: int) -> None:
        if last < first:
            return
        self._settled.add(first, last)
        self._claimed.add(first, last)
        for sequence in [s for s in self._in_flight if first <= s <= last]:
            self._in_flight_bytes -= self._in_flight.pop(sequence)

    def _reopen(self, ranges: Iterable[tuple[int, int]]) -> None:
        """A receipt from before the request must not settle what is asked for now; hence no longer published."""
        for first, last in ranges:
            last = min(last, self._last_sequence)
            for open_ranges in (self._settled, self._claimed, self._published):
                open_ranges.discard(first, last)
        self._release_in_flight()
        self._fresh_from = self._last_sequence + 1
