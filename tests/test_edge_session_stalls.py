"""A session without receipts for a while: what goes ahead, what steps behind, what is learnt. Time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from edge_agent.patience import PROBE_BYTES, Awaited, Patience
from edge_agent.session import MAX_BEHIND, Session, SessionLimits
from edge_agent.session_events import Appended, Connected, Event, Published, ReceiptCame, TimePassed
from fieldpost.ranges import RangeSet

SIZE_BYTES = 3000
LIMITS = SessionLimits(window_bytes=1 << 20, bundle_bytes=1 << 16)


def tell(subject: Session, *events: Event, now: float = 0.0) -> None:
    for event in events:
        subject.handle(event, now, 0.0)


def publish_all(subject: Session, now: float = 0.0) -> list[list[int]]:
    """What a station with observations of SIZE_BYTES publishes; the sequences of each bundle."""
    bundles = []
    while (send := subject.next_bundle(now)) is not None:
        if send.first_max_bytes is not None and send.first_max_bytes < SIZE_BYTES:
            break
        count = max(1, min(send.last_sequence - send.first_sequence + 1, send.max_bytes // SIZE_BYTES))
        bundles.append(list(range(send.first_sequence, send.first_sequence + count)))
        tell(subject, Published(tuple((sequence, SIZE_BYTES) for sequence in bundles[-1])), now=now)
    return bundles


def stalled_session(count: int) -> Session:
    """One whose first window went unanswered for 4 s."""
    subject = Session(LIMITS, count, RangeSet())
    tell(subject, Connected())
    publish_all(subject)
    tell(subject, TimePassed(), now=4.0)
    return subject


def test_after_a_stall_one_observation_goes_ahead_until_a_receipt_comes() -> None:
    subject = stalled_session(1000)
    assert [len(bundle) for bundle in publish_all(subject, now=4.0)] == [PROBE_BYTES // SIZE_BYTES]
    assert publish_all(subject, now=11.9) == []
    tell(subject, TimePassed(), now=12.0)
    assert sum(map(len, publish_all(subject, now=12.0))) == 1


def test_an_observation_that_never_arrives_does_not_hold_up_the_others() -> None:
    """As one that is larger than what the broker passes on: acknowledged, and dropped."""
    subject, poisonous, now = Session(LIMITS, 400, RangeSet()), {1, 2, 300}, 0.0
    tell(subject, Connected())
    for _ in range(10):
        while bundles := publish_all(subject, now):
            for bundle in bundles:
                if not poisonous & set(bundle):
                    tell(subject, ReceiptCame(((bundle[0], bundle[-1]),)), now=now)
        now = subject.wake_at_s or now
        tell(subject, TimePassed(), now=now)
    assert subject.backlog_count <= 2 * LIMITS.bundle_bytes // SIZE_BYTES, "what travels in one bundle with them"


def test_a_server_that_is_gone_for_a_month_costs_no_memory_and_nothing_is_lost() -> None:
    """The broker takes everything meanwhile. An observation a minute, and a probe each two minutes."""
    subject, now, count = Session(LIMITS, 5000, RangeSet()), 0.0, 5000
    tell(subject, Connected())
    for minute in range(31 * 1440):
        now, count = 60.0 * minute, count + 1
        tell(subject, Appended(count), TimePassed(), now=now)
        publish_all(subject, now)
    assert len(subject._awaited) <= MAX_BEHIND + LIMITS.window_observations
    sent: set[int] = set()
    while subject.backlog_count:
        now += 1.0
        tell(subject, TimePassed(), now=now)
        for bundle in publish_all(subject, now):
            sent.update(bundle)
            tell(subject, ReceiptCame(((bundle[0], bundle[-1]),)), now=now)
    assert sent == set(range(1, count + 1))


def test_receipts_after_a_stall_open_the_window_again() -> None:
    subject = stalled_session(2000)
    rounds = []
    for now in range(10, 20):
        bundles = publish_all(subject, float(now))
        rounds.append(sum(map(len, bundles)))
        for bundle in bundles:
            tell(subject, ReceiptCame(((bundle[0], bundle[-1]),)), now=now + 0.1)
    assert rounds[0] == 1
    assert max(rounds) == LIMITS.window_observations
    assert rounds == sorted(rounds)


def test_what_is_still_under_way_on_a_slow_link_is_not_sent_again_once_receipts_come() -> None:
    subject = Session(LIMITS, 64, RangeSet())
    tell(subject, Connected())
    bundles = publish_all(subject)
    tell(subject, TimePassed(), now=4.0)
    tell(subject, ReceiptCame(((bundles[0][0], bundles[0][-1]),)), now=5.0)
    assert publish_all(subject, now=5.0) == []
    tell(subject, ReceiptCame(((bundles[1][0], bundles[1][-1]),)), now=15.0)
    assert subject.stall_count == 0
    assert publish_all(subject, now=15.0) == []


def test_what_a_stall_lost_is_sent_again_once_receipts_come() -> None:
    subject = stalled_session(64)
    first = publish_all(subject, now=4.0)[0]
    tell(subject, ReceiptCame(((first[0], first[-1]),)), now=20.0)
    sent = [sequence for now in range(20, 28) for sequence in _round(subject, float(now))]
    assert sorted({*sent, *first}) == list(range(1, 65))


def _round(subject: Session, now: float) -> list[int]:
    tell(subject, TimePassed(), now=now)
    bundles = publish_all(subject, now)
    for bundle in bundles:
        tell(subject, ReceiptCame(((bundle[0], bundle[-1]),)), now=now)
    return [sequence for bundle in bundles for sequence in bundle]


def test_a_server_whose_receipts_are_late_by_30_s_gets_little_twice() -> None:
    """An observation each 15 s for six hours. While the wait was fixed, each was sent several times."""
    subject = Session(LIMITS, 0, RangeSet())
    tell(subject, Connected())
    under_way: deque[tuple[float, list[int]]] = deque()
    sent_count = 0
    for second in range(6 * 3600):
        now = float(second)
        tell(subject, Appended(1 + second // 15), TimePassed(), now=now)
        while under_way and under_way[0][0] <= now:
            bundle = under_way.popleft()[1]
            tell(subject, ReceiptCame(((bundle[0], bundle[-1]),)), now=now)
        for bundle in publish_all(subject, now):
            sent_count += len(bundle)
            under_way.append((now + 30.0, bundle))
    assert subject.backlog_count < 5
    assert sent_count < 1.02 * 6 * 240


def test_on_a_metered_link_what_is_fresh_waits_2_s_at_most_for_the_bundle_before() -> None:
    subject = Session(replace(LIMITS, rate_limit_bytes_per_s=15_000), 100, RangeSet())
    tell(subject, Connected())
    assert publish_all(subject) == [list(range(1, 11))]
    tell(subject, Appended(101))
    assert publish_all(subject, now=1.9) == []
    assert publish_all(subject, now=2.0) == [[101]]


def test_the_wait_follows_what_receipts_take_up_to_a_bound_and_forgets_it_slowly() -> None:
    subject = Patience()
    assert subject.wait_s(4.0, 120.0) == 4.0
    subject.note_receipt([Awaited(0.0, 0.0, 100)], 30.0, 4.0)
    assert subject.wait_s(4.0, 120.0) == 60.0
    subject.note_stall()
    subject.note_stall()
    assert subject.wait_s(4.0, 120.0) == 120.0
    for _ in range(20):
        subject.note_receipt([Awaited(0.0, 0.0, 100)], 0.1, 4.0)
    assert subject.wait_s(4.0, 120.0) == 4.0


def test_the_wait_is_a_number_however_long_nobody_answers() -> None:
    subject, awaited = Patience(), Awaited(0.0, 0.0, 100)
    for _ in range(2000):
        subject.note_stall()
        awaited = awaited.again(0.0)
    assert subject.wait_s(4.0, 120.0) == 120.0
    assert not awaited.is_lost(3600.0, 120.0)


def test_a_receipt_for_what_was_repeated_keeps_the_wait_as_long_as_it_had_grown() -> None:
    subject = Patience()
    subject.note_stall()
    subject.note_receipt([Awaited(0.0, 0.0, 100).again(4.0)], 3600.0, subject.wait_s(4.0, 120.0))
    assert subject.wait_s(4.0, 120.0) == 8.0
