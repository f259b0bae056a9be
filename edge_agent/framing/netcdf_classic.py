"""How long a NetCDF classic file says it is, from its header. Reads no value of any variable.

Source: NetCDF classic format specification, versions 1 (CDF), 2 (64-bit offset) and 5 (64-bit data).
"""

from __future__ import annotations

import math

_TAGS = {"dimensions": 10, "variables": 11, "attributes": 12}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}


def classic_size(content: bytes) -> int | None:
    """The bytes up to the end of the last value that the header speaks of.

    Returns:
        None where there is no header, it is cut off, or the number of records is not told ("streaming").
    """
    if len(content) < 4 or not content.startswith(b"CDF") or content[3] not in (1, 2, 5):
        return None
    try:
        return _Header(content).size()
    except (ValueError, KeyError, IndexError):
        return None  # what is no header has no length


class _Header:
    """A reader of one header. Raises ValueError, KeyError or IndexError where there is none."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 4
        self._count_bytes = 8 if content[3] == 5 else 4
        self._offset_bytes = 4 if content[3] == 1 else 8

    def size(self) -> int:
        record_count = self._count()
        if record_count == (1 << 8 * self._count_bytes) - 1:
            raise ValueError("streaming")
        dimensions = [self._dimension() for _ in range(self._list("dimensions"))]
        self._skip_attributes()
        variables = [self._variable(dimensions) for _ in range(self._list("variables"))]
        ends = [begin + size for begin, size, is_record in variables if not is_record]
        records = [(begin, size) for begin, size, is_record in variables if is_record]
        # A record is padded to four bytes for each variable, unless there is only one.
        record_bytes = records[0][1] if len(records) == 1 else sum((size + 3) // 4 * 4 for _, size in records)
        if record_count:
            ends += [begin + (record_count - 1) * record_bytes + size for begin, size in records]
        return max([self._at, *ends])

    def _dimension(self) -> int:
        self._skip(self._count())
        return self._count()

    def _variable(self, dimensions: list[int]) -> tuple[int, int, bool]:
        """(where it begins, the bytes of it, or of one record of it, whether it has records)."""
        self._skip(self._count())
        lengths = [dimensions[self._count()] for _ in range(self._bounded(self._count()))]
        self._skip_attributes()
        value_bytes = _TYPE_BYTES[self._number(4)]
        self._count()  # the size as the header tells it is redundant, and wrong for large variables
        begin = self._number(self._offset_bytes)
        is_record = bool(lengths) and lengths[0] == 0
        return begin, value_bytes * math.prod(lengths[1:] if is_record else lengths), is_record

    def _skip_attributes(self) -> None:
        for _ in range(self._list("attributes")):
            self._skip(self._count())
            value_bytes = _TYPE_BYTES[self._number(4)]
            self._skip(self._count() * value_bytes)

    def _list(self, name: str) -> int:
        tag, length = self._number(4), self._bounded(self._count())
        if tag != _TAGS[name] and (tag, length) != (0, 0):
            raise ValueError(name)
        return length

    def _bounded(self, length: int) -> int:
        if length > len(self._content):
            raise ValueError("longer than the file")
        return length

    def _count(self) -> int:
        return self._number(self._count_bytes)

    def _number(self, byte_count: int) -> int:
        found = self._content[self._at : self._at + byte_count]
        if len(found) < byte_count:
            raise ValueError("cut off")
        self._at += byte_count
        return int.from_bytes(found, "big")

    def _skip(self, byte_count: int) -> None:
        self._at += (byte_count + 3) // 4 * 4
        if self._at > len(self._content):
            raise ValueError("cut off")
