"""Decodes the telegrams of the Vaisala CT25K: 256 gates of 30 m in 16 numbered lines, without a checksum."""

from __future__ import annotations

import binascii
import re

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams.lines import (
    cloud_bases_m,
    expect_length,
    gate_heights_m,
    is_sky_hidden,
    number,
    split_lines,
)
from fieldpost.telegrams.profiles import Profiles

HEADER = re.compile(rb"CT.\d{2}[27]\d\x02?\r?\n")
HEADER_WITHIN_BYTES = 64
RAW_UNIT = 1e-7
"""One step of the profile, m-1 sr-1, at a scale of 100 %."""
METRES_BIT = 0x100
LINE_COUNT, GATES_A_LINE, GATE_M = 16, 16, 30.0


def decode_ct25k(payload: bytes, unix_nanos: int, calibration: float | None = None) -> Profiles:
    """Decodes one telegram, data message 2 or 7.

    Args:
        payload: The telegram, from its header line on; a data logger's time line may stand before it.
        unix_nanos: When it was measured: telegrams carry no time of their own.
        calibration: Factor on the backscatter that the instrument gives; None for 1.

    Raises:
        InvalidObservationError: It is cut, damaged or of another kind.
    """
    header = HEADER.search(payload, 0, HEADER_WITHIN_BYTES)
    if header is None:
        raise InvalidObservationError(
            f"expected a header CTnnnms, m = 2 or 7, but got {payload[:16]!r} (line 1 of the CT25K telegram)"
        )
    lines = split_lines(payload[header.start() :], 3 + LINE_COUNT, "CT25K telegram")
    status, scale = lines[1], lines[2]
    expect_length(status, 29, "status, line 2 of the telegram")
    expect_length(scale, 42, "scale, line 3 of the telegram")
    factor = RAW_UNIT * number(scale, 0, 3, "scale") / 100
    factor *= 1.0 if calibration is None else calibration
    tilt_deg = number(scale, 23, 26, "tilt")
    raw = _read_profile(lines[3:])
    return Profiles(
        unix_nanos=np.array([unix_nanos], np.int64),
        height_m=gate_heights_m(len(raw), GATE_M, tilt_deg),
        beta=np.multiply(raw, factor, dtype=np.float64).astype(np.float32)[None, :],
        cloud_base_m=cloud_bases_m(status, _is_metres(status), "status, line 2 of the telegram"),
        is_obscured=np.array([is_sky_hidden(status)]),
    )


def _read_profile(lines: list[bytes]) -> NDArray[np.int16]:
    """The samples: in each line the number of its first gate, then 16 times 4 hexadecimal digits, two's complement."""
    for index, line in enumerate(lines):
        place = f"line {index + 4} of the CT25K telegram"
        expect_length(line, 3 + 4 * GATES_A_LINE, place)
        if number(line, 0, 3, place) != GATES_A_LINE * index:
            raise InvalidObservationError(
                f"expected a line that starts at gate {GATES_A_LINE * index}, but got {line[:3]!r} ({place})",
                hint="a line was lost between instrument and station",
            )
    try:
        packed = binascii.unhexlify(b"".join(line[3:] for line in lines))
    except binascii.Error as error:
        raise InvalidObservationError(f"expected hexadecimal digits, but {error} (profile of the telegram)") from error
    return np.frombuffer(packed, ">i2").astype(np.int16)


def _is_metres(status: bytes) -> bool:
    """Whether heights are metres; they are feet otherwise."""
    try:
        return bool(int(status[21:29], 16) & METRES_BIT)
    except ValueError as error:
        raise InvalidObservationError(
            f"expected 8 hexadecimal digits of status, but got {status[21:29]!r} (line 2 of the telegram)"
        ) from error
