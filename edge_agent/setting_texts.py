"""Texts in the settings of a source that mean bytes, or how a serial port sends them. Knows no setting."""

from __future__ import annotations

import re

from fieldpost.errors import InvalidRequestError


def parse_characters(text: str) -> tuple[int, str, int]:
    """(data bits, parity, stop bits) of a text such as 8N1.

    Raises:
        InvalidRequestError: It is none.
    """
    match = re.fullmatch(r"([5-8])([NEOMS])([12])", text.upper())
    if match is None:
        raise InvalidRequestError(f"expected instruments.characters such as 8N1 or 7E1, but got {text!r}")
    return int(match[1]), match[2], int(match[3])


def hex_or_text(key: str, text: str) -> bytes:
    """Bytes of a text such as 0xaa55, or of one byte a character.

    Raises:
        InvalidRequestError: They are none.
    """
    if not text.startswith("0x"):
        return to_bytes(key, text)
    try:
        return bytes.fromhex(text[2:])
    except ValueError as error:
        raise InvalidRequestError(f"expected instruments.{key} as 0x and pairs of digits, but got {text!r}") from error


def to_bytes(key: str, text: str) -> bytes:
    """One byte a character.

    Raises:
        InvalidRequestError: A character has no byte.
    """
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"expected one byte a character in instruments.{key}, but got {text!r}") from error
