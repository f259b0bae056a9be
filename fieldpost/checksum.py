"""The checksum that Vaisala's ceilometers write behind each telegram."""

from __future__ import annotations

from fastcrc import crc16  # eighty times as fast as binascii.crc_hqx, which was a fifth of a telegram's decoding


def crc16_vaisala(content: bytes) -> int:
    """CRC-16-CCITT from 0xFFFF, inverted: known as CRC-16/GENIBUS (CL51 User's Guide M210801EN)."""
    return int(crc16.genibus(content))
