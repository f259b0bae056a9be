"""Which bags a scrub reads, and in which order; and what it says about them. Pure."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from flows.scrubbing.order import in_chunks, make_plan
from flows.scrubbing.parameters import ScrubParams
from flows.scrubbing.records import RecordedBag
from flows.scrubbing.report import Report, to_error, to_markdown, to_rows
from flows.scrubbing.scrubber import ScrubbedBag, UnreadBag

DAY_NANOS = 86_400 * 10**9
NOW = 1000 * DAY_NANOS


def bag(row_id: int, *, check: int | None = None, copy: int | None = None, **facts: Any) -> RecordedBag:
    """A bag of 100 bytes; instants in days."""
    nanos = [None if each is None else each * DAY_NANOS for each in (check, copy)]
    values: dict[str, Any] = {"bag_bytes": 100, "damage": "", "has_later": False} | facts
    path = f"lindenberg/cl51/2025/2025-06-{row_id:02d}.v1"
    return RecordedBag(
        row_id,
        1,
        date(2025, 6, row_id),
        1,
        path,
        "ab" * 32,
        5,
        check_unix_nanos=nanos[0],
        copy_unix_nanos=nanos[1],
        **values,
    )


def plan_ids(bags: list[RecordedBag], **options: Any) -> tuple[list[int], list[int], list[int]]:
    chosen = {"skip_days": 0, "max_bytes": None, "has_copy": False} | options
    plan = make_plan(bags, NOW, **chosen)
    due, later, recent = ([each.row_id for each in part] for part in (plan.due, plan.later, plan.recent))
    return due, later, recent


def test_the_bag_that_was_not_read_for_longest_comes_first() -> None:
    bags = [bag(1, check=990), bag(2, check=980), bag(3), bag(4, check=985)]
    assert plan_ids(bags) == ([3, 2, 4, 1], [], [])


def test_a_copy_that_was_not_read_for_long_makes_its_bag_due_only_where_there_is_a_second_place() -> None:
    bags = [bag(1, check=990, copy=970), bag(2, check=980, copy=980)]
    assert plan_ids(bags, has_copy=True)[0] == [1, 2]
    assert plan_ids(bags)[0] == [2, 1]


def test_bags_that_were_read_lately_are_left_out_where_that_is_wanted() -> None:
    bags = [bag(1, check=999), bag(2, check=990), bag(3)]
    assert plan_ids(bags, skip_days=5) == ([3, 2], [], [1])
    assert plan_ids(bags) == ([3, 2, 1], [], [])


def test_a_run_of_bounded_size_reads_the_oldest_and_leaves_the_rest_to_the_next() -> None:
    bags = [bag(number, check=900 + number) for number in range(1, 6)]
    assert plan_ids(bags, max_bytes=250) == ([1, 2], [3, 4, 5], [])
    assert plan_ids(bags, max_bytes=250, has_copy=True) == ([1], [2, 3, 4, 5], [])
    assert plan_ids(bags, max_bytes=1) == ([1], [2, 3, 4, 5], []), "a run always gets on"


def test_a_bag_of_unknown_size_counts_as_much_as_the_others() -> None:
    bags = [bag(1, bag_bytes=None), bag(2, check=1), bag(3, check=2, bag_bytes=300)]
    assert make_plan(bags, NOW, skip_days=0, max_bytes=None, has_copy=False).due_bytes == 200 + 100 + 300


def test_chunks_lose_nothing() -> None:
    bags = [bag(number) for number in range(1, 8)]
    chunks = list(in_chunks(bags, 3))
    assert [len(each) for each in chunks] == [3, 3, 1]
    assert [each for chunk in chunks for each in chunk] == bags


def make_report(bags: list[RecordedBag], *outcomes: Any, unrecorded: tuple[str, ...] = ()) -> Report:
    plan = make_plan(bags, NOW, skip_days=0, max_bytes=None, has_copy=True)
    return Report(plan, outcomes, unrecorded, 2.0, NOW)


def test_a_run_that_found_all_whole_says_so_and_has_no_table() -> None:
    bags = [bag(1, check=990, copy=990), bag(2, check=400)]
    report = make_report(bags, *(ScrubbedBag(each, 10**6, 7, has_copy=each.row_id == 1) for each in bags))
    text = to_markdown(report)
    assert (to_rows(report), to_error(report)) == ([], None)
    for line in ("Every bag that was read is whole.", "| bags read | 2 on both shelves |", "1 MB/s", "| 14 |"):
        assert line in text
    assert "| without a copy yet | 1 |" in text
    assert "| oldest check now | 0 s ago |" in text


def test_what_failed_what_was_repaired_and_what_was_not_read_stand_in_table_and_summary() -> None:
    bags = [bag(number, check=990 - number, copy=999) for number in range(1, 6)]
    outcomes = (
        ScrubbedBag(bags[0], 10, 1),
        ScrubbedBag(bags[1], 10, 1, ("in /a: x",), "in /a: x", (), "put one back from a backup"),
        ScrubbedBag(bags[2], 10, 1, ("in /a: y is not there",), "", ("z/.damaged-1 in /a",)),
        UnreadBag(bags[3], TryAgainError("no answer", hint="mount it")),
    )
    report = make_report(bags, *outcomes, unrecorded=("lindenberg/cl51/2020/2020-01-01.v1 in /a",))
    rows = to_rows(report)
    assert [row["outcome"] for row in rows] == ["DAMAGED", "repaired", "not read", "not recorded"]
    assert rows[1]["what to do, what was done"] == "the damaged one is z/.damaged-1 in /a"
    text = to_markdown(report)
    assert "**1 bag of the archive cannot be trusted.**" in text
    assert "*put one back from a backup.*" in text
    assert "| left to later runs | 1 |" in text
    assert "| oldest check now | 15 days ago |" in text
    error = to_error(report)
    assert isinstance(error, BrokenStateError)
    assert "2025-06-02.v1" in str(error)
    assert "put one back from a backup" in str(error)


def test_a_run_whose_storage_did_not_answer_is_to_be_run_again() -> None:
    error = to_error(make_report([bag(1)], UnreadBag(bag(1), TryAgainError("no answer", hint="mount it"))))
    assert isinstance(error, TryAgainError)
    assert (error.hint, "1 bag of 1 could not be read" in str(error)) == ("mount it", True)


def test_copies_that_could_not_be_read_are_told_and_the_run_is_to_be_run_again() -> None:
    away = TryAgainError("nothing lies there", hint="mount it")
    report = make_report(
        [bag(1, check=999, copy=900)], ScrubbedBag(bag(1, check=999, copy=900), 10, 1, copy_error=away)
    )
    assert [row["outcome"] for row in to_rows(report)] == ["copy not read"]
    assert "1 copy could not be read: nothing lies there" in to_markdown(report)
    assert "| oldest check now | 100 days ago |" in to_markdown(report)
    error = to_error(report)
    assert isinstance(error, TryAgainError)
    assert error.hint == "mount it"


def test_a_table_of_very_many_bags_ends_with_how_many_more_there_are() -> None:
    away = TryAgainError("nothing lies there")
    outcomes = [ScrubbedBag(bag(1), 10, 1, copy_error=away) for _ in range(2500)]
    damaged = ScrubbedBag(bag(2), 10, 1, ("in /a: x",), "in /a: x")
    repaired = ScrubbedBag(bag(3), 10, 1, ("in /a: x",))
    rows = to_rows(make_report([bag(1), bag(2), bag(3)], *outcomes, repaired, damaged))
    assert [row["outcome"] for row in rows[:3]] == ["DAMAGED", "repaired", "copy not read"]
    assert (len(rows), rows[-1]["bag"]) == (1001, "and 1,502 more")


def test_a_first_day_after_the_last_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="expected a last day at or after 2025-06-02"):
        ScrubParams(first_day=date(2025, 6, 2), last_day=date(2025, 6, 1)).check()
