"""Decodes the telegrams of the Vaisala CL31 and CL51: data message 1 and 2 in every resolution.

Written anew although ceilopyter has a good parser: that one leaves out the cloud bases, which the search for the
boundary layer needs, and this one is four times as fast. `python -m benchmarks.decode` compares the two, and the
tests hold this one to every real telegram that ceilopyter reads.
"""

from __future__ import annotations

import binascii
import re

import numpy as np
from numpy.typing import NDArray

from fieldpost.checksum import crc16_vaisala
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

HEADER = re.compile(rb"CL.\d{3}([12])([1-6])\x02?\r?\n")
HEADER_WITHIN_BYTES = 64
"""A data logger may leave its time line before the telegram."""
RAW_UNIT = 1e-8
"""One step of the profile, m-1 sr-1, at a scale of 100 %."""
METRES_BIT = 0x80
SKY_LINE_LENGTH = {b"6": 40}
SKY_LINE_LENGTH_CL31 = 35
DIGITS = 5


def decode_cl(payload: bytes, unix_nanos: int, calibration: float | None = None) -> Profiles:
    """Decodes one telegram.

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
            f"expected a header CLnnnnms, m = 1 or 2, but got {payload[:16]!r} (line 1 of the CL31 or CL51 telegram)"
        )
    has_sky_line = header[1] == b"2"
    lines = split_lines(payload[header.start() :], 6 if has_sky_line else 5, "CL31 or CL51 telegram")
    status, scale, profile, checksum = lines[1], lines[-3], lines[-2], lines[-1]
    expect_length(status, 33, "status, line 2 of the telegram")
    expect_length(scale, 47, f"scale, line {len(lines) - 2} of the telegram")
    gate_m, gate_count = number(scale, 6, 8, "gate width"), number(scale, 9, 13, "number of gates")
    if gate_m < 1 or gate_count < 2:
        raise InvalidObservationError(f"expected two gates or more, but got {gate_count} of {gate_m} m (scale line)")
    expect_length(profile, DIGITS * gate_count, f"profile of {gate_count} gates, line {len(lines) - 1} of the telegram")
    _verify_checksum(payload, header.start(), lines, checksum, header[2])

    factor = RAW_UNIT * number(scale, 0, 5, "scale") / 100
    factor *= 1.0 if calibration is None else calibration
    tilt_deg = number(scale, 26, 28, "tilt")
    raw = read_profile(profile, gate_count)
    return Profiles(
        unix_nanos=np.array([unix_nanos], np.int64),
        height_m=gate_heights_m(gate_count, gate_m, tilt_deg),
        beta=np.multiply(raw, factor, dtype=np.float64).astype(np.float32)[None, :],
        cloud_base_m=cloud_bases_m(status, _is_metres(status), "status, line 2 of the telegram"),
        is_obscured=np.array([is_sky_hidden(status)]),
    )


def read_profile(digits: bytes, gate_count: int) -> NDArray[np.int64]:
    """The samples of a profile: 5 hexadecimal digits each, two's complement.

    Two samples are five bytes. Read as the upper 40 bits of a 64-bit integer, a shift to the right gives the first of
    them and a shift to the left and back the second, with their signs.

    Raises:
        InvalidObservationError: A character is no hexadecimal digit.
    """
    pair_count = (gate_count + 1) // 2
    try:
        packed = binascii.unhexlify(digits.ljust(2 * DIGITS * pair_count, b"0")) + b"\0\0\0"
    except binascii.Error as error:
        raise InvalidObservationError(f"expected hexadecimal digits, but {error} (profile of the telegram)") from error
    bits = np.ndarray((pair_count,), ">i8", packed, strides=(DIGITS,)).astype(np.int64)
    samples = np.empty((pair_count, 2), np.int64)
    np.right_shift(bits, 44, out=samples[:, 0])
    np.right_shift(np.left_shift(bits, 20), 44, out=samples[:, 1])
    return samples.ravel()[:gate_count]


def _is_metres(status: bytes) -> bool:
    """Whether heights are metres; they are feet otherwise."""
    try:
        return bool(int(status[21:33], 16) & METRES_BIT)
    except ValueError as error:
        raise InvalidObservationError(
            f"expected 12 hexadecimal digits of status, but got {status[21:33]!r} (line 2 of the telegram)"
        ) from error


def _verify_checksum(payload: bytes, start: int, lines: list[bytes], checksum: bytes, subclass: bytes) -> None:
    """Raises InvalidObservationError where the checksum is missing or another than that of the bytes.

    It covers the bytes after SOH up to and with ETX, in the form that the instrument wrote. Data loggers change
    line ends, drop control characters and strip blanks; so the form is restored where the bytes as they are do not fit.
    """
    try:
        expected = int(checksum.strip(b"\x03\x04")[:4], 16)
    except ValueError as error:
        raise InvalidObservationError(
            f"expected a checksum of 4 digits, but got {checksum[:8]!r} (last line)"
        ) from error
    end = payload.find(b"\x03", start) + 1
    if end and crc16_vaisala(payload[start:end]) == expected:
        return
    first = lines[0].removesuffix(b"\x02") + b"\x02"
    middle = list(lines[1:-1])
    if len(lines) == 6:
        middle[1] = middle[1].rjust(SKY_LINE_LENGTH.get(subclass, SKY_LINE_LENGTH_CL31))
    actual = crc16_vaisala(b"\r\n".join([first, *middle, b"\x03"]))
    if actual != expected:
        raise InvalidObservationError(
            f"expected the checksum {expected:04x} that the telegram ends with, but its bytes have {actual:04x}",
            hint="the telegram was damaged between instrument and station; look at the serial line",
        )
