"""Telegrams of Vaisala ceilometers (CL31, CL51, CT25K) out of logger files, line by line. Parses no science.

A logger file is a sequence of lines: time lines (`-2020-04-10 00:00:58`, or `2025-02-02 00:00:03,` in front of the
telegram), telegrams, and filler. A telegram runs from its header line (SOH "CL..." STX) to its checksum line (ETX CRC
EOT); some loggers drop the control characters, the carriage returns, and the spaces at the start of lines. A CT25K
telegram has no checksum and is held against its shape instead.

Time lines are taken as UTC. A telegram whose time line is no time, or that has none in a file in which others have, is
not framed: under the capture time it would land in a wrong place of the record, and a wrong time is worse than none.

Source: Vaisala CL31 and CL51 user's guides (M210482EN, M210801EN), data messages 1 and 2; CT25K user's guide, data
messages 2 and 7; the CRC as given there, "CRC-16 of CCITT, inverted".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from edge_agent.framing.parts import Filler, Framed, Part, Unframed
from fieldpost.checksum import crc16_vaisala

# A line ends at LF, after EOT, and before SOH: serial noise and a lost line end must not hide the next telegram.
_LINE_BOUNDARY = re.compile(rb"(?<=\n)|(?=\x01)|(?<=\x04)(?!\r?\n)")
_HEADER = re.compile(rb"\x01?(CL[0-9A-Za-z]\d{3}([0-9])([0-9])|CT[0-9A-Za-z]\d{2}([0-9])[0-9])\x02?")
_CL_END = re.compile(rb"\x03?([0-9A-Fa-f]{4})\x04?")
_CT_END = re.compile(rb"\x03\x04?|\x04")
_CT_PROFILE = re.compile(rb"[ 0-9]{3}[0-9A-Fa-f]{64}")
_TIME_LINE = re.compile(rb"\x01?-?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),?")
_TIME_PREFIX = re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(?=\x01?C[LT])")
# What wants to be a time line or prefix: digits, a separator, digits, a separator, digits, then a time of day.
_LOOKS_LIKE_TIME_LINE = re.compile(rb"\x01?-?\d+[-/.]\d+[-/.]\d+[ T]\d+:[\d:.]*,?")
_LOOKS_LIKE_TIME_PREFIX = re.compile(rb"([-/.:T \d]{8,40}),(?=\x01?C[LT])")
_FILLER = re.compile(rb'\s*|-Ceilometer Logfile\s*|-File (?:created|Closed):.*|\{".*', re.DOTALL)

CT_PROFILE_LINES = 16
SKY_LINE_CHARACTERS = {b"6": 40}  # by the header's last digit; CL51
SKY_LINE_CHARACTERS_CL31 = 35


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What a time line says: an instant, or text that is none."""

    unix_s: int | None
    text: bytes


def looks_like_vaisala(content: bytes) -> bool:
    """Whether a header line of a CL31, CL51 or CT25K telegram, or a logger's file header, is among the first lines."""
    head = content[:65536]
    lines = list(_split_lines(head))[:64]
    return any(header_of(line) is not None or line.startswith(b"-Ceilometer Logfile") for line in lines)


def frame_vaisala(content: bytes) -> list[Part]:
    """Splits a logger's file, or a stream's bytes, into telegrams.

    Returns:
        Parts whose raw bytes, put together, are the content.
    """
    lines = list(_split_lines(content))
    parts = _join_unexplained(list(_walk(lines)))
    has_time_lines = any(isinstance(part, Framed) and part.measure_unix_s is not None for part in parts)
    if has_time_lines:
        return [_refuse_without_time(part) for part in parts]
    if content and not any(isinstance(part, Framed | Unframed) for part in parts):
        return [Unframed(content, f"expected at least one telegram, but got {len(lines)} lines of file header only")]
    return parts


def _split_lines(content: bytes) -> Iterator[bytes]:
    """The lines with their ends. Only those with a control character are looked at twice: the rest is most of it."""
    *whole, last = content.split(b"\n")
    for line in (*(each + b"\n" for each in whole), last):
        if b"\x01" in line or b"\x04" in line:
            yield from filter(None, _LINE_BOUNDARY.split(line))
        elif line:
            yield line


def _walk(lines: list[bytes]) -> Iterator[Part]:
    """One pass over the lines; a time line holds for the next header line, over empty lines only."""
    stamp: _Stamp | None = None
    i = 0
    while i < len(lines):
        if line_stamp := time_line(lines[i]):
            yield Filler(lines[i])
            stamp = line_stamp
            i += 1
        elif header_of(lines[i]) is not None:
            prefix, prefix_stamp = _split_time_prefix(lines[i])
            if prefix:
                yield Filler(prefix)
            end = _telegram_end(lines, i)
            telegram = [lines[i][len(prefix) :], *lines[i + 1 : end]]
            yield _check_telegram(telegram, prefix_stamp or stamp)
            stamp = None
            i = end
        else:
            if lines[i].strip():
                stamp = None
            yield Filler(lines[i]) if _FILLER.fullmatch(_bare(lines[i])) else Unframed(lines[i], "")
            i += 1


def _bare(line: bytes) -> bytes:
    return line.rstrip(b"\r\n")


def _to_stamp(text: bytes) -> _Stamp:
    try:
        instant = datetime.fromisoformat(text.decode("ascii")).replace(tzinfo=UTC)
    except ValueError:
        return _Stamp(None, text)
    return _Stamp(int(instant.timestamp()), text)


