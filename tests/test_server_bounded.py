"""The queue before the disk: bounded by number and by bytes."""

from __future__ import annotations

import threading

from server.ingest.bounded import BoundedQueue, BoundedRoom


def test_items_leave_in_the_order_in_which_they_came() -> None:
    queue: BoundedQueue[int] = BoundedQueue(10, 100)
    for item in range(5):
        assert queue.put(item, 1, 0)
    assert [queue.take(wait=False) for _ in range(6)] == [0, 1, 2, 3, 4, None]


def test_neither_number_nor_bytes_go_beyond_their_bounds() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3, 100)
    assert [queue.put(item, 10, 0) for item in range(4)] == [True, True, True, False]
    by_bytes: BoundedQueue[int] = BoundedQueue(100, 100)
    assert [by_bytes.put(item, 40, 0) for item in range(3)] == [True, True, False]


def test_an_item_above_the_bound_waits_alone() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3, 100)
    assert queue.put(1, 1000, 0)
    assert not queue.put(2, 1, 0)
    assert queue.take(wait=False) == 1
    assert queue.put(2, 1, 0)


def test_who_waits_for_room_gets_it_when_something_is_taken() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, 100)
    queue.put(1, 1, 0)
    outcome: list[bool] = []
    waiting = threading.Thread(target=lambda: outcome.append(queue.put(2, 1, 10)))
    waiting.start()
    assert queue.take(wait=True) == 1
    waiting.join(10)
    assert outcome == [True]
    assert queue.take(wait=True) == 2


def test_who_waits_for_an_item_gets_it() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, 100)
    taken: list[int | None] = []
    waiting = threading.Thread(target=lambda: taken.append(queue.take(wait=True)))
    waiting.start()
    queue.put(7, 1, 0)
    waiting.join(10)
    assert taken == [7]


def test_a_room_lets_in_by_number_and_bytes_and_what_is_larger_than_it_alone() -> None:
    room = BoundedRoom(2, 10)
    room.enter(100)
    entered = threading.Event()
    waiting = threading.Thread(target=lambda: (room.enter(6), entered.set()))
    waiting.start()
    assert not entered.wait(0.05)
    room.leave(100)
    assert entered.wait(5)
    waiting.join()
    crowd = [threading.Thread(target=room.enter, args=(5,)) for _ in range(2)]
    for each in crowd:
        each.start()
    assert [each.join(0.05) or each.is_alive() for each in crowd] == [True, True]
    room.open()
    for each in crowd:
        each.join(5)
        assert not each.is_alive()
