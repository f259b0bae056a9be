"""Looks at bags on both shelves, mends what is damaged on one of them, and records what it found.

Ordinary functions; time is an argument; knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import date

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.scrubbing.look import Look, OnBytes, look
from flows.scrubbing.mending import MendStep, OnStep, ignore_step, mend
from flows.scrubbing.order import Plan, make_plan
from flows.scrubbing.parameters import ScrubParams
from flows.scrubbing.records import RecordedBag, count_held, list_recorded, write_look
from flows.site import Site
from server.archive.shelf import Shelf

LOCK_WAIT_S = 600.0
RECORD_WAIT_S = 120.0
REFUSALS_MAX = 3
"""After so many in a row the second place is away."""
GIB = 1024**3


def ignore_bytes(byte_count: int) -> None:
    """Does nothing."""


@dataclass(frozen=True, slots=True)
class ScrubbedBag:
    """What became of a bag.

    Attributes:
        bag: Which.
        byte_count: Bytes read, on both shelves together.
        hash_count: SHA-256 that were computed and found equal.
        problems: What was found wrong, on which shelf; repaired or not.
        damage: What of that could not be repaired; empty where the bag, and its copy if it has one, are whole now.
        set_aside: The names that damaged bags were given.
        advice: What a person can do about the damage.
        has_copy: Whether a whole copy lies in the second place now.
        copy_error: Why the second place could not be read; None where it could, or there is none.
    """

    bag: RecordedBag
    byte_count: int
    hash_count: int
    problems: tuple[str, ...] = ()
    damage: str = ""
    set_aside: tuple[str, ...] = ()
    advice: str = ""
    has_copy: bool = False
    copy_error: TryAgainError | None = None

    @property
    def word(self) -> str:
        """What became of it, in one word or two."""
        if self.is_superseded:
            return "damaged, superseded"
        return "DAMAGED" if self.damage else "repaired" if self.problems else "whole"

    @property
    def is_superseded(self) -> bool:
        """Whether it is damaged, and a later version of its day holds all that it did."""
        return bool(self.damage) and self.bag.has_later

    @property
    def is_repaired(self) -> bool:
        """Whether something was wrong, and nothing is any more."""
        return bool(self.problems) and not self.damage


@dataclass(frozen=True, slots=True)
class UnreadBag:
    """A bag of which nothing can be said.

    Attributes:
        bag: Which.
        error: Why not.
    """

    bag: RecordedBag
    error: TryAgainError


Outcome = ScrubbedBag | UnreadBag


@dataclass(slots=True)
class _Sides:
    """What was found on each shelf; the copy is None where none is expected, or where its place does not answer."""

    main: Look
    copy: Look | None
    copy_error: TryAgainError | None = None
    set_aside: list[str] = field(default_factory=list)


class Scrubber:
    """Reads the archive of a site.

    Args:
        site: Where bags lie, and where they are recorded.
        is_repairing: Whether a damaged side is replaced by the whole one.
        on_step: Told of each step of a repair.
        lock_wait_s: How long a repair waits for another run that works on the same instrument.
        writing: Makes a context in which a repair may write to the storage array.
    """

    def __init__(
        self,
        site: Site,
        *,
        is_repairing: bool = True,
        on_step: OnStep = ignore_step,
        lock_wait_s: float = LOCK_WAIT_S,
        writing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.site = site
        self._is_repairing = is_repairing
        self._on_step = on_step
        self._lock_wait_s = lock_wait_s
        self._writing = writing
        self._copy_refusals = 0

    def plan(self, params: ScrubParams, now_unix_nanos: int) -> Plan:
        """Which bags to read, in which order."""
        max_bytes = None if params.max_gib is None else params.max_gib * GIB
        return make_plan(
            self._list_recorded(params),
            now_unix_nanos,
            skip_days=params.skip_days,
            max_bytes=max_bytes,
            has_copy=self.site.copy is not None,
        )

    def find_unrecorded(self, params: ScrubParams) -> list[str]:
        """Bags that lie on a shelf and are not recorded, each with its place."""
        shelves = [shelf for shelf in (self.site.shelf, self.site.copy) if shelf is not None]
        # Listed before the records are read: a bag that is archived meanwhile is then known.
        found = [(shelf, path) for shelf in shelves for path in shelf.list_paths() if _is_wanted(path, params)]
        with self.site.store.read() as connection:
            known = {bag.path for bag in list_recorded(connection, None, None, params.station, params.instrument)}
        return [f"{path} in {shelf.url}" for shelf, path in found if path not in known]

    def _list_recorded(self, params: ScrubParams) -> list[RecordedBag]:
        with self.site.store.read() as connection:
            return list_recorded(connection, params.first_day, params.last_day, params.station, params.instrument)

    def scrub(self, bag: RecordedBag, now_unix_nanos: int, on_bytes: OnBytes = ignore_bytes) -> Outcome:
        """Reads a bag on both shelves, mends it where one side is whole, and records what it found.

        Args:
            bag: Which.
            now_unix_nanos: The time.
            on_bytes: Told how many more bytes were read.
        """
        try:
            sides = self._look(bag, on_bytes)
            found = tuple(self._describe(sides))
            byte_count, hash_count = _count(sides)
            if self._is_repairing and _is_mendable(sides):
                self._mend(bag, sides)
            return self._record(bag, sides, found, byte_count, hash_count, now_unix_nanos)
        except TryAgainError as error:
            return UnreadBag(bag, error)

    def _look(self, bag: RecordedBag, on_bytes: OnBytes) -> _Sides:
        main = look(self.site.shelf, bag.path, bag.manifest_sha256, on_bytes)
        if self.site.copy is None:
            return _Sides(main, None)
        try:
            copy = self._look_at_copy(self.site.copy, bag, on_bytes)
        except TryAgainError as error:  # a second place that is away for weeks must not keep the first from being read
            self._copy_refusals += 1
            return _Sides(main, None, error)
        self._copy_refusals = 0
        return _Sides(main, copy)

    def _look_at_copy(self, shelf: Shelf, bag: RecordedBag, on_bytes: OnBytes) -> Look | None:
        if self._copy_refusals >= REFUSALS_MAX:
            raise TryAgainError(
                f"{shelf.url} did not answer {REFUSALS_MAX} times in a row, and was not asked any more",
                hint="look what is wrong with the second place; then run again",
            )
        if bag.copy_unix_nanos is None and not shelf.list_files(bag.path):
            return None  # the archive flow brings it
        return look(shelf, bag.path, bag.manifest_sha256, on_bytes)

    def _describe(self, sides: _Sides) -> list[str]:
        """What is wrong, and where."""
        each = [(self.site.shelf, sides.main), (self.site.copy, sides.copy)]
        return [f"in {shelf.url}: {found}" for shelf, found in each if shelf and found and not found.is_whole]

    def _mend(self, bag: RecordedBag, sides: _Sides) -> None:
        """Mends the one side that is damaged, unless another run has done so meanwhile."""
        shelves = [shelf for shelf in (self.site.shelf, self.site.copy) if shelf is not None]
        try:
            with self._writing(), ExitStack() as locks:
                for shelf in shelves:
                    locks.enter_context(shelf.lock(bag.home, self._lock_wait_s))
                self._on_step(MendStep.LOCKED)
                again = self._look(bag, ignore_bytes)
                sides.main, sides.copy, sides.copy_error = again.main, again.copy, again.copy_error
                if _is_mendable(sides):
                    self._mend_locked(bag, sides)
        except (TryAgainError, BrokenStateError) as error:  # what was found stays true, and is told and recorded
            damaged = sides.copy if sides.copy is not None and sides.main.is_whole else sides.main
            damaged.problems.append(f"it could not be repaired: {error}")

    def _mend_locked(self, bag: RecordedBag, sides: _Sides) -> None:
        main, copy = self.site.shelf, self.site.copy
        assert copy is not None and sides.copy is not None
        if sides.main.is_whole:
            source, target, whole, damaged = main, copy, sides.main, sides.copy
        else:
            source, target, whole, damaged = copy, main, sides.copy, sides.main
        aside = mend(source, target, bag.path, whole.promised, self._on_step)
        sides.set_aside += [f"{aside} in {target.url}"] if aside else []
        damaged.problems.clear()

    def _record(
        self,
        bag: RecordedBag,
        sides: _Sides,
        problems: tuple[str, ...],
        byte_count: int,
        hash_count: int,
        now_unix_nanos: int,
    ) -> ScrubbedBag:
        damage = "; ".join(self._describe(sides))
        is_copied = sides.copy is not None and sides.copy.is_whole
        bag_bytes = _size(self.site.shelf, bag.path) if sides.main.is_whole else None
        written = self.site.store.write(
            lambda connection: write_look(
                connection,
                bag,
                check_unix_nanos=now_unix_nanos if sides.main.is_whole else None,
                copy_unix_nanos=now_unix_nanos if is_copied else None,
                bag_bytes=bag_bytes,
                damage=damage,
            )
        )
        try:
            written.result(RECORD_WAIT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not record the look at {bag.path} within {RECORD_WAIT_S:g} s",
                hint="the next run reads the bag again",
            ) from error
        if problems:
            self._on_step(MendStep.RECORDED)
        advice = self._advise(bag, sides) if damage else ""
        return ScrubbedBag(
            bag,
            byte_count,
            hash_count,
            problems,
            damage,
            tuple(sides.set_aside),
            advice,
            has_copy=is_copied,
            copy_error=sides.copy_error,
        )

    def _advise(self, bag: RecordedBag, sides: _Sides) -> str:
        """What a person can do about a damage."""
        if sides.copy_error is not None:
            return f"its copy could not be read now ({sides.copy_error}): run scrub again once the second place answers"
        if sides.main.is_whole or (sides.copy is not None and sides.copy.is_whole):
            return "one side is whole: run scrub with Repair on, once what kept it from repairing is mended"
        if bag.has_later:
            return "nothing is lost: a later version of the day holds all that this one did"
        with self.site.store.read() as connection:
            held = count_held(connection, bag)
        if held >= bag.observation_count:
            return f"the store still holds the day: run archive for {bag.home} of {bag.day}, it makes a new version"
        if held:
            return (
                f"the store holds only {held} of its {bag.observation_count} observations: put a whole bag back from a "
                "backup and run scrub again; archive would make a new version of these alone"
            )
        return "the store holds nothing of the day: put a whole bag back from a backup, then run scrub again"


def _is_wanted(path: str, params: ScrubParams) -> bool:
    station, instrument, _, name = path.split("/")
    day = date.fromisoformat(name.partition(".")[0])
    return (
        params.station in (None, station)
        and params.instrument in (None, instrument)
        and not (params.first_day is not None and day < params.first_day)
        and not (params.last_day is not None and day > params.last_day)
    )


def _is_mendable(sides: _Sides) -> bool:
    """Whether one side is whole and the other is not."""
    return sides.copy is not None and sides.main.is_whole != sides.copy.is_whole


def _count(sides: _Sides) -> tuple[int, int]:
    looks = [each for each in (sides.main, sides.copy) if each is not None]
    return sum(each.byte_count for each in looks), sum(each.hash_count for each in looks)


def _size(shelf: Shelf, path: str) -> int:
    return sum(byte_count for _, byte_count in shelf.list_files(path))
