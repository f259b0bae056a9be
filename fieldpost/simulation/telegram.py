"""Writes the telegrams of a Vaisala CL51: message 2, subclass 6, 1540 gates of 10 m, checksum and framing.

Knows no atmosphere: it encodes the numbers that it is given. The layout follows telegrams that real CL51 wrote and
the User's Guide (Vaisala M210801EN); that it is right is shown by two parsers of other hands.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fieldpost.checksum import crc16_vaisala

GATE_COUNT = 1540
GATE_M = 10
RAW_UNIT = 1e-8
"""One step of the profile, m-1 sr-1, at a scale of 100 %."""
RAW_LIMIT = 0x7FFFF
SOFTWARE_LEVEL = b"101"
STATUS_METRES, STATUS_BLOWER_ON, STATUS_HEATER_ON = 0x0080, 0x8000, 0x4000


def quantise(backscatter: NDArray[np.floating]) -> NDArray[np.int32]:
    """Backscatter, m-1 sr-1, in steps of the telegram; clipped to what 20 bits can hold."""
    raw: NDArray[np.int32] = np.clip(np.rint(backscatter / RAW_UNIT), -RAW_LIMIT - 1, RAW_LIMIT).astype(np.int32)
    return raw


def write_telegram(
    raw: NDArray[np.int32],
    *,
    unit: str,
    cloud_base_m: float = math.nan,
    cover_octas: int = 0,
    background_mv: int = 0,
    laser_celsius: int = 25,
    tilt_deg: int = 1,
) -> bytes:
    """One telegram, from SOH to EOT CR LF.

    Args:
        raw: (1540,): the profile in steps of 1e-8 m-1 sr-1, within 20 bits.
        unit: The instrument's id character, 0-9 or A-Z.
        cloud_base_m: The lowest cloud base, m; NaN where there is none.
        cover_octas: Cloud cover of the last half hour, 0 to 8.
        background_mv: Background light, mV, 0 to 9999.
        laser_celsius: Laser temperature, -99 to 99 degrees Celsius.
        tilt_deg: Tilt of the beam from the vertical, 0 to 99 degrees.
    """
    has_cloud = not math.isnan(cloud_base_m)
    status = STATUS_METRES | STATUS_BLOWER_ON | STATUS_HEATER_ON
    base = b"10 %05d" % round(cloud_base_m) if has_cloud else b"00 /////"
    sky_height = b"%04d" % round(cloud_base_m / 10) if has_cloud and cover_octas else b"////"
    octas = cover_octas if sky_height != b"////" else 0
    # the integral over the profile in units of 1e-4 sr-1, three digits
    integral = min(max(int(raw.sum() * (RAW_UNIT * GATE_M * 1e4)), 0), 999)
    lines = (
        b"CL" + unit.encode("ascii") + SOFTWARE_LEVEL + b"26\x02",
        base + b" ///// ///// %012X" % status,
        b"%3d %s" % (octas, sky_height) + b"  0 ////" * 4,
        b"00100 %02d %04d 100 %+03d 099 %02d %04d L0032HN15 %03d"
        % (GATE_M, GATE_COUNT, laser_celsius, tilt_deg, background_mv, integral),
        write_profile(raw),
        b"\x03",
    )
    checked = b"\r\n".join(lines)
    return b"\x01%b%04x\x04\r\n" % (checked, crc16_vaisala(checked))


def write_profile(raw: NDArray[np.int32]) -> bytes:
    """An even number of samples as 5 hexadecimal digits each, two's complement.

    Two samples of 20 bits are five whole bytes, so that the bytes can be written as hexadecimal digits at once.
    """
    bits = (raw & 0xFFFFF).astype(np.uint64)
    pairs = (bits[0::2] << np.uint64(20)) | bits[1::2]
    return pairs.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 3:].tobytes().hex().encode("ascii")
