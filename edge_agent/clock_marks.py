"""Corrects times that a station wrote down before it knew the time: wall time against monotonic time, boot by boot.

A Raspberry Pi has no clock battery. It starts in 1970, or where it was switched off, and jumps once a time server
answers. Monotonic time does not jump, so the one moment at which wall time was right corrects all others of that boot.
Plain values; reads no clock and no file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb

MAX_BOOTS = 200
SELF_TIMED_FORMATS = frozenset({"netcdf"})
"""Formats whose bytes tell the time of every measurement."""


@dataclass(slots=True)
class ClockMarks:
    """Synchronised moments: (monotonic, wall) in nanoseconds, the first and the latest of each boot.

    Attributes:
        boots: By boot id, the most recent boot last.
        is_saved: Whether what it holds has been written down since it changed in a way that matters.
    """

    boots: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    is_saved: bool = True

    def note(self, clock: pb.CaptureClock) -> None:
        """Takes a synchronised moment; others tell nothing."""
        if clock.clock_sync != pb.CLOCK_SYNC_SYNCHRONISED or not clock.boot_id:
            return
        mark = (clock.monotonic_nanos, clock.wall_time.ToNanoseconds())
        marks = self.boots.get(clock.boot_id)
        if marks is None:
            self.boots[clock.boot_id] = [mark]
            self.is_saved = False
            while len(self.boots) > MAX_BOOTS:
                del self.boots[next(iter(self.boots))]
        else:
            marks[1:] = [mark]

    def corrected_unix_nanos(self, clock: pb.CaptureClock) -> int | None:
        """What wall time was at a moment whose clock was not synchronised.

        Returns:
            Nanoseconds since 1970; None where the clock was right, or nothing better is known.
        """
        if clock.clock_sync != pb.CLOCK_SYNC_UNSYNCHRONISED:
            return None
        marks = self.boots.get(clock.boot_id)
        if not marks:
            return None
        monotonic, wall = min(marks, key=lambda mark: abs(mark[0] - clock.monotonic_nanos))
        return wall + clock.monotonic_nanos - monotonic

    def correct(self, header: pb.ObservationHeader) -> bool:
        """Writes the corrected time into a header that is about to be sent.

        Returns:
            Whether there was anything to correct.
        """
        corrected = self.corrected_unix_nanos(header.capture_clock)
        if corrected is None:
            return False
        header.corrected_wall_time.FromNanoseconds(corrected)
        return True

    def captured_unix_nanos(self, header: pb.ObservationHeader) -> int:
        """The best that is known of when an observation was captured."""
        corrected = self.corrected_unix_nanos(header.capture_clock)
        return header.capture_clock.wall_time.ToNanoseconds() if corrected is None else corrected

    def to_json(self) -> bytes:
        """The text of clock.json."""
        return json.dumps(self.boots).encode()


def clock_marks_from_json(content: bytes) -> ClockMarks:
    """Reads clock.json.

    Raises:
        BrokenStateError: It is not what to_json writes.
    """
    try:
        boots = {
            str(boot_id): [(int(monotonic), int(wall)) for monotonic, wall in marks][:2]
            for boot_id, marks in json.loads(content).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenStateError(f"expected the marks of the clock, but got {content[:60]!r}: {error}") from error
    return ClockMarks(boots)


def needs_time(header: pb.ObservationHeader) -> bool:
    """Whether the time of an observation rests on the station's clock, and that clock was not synchronised."""
    if header.HasField("measure_time") or header.payload_format in SELF_TIMED_FORMATS:
        return False
    return header.capture_clock.clock_sync == pb.CLOCK_SYNC_UNSYNCHRONISED


@dataclass(slots=True)
class ClockWait:
    """How long observations whose times may still be corrected are kept back.

    Attributes:
        wait_s: Seconds after the first connection; 0 to keep nothing back.
        from_sequence: The first observation that is kept back; None where none is.
        release_at_s: When it is released at the latest, on the monotonic clock; None before the first connection.
    """

    wait_s: float
    from_sequence: int | None = None
    release_at_s: float | None = None
    is_over: bool = False

    def note_captured(self, header: pb.ObservationHeader) -> bool:
        """Takes a captured observation, in the order of sequences.

        Returns:
            Whether from_sequence changed.
        """
        if self.is_over or self.wait_s <= 0 or self.from_sequence is not None or not needs_time(header):
            return False
        self.from_sequence = header.sequence
        return True

    def note_connected(self, now_s: float) -> None:
        """The time server answers about when the broker does: from here on the wait is bounded."""
        if self.release_at_s is None:
            self.release_at_s = now_s + self.wait_s

    def pass_time(self, now_s: float, *, is_synchronised: bool) -> bool:
        """Ends the wait where the clock has become right, or it took too long.

        Returns:
            Whether from_sequence changed.
        """
        is_late = self.release_at_s is not None and now_s >= self.release_at_s
        if self.is_over or not (is_synchronised or is_late):
            return False
        self.is_over = True
        had = self.from_sequence is not None
        self.from_sequence = None
        return had
