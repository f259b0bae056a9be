"""Small files of the buffer that are read whole at its opening; a damaged one is set aside, and one does without it.

Each is a JSON object whose first member is the CRC-32 of all that follows it: {"crc32":"89abcdef","epoch":...}. A digit
that flips is good JSON, and would make what was never sent delivered. A file without the member is taken as it is.
"""

from __future__ import annotations

import logging
import re
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge_agent.storage.durable import replace_file
from fieldpost.errors import BrokenStateError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CHECKSUM = re.compile(rb'\{"crc32":"([0-9a-f]{8})",?')


def set_aside(folder: Path, name: str, content: bytes, reason: str) -> None:
    """Keeps damaged bytes of the buffer itself for a person to look at.

    Raises:
        TryAgainError: The disk is full.
        BrokenStateError: The disk refuses for another reason.
    """
    path = folder / f"{secrets.token_hex(4)}-{name}"
    replace_file(path, content)
    facts = {"file": path.name, "reason": reason, "content_bytes": len(content)}
    logger.warning("part of the buffer set aside", extra=facts)


def save_state(path: Path, content: bytes) -> None:
    """Replaces a state file.

    Args:
        path: The file; its folder exists.
        content: A JSON object.

    Raises:
        TryAgainError: The disk is full.
        BrokenStateError: The disk refuses for another reason.
    """
    replace_file(path, with_checksum(content))


def with_checksum(content: bytes) -> bytes:
    """The JSON object with the checksum of its members as the first of them."""
    members = content.removeprefix(b"{")
    comma = b"" if members.lstrip().startswith(b"}") else b","
    return b'{"crc32":"%08x"%s%s' % (zlib.crc32(members), comma, members)


def without_checksum(content: bytes) -> bytes:
    """The JSON object without its checksum.

    Raises:
        BrokenStateError: The checksum is another one.
    """
    match = _CHECKSUM.match(content)
    if match is None:
        return content
    members = content[match.end() :]
    if int(match[1], 16) != zlib.crc32(members):
        raise BrokenStateError(f"expected the CRC-32 {match[1].decode()}, but got {zlib.crc32(members):08x}")
    return b"{" + members


def load_state(path: Path, parse: Callable[[bytes], T], set_aside_folder: Path) -> T | None:
    """What a state file says.

    Args:
        path: The file.
        parse: Reads its bytes; raises BrokenStateError where they make no sense.
        set_aside_folder: Where a damaged one is kept.

    Returns:
        None where there is none, or none that makes sense.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        # A block that the card cannot read any more: there is nothing to keep.
        logger.warning("part of the buffer unreadable", extra={"file": path.name, "reason": str(error)})
        return None
    try:
        return parse(without_checksum(content))
    except BrokenStateError as error:
        set_aside(set_aside_folder, path.name, content, str(error))
        return None
