"""Walks over a serialized protobuf message without building it, and says how much it would build. Knows no ONNX.

Two bytes of a file can become a message of a hundred in memory. So a file of a stranger is walked over first, which
costs time in proportion to its fields and no memory, and ends at the bounds.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from fieldpost.errors import InvalidRequestError

FIELDS_MAX = 2_000_000
DEPTH_MAX = 60
"""Messages inside messages; the parser's own bound is 100."""
Descriptor = Any
"""That of protobuf; which class it is depends on how protobuf was built."""
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5


def check_wire(content: bytes, descriptor: Descriptor, *, fields_max: int = FIELDS_MAX) -> None:
    """Checks that content can be parsed as a message of this type without harm.

    Raises:
        InvalidRequestError: It is none, is cut off, has fields that the type does not, or too many, or too deep.
    """
    view = memoryview(content)
    known: dict[Descriptor, dict[int, Descriptor | None]] = {}
    waiting = [(descriptor, 0, len(view), 0)]  # a list, not recursion: the depth is the stranger's
    field_count = 0
    while waiting:
        message, position, end, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise InvalidRequestError(
                f"nesting: expected at most {DEPTH_MAX} messages inside each other, but got more (byte {position})",
                hint="flatten the control flow of the model before exporting it",
            )
        fields = known.get(message)
        if fields is None:
            fields = known[message] = _find_fields(message)
        while position < end:
            tag = view[position]
            if tag < 0x80:  # nearly all are: a call for each would double the time
                position += 1
            else:
                tag, position = _read_varint(view, position, end)
            field_count += 1
            if field_count > fields_max:
                raise InvalidRequestError(
                    f"number of fields: expected at most {fields_max} fields in the file, but got more",
                    hint="store weights as raw data, and loops as loops instead of unrolled",
                )
            number, kind = tag >> 3, tag & 7
            if number not in fields:
                raise InvalidRequestError(
                    f"format: expected fields of {message.full_name}, but got number {number} (byte {position})",
                    hint="is it an ONNX file, of a version that this server knows?",
                )
            if kind == DELIMITED:
                if position < end and view[position] < 0x80:
                    length = view[position]
                    position += 1
                else:
                    length, position = _read_varint(view, position, end)
                if length > end - position:
                    raise _cut_off(position, end)
                inner = fields[number]
                if inner is not None and length:
                    waiting.append((inner, position, position + length, depth + 1))
                position += length
            elif kind == VARINT:
                _, position = _read_varint(view, position, end)
            elif kind in (FIXED64, FIXED32):
                position += 8 if kind == FIXED64 else 4
                if position > end:
                    raise _cut_off(position, end)
            else:
                raise InvalidRequestError(
                    f"format: expected a wire type 0, 1, 2 or 5, but got {kind} (byte {position})"
                )


def _find_fields(message: Descriptor) -> dict[int, Descriptor | None]:
    return {
        each.number: each.message_type if each.type == FieldDescriptor.TYPE_MESSAGE else None for each in message.fields
    }


def _read_varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise InvalidRequestError(f"format: expected a number of at most 10 bytes, but got more (byte {position})")
    raise _cut_off(position, end)


def _cut_off(position: int, end: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"format: expected more at byte {position}, but the message ends at byte {end}",
        hint="the file is cut off or no ONNX file; export it again",
    )
