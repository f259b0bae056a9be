"""What a run of the scrub flow found, in words and tables for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from fieldpost.words import count, size, span
from flows.scrubbing.order import NEVER, Plan, last_read
from flows.scrubbing.scrubber import Outcome, ScrubbedBag, UnreadBag

LINES_MAX = 50
"""Of a list in the summary; the table has more."""
ROWS_MAX = 1000
"""Of the table, which lies in Prefect's database."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    Attributes:
        plan: What it set out to do.
        outcomes: What became of the bags that it came to.
        unrecorded: Bags that lie on a shelf and are not recorded.
        elapsed_s: How long reading and mending took.
        now_unix_nanos: When it ended.
    """

    plan: Plan
    outcomes: Sequence[Outcome]
    unrecorded: Sequence[str]
    elapsed_s: float
    now_unix_nanos: int

    @property
    def scrubbed(self) -> list[ScrubbedBag]:
        """Those that were read."""
        return [each for each in self.outcomes if isinstance(each, ScrubbedBag)]

    @property
    def damaged(self) -> list[ScrubbedBag]:
        """Those that are damaged still, and whose day no later version holds."""
        return [each for each in self.scrubbed if each.damage and not each.is_superseded]

    @property
    def superseded(self) -> list[ScrubbedBag]:
        """Those that are damaged still, and do not matter any more."""
        return [each for each in self.scrubbed if each.is_superseded]

    @property
    def repaired(self) -> list[ScrubbedBag]:
        """Those that were, and are whole now."""
        return [each for each in self.scrubbed if each.is_repaired]

    @property
    def uncompared(self) -> list[tuple[ScrubbedBag, TryAgainError]]:
        """Those whose copy could not be read, and why."""
        return [(each, each.copy_error) for each in self.scrubbed if each.copy_error is not None]

    @property
    def unread(self) -> list[UnreadBag]:
        """Those that the storage did not let be read."""
        return [each for each in self.outcomes if isinstance(each, UnreadBag)]


def to_rows(report: Report) -> list[dict[str, str]]:
    """One row for each bag that is not as it should be, the worst first; none where all is well."""
    found = sorted((each for each in report.scrubbed if each.problems), key=lambda each: not each.damage)
    rows = [_scrubbed_row(each) for each in found]
    rows += [_row(each.bag.path, "not read", str(each.error), each.error.hint) for each in report.unread]
    unknown = "it lies there, and the database does not know it"
    rows += [_row(path, "not recorded", unknown, _UNRECORDED) for path in report.unrecorded]
    rows += [_row(each.bag.path, "copy not read", str(error), error.hint) for each, error in report.uncompared]
    left = len(rows) - ROWS_MAX
    return rows[:ROWS_MAX] + ([_row(f"and {left:,} more", "", "", "")] if left > 0 else [])


_UNRECORDED = "run archive for the day: it records a bag that holds the day; another database's bags belong elsewhere"


def _scrubbed_row(scrubbed: ScrubbedBag) -> dict[str, str]:
    said = scrubbed.advice
    if scrubbed.is_repaired:
        said = f"the damaged one is {', '.join(scrubbed.set_aside)}" if scrubbed.set_aside else "it was missing"
    return _row(scrubbed.bag.path, scrubbed.word, "; ".join(scrubbed.problems), said)


def _row(path: str, outcome: str, found: str, said: str) -> dict[str, str]:
    return {"bag": path, "outcome": outcome, "what was found": found, "what to do, what was done": said}


def to_markdown(report: Report) -> str:
    """The summary of a run."""
    byte_count = sum(each.byte_count for each in report.scrubbed)
    rate = f"{byte_count / 1e6 / report.elapsed_s:,.0f} MB/s" if report.elapsed_s > 0 else "-"
    facts = {
        "bags read": f"{len(report.scrubbed):,}" + (" on both shelves" if report.plan.sides == 2 else ""),
        "bytes read": f"{size(byte_count)} in {span(report.elapsed_s)}, {rate}",
        "hashes compared and equal": f"{sum(each.hash_count for each in report.scrubbed):,}",
        "damaged still": f"{len(report.damaged):,}",
        "damaged, but a later version holds the day": f"{len(report.superseded):,}",
        "repaired": f"{len(report.repaired):,}",
        "not readable now": f"{len(report.unread):,}",
        "whose copy was not readable now": f"{len(report.uncompared):,}",
        "on a shelf and not recorded": f"{len(report.unrecorded):,}",
        "read lately, left out": f"{len(report.plan.recent):,}",
        "left to later runs": f"{_left(report):,}",
        "without a copy yet": f"{_uncopied(report):,}" if report.plan.sides == 2 else "no second place is configured",
        "oldest check now": _oldest(report),
    }
    lines = ["# Scrub", "", _verdict(report), "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    for title, items in (
        ("Damaged", [f"**{each.bag.path}**: {each.damage}. *{each.advice}.*" for each in report.damaged]),
        ("Repaired", [f"{each.bag.path}: {'; '.join(each.problems)}" for each in report.repaired]),
        ("Not readable now", [f"{each.bag.path}: {each.error}" for each in report.unread]),
        ("Not recorded", list(report.unrecorded)),
    ):
        if items:
            more = [f"- and {len(items) - LINES_MAX:,} more, see the table"] if len(items) > LINES_MAX else []
            lines += ["", f"## {title}", "", *(f"- {item}" for item in items[:LINES_MAX]), *more]
    return "\n".join(lines) + "\n"


def _verdict(report: Report) -> str:
    if report.damaged:
        return f"**{count(len(report.damaged), 'bag')} of the archive cannot be trusted.** What to do stands below."
    if report.unread:
        return f"{count(len(report.unread), 'bag')} could not be read; run again once the storage answers."
    if report.uncompared:
        return f"{count(len(report.uncompared), 'copy', 'copies')} could not be read: {report.uncompared[0][1]}"
    return "Every bag that was read is whole."


def _left(report: Report) -> int:
    """Due bags to which the run did not come, too."""
    return len(report.plan.later) + len(report.plan.due) - len(report.outcomes)


def _uncopied(report: Report) -> int:
    return sum(
        1
        for each in report.scrubbed
        if not each.has_copy and each.bag.copy_unix_nanos is None and each.copy_error is None
    )


def _oldest(report: Report) -> str:
    """Of all bags that the run was about, as they stand after it."""
    whole_now = {each.bag.row_id for each in report.scrubbed if not each.damage and each.copy_error is None}
    has_copy = report.plan.sides == 2
    bags = [*report.plan.due, *report.plan.later, *report.plan.recent]
    times = [report.now_unix_nanos if bag.row_id in whole_now else last_read(bag, has_copy=has_copy) for bag in bags]
    if not times:
        return "there are no bags"
    never = sum(1 for each in times if each == NEVER)
    if never:
        return f"{count(never, 'bag was', 'bags were')} never found whole by a scrub"
    return f"{span((report.now_unix_nanos - min(times)) / 1e9)} ago"


def to_error(report: Report) -> FieldpostError | None:
    """What a run has to raise at its end; None where every bag that it came to is whole."""
    if report.damaged:
        first, others = report.damaged[0], len(report.damaged) - 1
        which = first.bag.path + (f" and {count(others, 'other')}" if others else "")
        return BrokenStateError(
            f"{len(report.damaged)} of {count(len(report.outcomes), 'bag')} cannot be trusted: {which}: "
            f"what was found {first.damage}; what to do: {first.advice}",
            hint=first.advice,
        )
    if report.unread:
        unread = report.unread[0]
        return TryAgainError(
            f"{count(len(report.unread), 'bag')} of {len(report.outcomes)} could not be read; first {unread.bag.path}: "
            f"{unread.error}",
            hint=unread.error.hint or "run again: those that were not read for longest come first",
        )
    if report.uncompared:
        scrubbed, error = report.uncompared[0]
        return TryAgainError(
            f"{count(len(report.uncompared), 'copy', 'copies')} could not be read; first {scrubbed.bag.path}: {error}",
            hint=error.hint,
        )
    return None
