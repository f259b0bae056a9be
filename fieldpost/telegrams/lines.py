"""What the telegrams of all Vaisala ceilometers share: lines, numbers, cloud bases. Knows no profile."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError

FOOT_M = 0.3048
LAYER_COUNT = 3


@lru_cache(maxsize=64)
def gate_heights_m(gate_count: int, gate_m: float, tilt_deg: int) -> NDArray[np.float64]:
    """Centres of the gates above the instrument: (gates,), m; the same read-only array whenever it is asked for."""
    heights: NDArray[np.float64] = (np.arange(gate_count) + 0.5) * (gate_m * np.cos(np.deg2rad(tilt_deg)))
    heights.flags.writeable = False
    return heights


def split_lines(telegram: bytes, line_count: int, name: str) -> list[bytes]:
    """The first line_count lines, without line ends; CR LF or LF.

    Raises:
        InvalidObservationError: There are fewer.
    """
    lines = telegram.split(b"\n", line_count)
    if len(lines) < line_count:
        raise InvalidObservationError(f"expected {line_count} lines or more, but got {len(lines)} (in the {name})")
    return [line.removesuffix(b"\r") for line in lines[:line_count]]


def expect_length(line: bytes, length: int, place: str) -> None:
    """Raises InvalidObservationError where the line has another length."""
    if len(line) != length:
        raise InvalidObservationError(f"expected {length} characters, but got {len(line)} ({place})")


def number(line: bytes, first: int, end: int, place: str) -> int:
    """The decimal number in line[first:end].

    Raises:
        InvalidObservationError: There is none.
    """
    try:
        return int(line[first:end])
    except ValueError as error:
        raise InvalidObservationError(
            f"expected a number in columns {first + 1} to {end}, but got {line[first:end]!r} ({place})"
        ) from error


def cloud_bases_m(line: bytes, is_metres: bool, place: str) -> NDArray[np.float32]:
    """The cloud bases of the line that begins with the detection status: (1, 3), m; NaN where there is none.

    The first character says how many of the three fields are cloud bases: 1 to 3. With 4 (the sky is hidden) the
    fields mean vertical visibility and highest signal; with 0, 5 and / they mean nothing.
    """
    bases = np.full((1, LAYER_COUNT), np.nan, np.float32)
    count = line[0] - ord("0")
    for layer in range(count if 1 <= count <= LAYER_COUNT else 0):
        first = 3 + 6 * layer
        if line[first : first + 5] != b"/////":
            height = number(line, first, first + 5, place)
            bases[0, layer] = height if is_metres else height * FOOT_M
    return bases


def is_sky_hidden(line: bytes) -> bool:
    """Whether the detection status says that fog or precipitation hides the sky."""
    return line[:1] == b"4"
