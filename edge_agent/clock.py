"""The station's clocks at one moment. Corrects nothing: it writes down what is needed to correct wall time later."""

from __future__ import annotations

import ctypes
import functools
import struct
import time
from pathlib import Path

from fieldpost.v1 import observation_pb2 as pb

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

# adjtimex(2): with modes 0 it only reads; struct timex has 208 bytes on 64-bit Linux; it returns the clock's state.
_TIMEX_BYTES = 256
_TIMEX_MAXERROR_OFFSET = 24  # behind modes and its padding, offset and freq; a long, in microseconds
_TIME_ERROR = 5


def read_capture_clock() -> pb.CaptureClock:
    """Wall time, monotonic time, boot id, and whether the kernel holds its wall clock for synchronised."""
    clock = pb.CaptureClock(monotonic_nanos=time.monotonic_ns(), boot_id=boot_id(), clock_sync=clock_sync())
    clock.wall_time.FromNanoseconds(time.time_ns())
    return clock


@functools.cache
def boot_id() -> str:
    """The kernel's boot id, 32 hexadecimal digits; empty where the system has none."""
    try:
        return BOOT_ID_FILE.read_text().strip().replace("-", "")
    except OSError:
        return ""


def clock_sync() -> pb.ClockSync.ValueType:
    """What the kernel knows of its clock; the flag is set by chrony, ntpd and systemd-timesyncd alike."""
    state, _ = _read_timex()
    if state < 0:
        return pb.CLOCK_SYNC_UNSPECIFIED
    return pb.CLOCK_SYNC_UNSYNCHRONISED if state == _TIME_ERROR else pb.CLOCK_SYNC_SYNCHRONISED


def clock_error_s() -> float | None:
    """How far the kernel thinks its clock may be off; None where it does not know."""
    state, timex = _read_timex()
    if state < 0 or state == _TIME_ERROR:
        return None
    return struct.unpack_from("l", timex, _TIMEX_MAXERROR_OFFSET)[0] / 1e6  # type: ignore[no-any-return]


def _read_timex() -> tuple[int, bytes]:
    """(the clock's state, struct timex); a negative state where the system does not tell."""
    adjtimex = getattr(_libc(), "adjtimex", None)
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    return (-1 if adjtimex is None else adjtimex(buffer)), buffer.raw


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
