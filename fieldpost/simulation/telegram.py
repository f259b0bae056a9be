"""Writes the telegrams of a Vaisala CL51: message 2, subclass 6, 1540 gates of 10 m, checksum and framing.

Knows no atmosphere: it encodes the numbers that it is given. The layout follows telegrams that real CL51 wrote and
the User's Guide (Vaisala M210801EN); that it is right is shown by two parsers of other hands.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fieldpost.checksum import crc16_vaisala

GATE_COUNT = 1540
GATE_M = 10
RAW_UNIT = 1e-8
"""One step of the profile, m-1 sr-1, at a scale of 100 %."""
RAW_LIMIT = 0x7FFFF
SOFTWARE_LEVEL = b"101"
SUBCLASSES = {
    ("cl51", 10, 1540): (6, 4, b"L0032HN15"),
    ("cl31", 10, 770): (1, 3, b"L0016HN15"),
    ("cl31", 20, 385): (2, 3, b"L0016HN15"),
    ("cl31", 5, 1500): (3, 3, b"L0016HN15"),
    ("cl31", 5, 770): (4, 3, b"L0016HN15"),
}
"""For each model, gate width and number of gates: message subclass, digits of a height in the sky line, pulses."""
STATUS_METRES, STATUS_BLOWER_ON, STATUS_HEATER_ON = 0x0080, 0x8000, 0x4000


def quantise(backscatter: NDArray[np.floating]) -> NDArray[np.int32]:
    """Backscatter, m-1 sr-1, in steps of the telegram; clipped to what 20 bits can hold."""
    raw: NDArray[np.int32] = np.clip(np.rint(backscatter / RAW_UNIT), -RAW_LIMIT - 1, RAW_LIMIT).astype(np.int32)
    return raw


def write_telegram(
    raw: NDArray[np.int32],
    *,
    unit: str,
    model: str = "cl51",
    gate_m: int = GATE_M,
    cloud_bases_m: tuple[float, ...] = (),
    is_obscured: bool = False,
    cover_octas: int = 0,
    background_mv: int = 0,
    laser_celsius: int = 25,
    tilt_deg: int = 0,
) -> bytes:
    """One telegram, from SOH to EOT CR LF.

    Args:
        raw: (gates,): the profile in steps of 1e-8 m-1 sr-1, within 20 bits.
        unit: The instrument's id character, 0-9 or A-Z.
        model: "cl31" or "cl51".
        gate_m: Width of a gate; with the number of gates it says which message this is.
        cloud_bases_m: Up to three cloud bases, lowest first, m.
        is_obscured: Whether fog or precipitation hides the sky.
        cover_octas: Cloud cover of the last half hour, 0 to 8.
        background_mv: Background light, mV, 0 to 9999.
        laser_celsius: Laser temperature, -99 to 99 degrees Celsius.
        tilt_deg: Tilt of the beam from the vertical, 0 to 99 degrees.
    """
    subclass, sky_width, pulse = SUBCLASSES[model, gate_m, len(raw)]
    status = STATUS_METRES | STATUS_BLOWER_ON | STATUS_HEATER_ON
    bases = b"".join(b" %05d" % round(base_m) for base_m in cloud_bases_m[:3]) + b" /////" * (
        3 - len(cloud_bases_m[:3])
    )
    found = 4 if is_obscured else len(cloud_bases_m[:3])
    has_height = len(cloud_bases_m) > 0 and cover_octas > 0
    height = b"%0*d" % (sky_width, round(cloud_bases_m[0] / 10)) if has_height else b"/" * sky_width
    octas = cover_octas if has_height else 0
    # the integral over the profile in units of 1e-4 sr-1, three digits
    integral = min(max(int(raw.sum() * (RAW_UNIT * gate_m * 1e4)), 0), 999)
    lines = (
        b"CL" + unit.encode("ascii") + SOFTWARE_LEVEL + b"2%d\x02" % subclass,
        b"%d0" % found + bases + b" %012X" % status,
        b"%3d " % octas + height + (b"  0 " + b"/" * sky_width) * 4,
        b"00100 %02d %04d 100 %+03d 099 %02d %04d %b %03d"
        % (gate_m, len(raw), laser_celsius, tilt_deg, background_mv, pulse, integral),
        write_profile(raw),
        b"\x03",
    )
    checked = b"\r\n".join(lines)
    return b"\x01%b%04x\x04\r\n" % (checked, crc16_vaisala(checked))


def write_profile(raw: NDArray[np.int32]) -> bytes:
    """The samples as 5 hexadecimal digits each, two's complement.

    Two samples of 20 bits are five whole bytes, so that the bytes can be written as hexadecimal digits at once.
    """
    bits = np.zeros(len(raw) + len(raw) % 2, np.uint64)
    bits[: len(raw)] = raw & 0xFFFFF
    pairs = (bits[0::2] << np.uint64(20)) | bits[1::2]
    digits = pairs.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 3:].tobytes().hex().encode("ascii")
    return digits[: 5 * len(raw)]
