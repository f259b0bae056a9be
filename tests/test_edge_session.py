"""The session against a simple model of a bad link, and each of its rules by itself. Time is an argument."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.session import Session, SessionLimits
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
    receipt_event,
)
from fieldpost.ranges import RangeSet
from fieldpost.v1 import receipt_pb2 as pb

LIMITS = SessionLimits(
    window_observations=8, window_bytes=1000, bundle_observations=3, bundle_bytes=300, resend_after_s=4, resend_max_s=60
)


def session(last_sequence: int = 0, settled: RangeSet | None = None) -> Session:
    return Session(LIMITS, last_sequence, settled or RangeSet())


def tell(subject: Session, *events: Event, now: float = 0.0) -> list[Action]:
    return [action for event in events for action in subject.handle(event, now, 0.0)]


def publish_all(subject: Session, size: int = 10, now: float = 0.0) -> list[list[int]]:
    """Publishes until the session has no more to say; the sequences of each bundle."""
    bundles = []
    while (send := subject.next_bundle(now)) is not None:
        sequences = list(range(send.first_sequence, send.last_sequence + 1))
        tell(subject, Published(tuple((sequence, size) for sequence in sequences)), now=now)
        bundles.append(sequences)
    return bundles


# --- rules one by one ---


def test_nothing_is_sent_before_the_link_is_up() -> None:
    subject = session(3)
    assert subject.next_bundle(0.0) is None
    tell(subject, Connected())
    assert publish_all(subject) == [[1, 2, 3]]


def test_the_window_bounds_what_is_in_flight_and_a_receipt_opens_it() -> None:
    subject = session(100)
    tell(subject, Connected())
    assert publish_all(subject) == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert tell(subject, ReceiptCame(((1, 2),))) == [MarkDelivered(((1, 2),))]
    assert publish_all(subject) == [[9, 10]]
    assert subject.backlog_count == 98


def test_a_bundle_is_bounded_in_bytes_and_a_full_window_of_bytes_lets_nothing_through() -> None:
    subject = session(100)
    tell(subject, Connected())
    assert subject.next_bundle(0.0) == SendBundle(1, 3, max_bytes=300, first_max_bytes=None)
    tell(subject, Published(((1, 900),)))
    assert subject.next_bundle(0.0) == SendBundle(2, 4, max_bytes=100, first_max_bytes=100)
    tell(subject, Published(((2, 100),)))
    assert subject.next_bundle(0.0) is None


def test_an_observation_larger_than_the_window_travels_alone() -> None:
    subject = session(3)
    tell(subject, Connected(), Published(((1, 5000),)))
    assert subject.next_bundle(0.0) is None
    tell(subject, ReceiptCame(((1, 1),)))
    assert subject.next_bundle(0.0) == SendBundle(2, 3, max_bytes=300, first_max_bytes=None)


def test_what_is_in_flight_is_sent_again_at_every_connect() -> None:
    subject = session(4)
    tell(subject, Connected())
    publish_all(subject)
    tell(subject, ReceiptCame(((2, 2),)), Disconnected())
    assert subject.next_bundle(0.0) is None
    tell(subject, Connected())
    assert publish_all(subject) == [[1], [3, 4]]


def test_without_a_receipt_the_same_is_sent_again_after_4_then_8_then_16_seconds() -> None:
    subject = session(2)
    tell(subject, Connected())
    now = 0.0
    for wait_s in (4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert publish_all(subject, now=now) == [[1, 2]]
        assert subject.wake_at_s == now + wait_s
        tell(subject, TimePassed(), now=now + wait_s - 0.1)
        assert subject.in_flight_count == 2
        now += wait_s
        tell(subject, TimePassed(), now=now)
        assert subject.in_flight_count == 0


def test_jitter_makes_the_wait_up_to_half_as_long_again() -> None:
    subject = session(2)
    tell(subject, Connected())
    subject.handle(Published(((1, 10),)), 0.0, 0.999)
    assert subject.wake_at_s == pytest.approx(4.0 * 1.4995)


def test_fresh_goes_ahead_of_the_backlog_and_every_fourth_bundle_is_backlog() -> None:
    limits = SessionLimits(window_observations=1000, bundle_observations=2)
    subject = Session(limits, 10, RangeSet())
    tell(subject, Connected(), Appended(20))
    bundles = publish_all(subject)
    assert bundles == [[11, 12], [13, 14], [15, 16], [1, 2], [17, 18], [19, 20], [3, 4], [5, 6], [7, 8], [9, 10]]


def test_what_piled_up_during_a_stall_is_backlog_once_receipts_come_again() -> None:
    subject = session(0)
    tell(subject, Connected(), Appended(3))
    publish_all(subject)
    tell(subject, Appended(50))
    tell(subject, TimePassed(), now=4.0)
    publish_all(subject, now=4.0)
    tell(subject, ReceiptCame(((1, 3),)), Appended(52), now=5.0)
    assert publish_all(subject)[0] == [51, 52]


def test_a_receipt_settles_only_what_this_session_has_published() -> None:
    subject = session(10)
    tell(subject, Connected(), Published(((1, 10), (2, 10))))
    assert tell(subject, ReceiptCame(((1, 10),))) == [MarkDelivered(((1, 2),))]
    assert subject.backlog_count == 8


def test_sequences_that_the_server_knows_beyond_the_last_are_never_used() -> None:
    subject = session(2)
    tell(subject, Connected(), Published(((1, 10), (2, 10))))
    actions = tell(subject, ReceiptCame(((1, 500),)))
    assert actions == [SkipTo(500), MarkDelivered(((1, 2),))]
    assert subject.backlog_count == 0
    tell(subject, Appended(501))
    assert publish_all(subject) == [[501]]


def test_a_conflict_of_identity_asks_for_a_new_sequence_and_other_refusals_are_kept() -> None:
    subject = session(2)
    tell(subject, Connected(), Published(((1, 10), (2, 10))))
    conflict = RefusedObservation(1, "IDENTITY_CONFLICT", "other bytes")
    unknown = RefusedObservation(2, "UNKNOWN_INSTRUMENT", "register it")
    never_sent = RefusedObservation(7, "INVALID", "")
    assert tell(subject, ReceiptCame((), (conflict, unknown, never_sent))) == [
        AppendAgain(conflict),
        MarkRefused(unknown),
    ]
    assert subject.backlog_count == 0
    assert tell(subject, ReceiptCame((), (conflict,))) == [], "a repeated refusal is answered once"


def test_a_replay_sends_delivered_observations_again_behind_what_is_fresh() -> None:
    subject = session(6, RangeSet([(1, 6)]))
    tell(subject, Connected(), ReplayAsked(((2, 3),)), Appended(7))
    assert subject.backlog_count == 3
    assert publish_all(subject) == [[7], [2, 3]]


def test_a_receipt_from_before_a_replay_does_not_settle_it() -> None:
    subject = session(1)
    tell(subject, Connected(), Published(((1, 10),)), ReceiptCame(((1, 1),)), ReplayAsked(((1, 1),)))
    assert tell(subject, ReceiptCame(((1, 1),))) == []
    assert publish_all(subject) == [[1]]


def test_on_a_metered_link_nothing_is_sent_before_the_last_bytes_are_paid_for() -> None:
    subject = session(9)
    subject.limits = replace(LIMITS, rate_limit_bytes_per_s=10)
    tell(subject, Connected())
    assert publish_all(subject, size=20) == [[1, 2, 3]]
    assert subject.wake_at_s == 4.0, "the resend comes first"
    tell(subject, ReceiptCame(((1, 3),)), now=1.0)
    assert subject.wake_at_s == 6.0
    assert publish_all(subject, now=5.9) == []
    assert publish_all(subject, now=6.0) == [[4, 5, 6]]


def test_a_rate_limit_holds_over_any_length_of_time() -> None:
    subject = session(2000)
    subject.limits = replace(LIMITS, rate_limit_bytes_per_s=50)
    tell(subject, Connected())
    sent = 0
    for now in range(1000):
        for bundle in publish_all(subject, size=30, now=float(now)):
            sent += 30 * len(bundle)
            tell(subject, ReceiptCame(((bundle[0], bundle[-1]),)), now=float(now))
        assert sent <= 50 * now + LIMITS.bundle_bytes
    assert sent > 44 * 1000


def test_what_is_kept_back_is_sent_once_it_is_released_and_the_rest_at_once() -> None:
    subject = session(2)
    tell(subject, KeepBack(3), Appended(4), Connected())
    assert publish_all(subject) == [[1, 2]]
    tell(subject, ReceiptCame(((1, 2),)))
    assert publish_all(subject) == []
    assert subject.backlog_count == 2
    tell(subject, KeepBack(None))
    assert publish_all(subject) == [[3, 4]]


def test_what_cannot_be_read_is_not_asked_for_again() -> None:
    subject = session(4)
    tell(subject, Connected(), Unreadable(1, 2))
    assert publish_all(subject) == [[3, 4]]


def test_a_receipt_message_is_translated_and_what_makes_no_sense_is_left_out() -> None:
    receipt = pb.Receipt()
    for first, last in ((1, 4), (0, 3), (9, 8)):
        receipt.held_ranges.add(first_sequence=first, last_sequence=last)
    receipt.rejections.add(sequence=5, reason=pb.REJECTION_REASON_TOO_LARGE, detail="at most 1 MiB")
    receipt.rejections.add(sequence=0)
    receipt.held_ranges.add(first_sequence=5, last_sequence=2**63 - 1)
    receipt.rejections.add(sequence=6, reason=99)  # type: ignore[arg-type]
    assert receipt_event(receipt) == ReceiptCame(
        ((1, 4),), (RefusedObservation(5, "TOO_LARGE", "at most 1 MiB"), RefusedObservation(6, "REASON_99", ""))
    )


# --- any link, any order ---


class BadLink:
    """A server behind a link that loses, repeats and reorders; it holds what reached it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.held: set[int] = set()
        self.bundles: list[list[int]] = []
        self.receipts: list[list[int]] = []

    def deliver(self, loss: float) -> list[ReceiptCame]:
        """Moves what is under way; the receipts that reach the station."""
        receipts: list[ReceiptCame] = []
        self.chance.shuffle(self.bundles)
        for bundle in self.bundles:
            for _ in range(self.chance.choice((1, 1, 2))):
                if self.chance.random() >= loss:
                    self.held.update(bundle)
                    self.receipts.append(bundle)
        self.bundles.clear()
        self.chance.shuffle(self.receipts)
        for numbers in self.receipts:
            if self.chance.random() >= loss:
                receipts.append(ReceiptCame(tuple(RangeSet.of(numbers))))
        self.receipts.clear()
        return receipts


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.9), st.integers(0, 30))
def test_everything_is_delivered_in_the_end_over_any_link_and_never_more_than_the_window_is_in_flight(
    seed: int, loss: float, backlog: int
) -> None:
    chance = random.Random(seed)
    link, subject = BadLink(chance), session(backlog)
    delivered, last, now = RangeSet(), backlog, 0.0

    def step(loss: float) -> None:
        while (send := subject.next_bundle(now)) is not None:
            assert send.last_sequence <= last
            sizes = {n: chance.randint(1, 400) for n in range(send.first_sequence, send.last_sequence + 1)}
            taken: list[int] = []
            for number, size in sizes.items():
                bound = send.max_bytes if taken else send.first_max_bytes
                if bound is not None and sum(sizes[n] for n in taken) + size > bound:
                    break
                taken.append(number)
            if not taken:
                break
            assert not any(number in delivered for number in taken)
            tell(subject, Published(tuple((n, sizes[n]) for n in taken)), now=now)
            link.bundles.append(taken)
            assert subject.in_flight_count <= LIMITS.window_observations
            assert subject.in_flight_bytes <= LIMITS.window_bytes
        for receipt in link.deliver(loss):
            for action in tell(subject, receipt, now=now):
                assert isinstance(action, MarkDelivered)
                for first, final in action.ranges:
                    delivered.add(first, final)

    for _ in range(60):
        now += chance.uniform(0, 5)
        event = chance.choice(["connect", "disconnect", "append", "append", "pass", "pass"])
        if event == "append":
            last += chance.randint(1, 5)
        events: dict[str, Event] = {"connect": Connected(), "disconnect": Disconnected(), "append": Appended(last)}
        tell(subject, events.get(event, TimePassed()), now=now)
        step(loss)
        assert {n for a, b in delivered for n in range(a, b + 1)} <= link.held, "marked, but the server has it not"
    tell(subject, Connected(), now=now)
    for _ in range(last + 10):
        now += 200
        tell(subject, TimePassed(), now=now)
        step(0.0)
    assert link.held == set(range(1, last + 1))
    assert subject.backlog_count == 0
    assert subject.in_flight_count == subject.in_flight_bytes == 0
