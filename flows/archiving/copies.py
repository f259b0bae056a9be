"""Which bags a run brings to the second place, and when it stops trying.

The bags that it made come first, then those that earlier runs owe, the oldest first and not too many at once. A second
place that refuses ends it: the next bag would only wait for the same. Knows no shelf and no Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fieldpost.errors import FieldpostError, TryAgainError
from flows.archiving.archivist import ArchivedDay, Outcome
from flows.archiving.second_copy import CopiedBag, Copyist, CopyOutcome, FailedCopy
from flows.site import Site
from server.archive.bag_copies import UncopiedBag

OWED_BAGS_MAX = 500
"""Of earlier runs, in one run: an hour or two of a busy array; a year of 300 stations is caught up in 7 months of
nights, or at once by runs that are started by hand."""


@dataclass(frozen=True, slots=True)
class Copies:
    """What became of the second place in a run.

    Attributes:
        outcomes: Of each bag that was tried.
        missing_count: Bags that have no copy now.
        error: Why none could be tried; None where they could.
    """

    outcomes: tuple[CopyOutcome, ...] = ()
    missing_count: int = 0
    error: FieldpostError | None = None


def copy_bags(
    site: Site,
    outcomes: Sequence[Outcome],
    copy_one: Callable[[Copyist, UncopiedBag], CopyOutcome],
    *,
    is_new_place: bool = False,
) -> Copies:
    """Copies what the run made and what earlier runs owe; never raises what the second place is to blame for.

    Args:
        site: Where.
        outcomes: What the run did with the days.
        copy_one: Copies one bag.
        is_new_place: Nothing counts as copied any more.
    """
    if site.copy is None:
        return Copies()
    copyist = Copyist(site)
    try:
        if is_new_place:
            copyist.forget_all()
        copyist.check()
    except TryAgainError as error:
        return Copies((), copyist.count_missing(), error)
    tried = []
    for bag in choose_bags(outcomes, copyist.find_missing(OWED_BAGS_MAX)):
        tried.append(copy_one(copyist, bag))
        if isinstance(tried[-1], FailedCopy) and isinstance(tried[-1].error, TryAgainError):
            break
    return Copies(tuple(tried), copyist.count_missing())


def choose_bags(outcomes: Sequence[Outcome], owed: Sequence[UncopiedBag]) -> list[UncopiedBag]:
    """The bags that the run made, and those that are owed. Pure."""
    made = [
        UncopiedBag(each.day.station, each.day.instrument, each.day.day, each.record)
        for each in outcomes
        if isinstance(each, ArchivedDay) and each.status != "present"
    ]
    paths = {each.record.path for each in made}
    return [*made, *(each for each in owed if each.record.path not in paths)]


def copy_now(clock: Callable[[], int]) -> Callable[[Copyist, UncopiedBag], CopyOutcome]:
    """Copies one bag and says what became of it.

    Args:
        clock: Nanoseconds since 1970-01-01T00:00Z.
    """

    def copy_one(copyist: Copyist, bag: UncopiedBag) -> CopyOutcome:
        try:
            return copyist.copy(bag, clock())
        except FieldpostError as error:
            return FailedCopy(bag, error)

    return copy_one


def copied_paths(copies: Copies) -> set[str]:
    """The bags that have a copy since this run."""
    return {each.bag.record.path for each in copies.outcomes if isinstance(each, CopiedBag)}