def time_line(line: bytes) -> _Stamp | None:
    """What the line says where it is a time line, or wants to be one."""
    bare = _bare(line).rstrip()
    if match := _TIME_LINE.fullmatch(bare):
        return _to_stamp(match[1])
    return _Stamp(None, bare) if _LOOKS_LIKE_TIME_LINE.fullmatch(bare) else None


def _split_time_prefix(line: bytes) -> tuple[bytes, _Stamp | None]:
    if match := _TIME_PREFIX.match(line):
        return match[0], _to_stamp(match[1])
    if match := _LOOKS_LIKE_TIME_PREFIX.match(line):
        return match[0], _Stamp(None, match[1])
    return b"", None


def header_of(line: bytes) -> re.Match[bytes] | None:
    """The line as a telegram's header; None where it is none."""
    prefix, _ = _split_time_prefix(line)
    return _HEADER.fullmatch(_bare(line[len(prefix) :]))


def _telegram_end(lines: list[bytes], start: int) -> int:
    """Index of the line after the telegram that begins at start: after its last line, or before what follows it."""
    header = header_of(lines[start])
    is_cl = header is not None and header[2] is not None
    full = len(lines) if is_cl else start + _ct_line_count(header)
    for i in range(start + 1, len(lines)):
        bare = _bare(lines[i])
        if (_CL_END if is_cl else _CT_END).fullmatch(bare):
            return i + 1
        if i >= full or header_of(lines[i]) or time_line(lines[i]) or bare.startswith(b"-File Closed"):
            return i
    return len(lines)


def is_last_line(line: bytes, header: re.Match[bytes]) -> bool:
    """Whether a telegram with this header ends with this line."""
    return (_CL_END if header[2] is not None else _CT_END).fullmatch(_bare(line)) is not None


def _ct_line_count(header: re.Match[bytes] | None) -> int:
    has_sky_line = header is not None and header[4] == b"7"
    return 3 + CT_PROFILE_LINES + has_sky_line


def _check_telegram(lines: list[bytes], stamp: _Stamp | None) -> Part:
    raw = b"".join(lines)
    bare = [_bare(line) for line in lines]
    header = _HEADER.fullmatch(bare[0])
    assert header is not None
    reason = _cl_fault(bare, header) if header[2] is not None else _ct_fault(bare, header)
    if not reason and stamp is not None and stamp.unix_s is None:
        reason = f"expected a time line YYYY-MM-DD HH:MM:SS before the telegram, but got {stamp.text[:40]!r}"
    if reason:
        return Unframed(raw, reason)
    return Framed(raw, stamp.unix_s if stamp else None)


def _cl_fault(bare: list[bytes], header: re.Match[bytes]) -> str:
    """What is wrong with a CL31 or CL51 telegram; empty where its checksum is right."""
    end = _CL_END.fullmatch(bare[-1])
    if end is None or len(bare) < 2:
        return f"expected a checksum line at the end of the telegram, but it is cut off after {len(bare)} lines"
    body = bare[1:-1]
    stated = int(end[1], 16)
    computed = cl_checksum([header[1], *body])
    if computed != stated and len(body) > 1:
        # Some loggers drop the spaces at the start of the sky-condition line.
        characters = SKY_LINE_CHARACTERS.get(header[3], SKY_LINE_CHARACTERS_CL31)
        computed_padded = cl_checksum([header[1], body[0], body[1].rjust(characters), *body[2:]])
        if computed_padded == stated:
            return ""
    if computed != stated:
        return f"expected checksum {stated:04x} as the telegram says, but its bytes have {computed:04x}"
    return ""


def cl_checksum(lines: list[bytes]) -> int:
    """CRC-16 of a CL31 or CL51 telegram, from after SOH up to and including ETX, over CR LF line ends.

    Args:
        lines: Header without control characters, then the lines up to the profile, all without line ends.
    """
    covered = lines[0] + b"\x02\r\n" + b"".join(line + b"\r\n" for line in lines[1:]) + b"\x03"
    return crc16_vaisala(covered)


def _ct_fault(bare: list[bytes], header: re.Match[bytes]) -> str:
    """What is wrong with the shape of a CT25K telegram; empty where nothing is."""
    if header[4] not in (b"2", b"7"):
        return f"expected a CT25K data message 2 or 7, but got {header[4].decode()}"
    expected = _ct_line_count(header)
    body = bare[:-1] if _CT_END.fullmatch(bare[-1]) else bare
    if len(body) != expected:
        return f"expected a CT25K telegram of {expected} lines, but got {len(body)}"
    for i, characters in ((1, 29), (2, 42)):
        if len(body[i]) != characters:
            return f"expected {characters} characters in line {i + 1} of a CT25K telegram, but got {len(body[i])}"
    for i, line in enumerate(body[3 : 3 + CT_PROFILE_LINES], start=4):
        if not _CT_PROFILE.fullmatch(line):
            return f"expected 3 digits and 64 hexadecimal digits in line {i} of a CT25K telegram, but got {line[:80]!r}"
    return ""


def _refuse_without_time(part: Part) -> Part:
    if isinstance(part, Framed) and part.measure_unix_s is None:
        return Unframed(part.raw, "expected a time line before the telegram, as others in this file have, but got none")
    return part


def _join_unexplained(parts: list[Part]) -> list[Part]:
    """Unexplained lines that follow one another become one part, with a reason."""
    joined: list[Part] = []
    run: list[bytes] = []
    for part in [*parts, None]:
        if isinstance(part, Unframed) and not part.reason:
            run.append(part.raw)
            continue
        if run:
            raw = b"".join(run)
            joined.append(Unframed(raw, f"expected a time line or a telegram, but got {len(raw)} bytes: {raw[:40]!r}"))
            run = []
        if part is not None:
            joined.append(part)
    return joined
