"""Walks the header of a classic NetCDF file before the library may see it.

The NetCDF library 4.9 allocates what a damaged header's counts ask for and then dies of it, and the worker process
with it. Here every count is held against the bytes that are there. Knows no values; NetCDF-4 files are HDF5 and pass.
"""

from __future__ import annotations

from fieldpost.errors import InvalidObservationError

MAGIC = b"CDF"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
DIMENSIONS, VARIABLES, ATTRIBUTES = 10, 11, 12
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
"""Bytes of a value of each type: byte, char, short, int, float, double, and those of version 5."""


def check_header(payload: bytes, name: str) -> None:
    """Looks at the header of a classic file, version 1, 2 or 5 (the grammar in the NetCDF User's Guide, appendix B).

    Raises:
        InvalidObservationError: The payload is no NetCDF file, or its header asks for more than the payload has.
    """
    if payload.startswith(HDF5_MAGIC):
        return
    if payload[:3] != MAGIC or payload[3:4] not in (b"\x01", b"\x02", b"\x05"):
        raise InvalidObservationError(f"expected a NetCDF file of a {name}, but got bytes that start {payload[:8]!r}")
    _Walk(payload, name).header()


class _Walk:
    """A position in the header that only moves forward, and never beyond the payload."""

    def __init__(self, payload: bytes, name: str) -> None:
        self._payload = payload
        self._name = name
        self._position = 4
        self._count_bytes = 8 if payload[3] == 5 else 4
        self._offset_bytes = 4 if payload[3] == 1 else 8

    def header(self) -> None:
        self._skip(self._count_bytes)  # number of records; all ones while it is written
        for _ in range(self._list(DIMENSIONS, entry_bytes=2 * self._count_bytes)):
            self._text()
            self._skip(self._count_bytes)
        self._attributes()
        for _ in range(self._list(VARIABLES, entry_bytes=3 * self._count_bytes)):
            self._text()
            self._skip(self._count(self._count_bytes) * self._count_bytes)
            self._attributes()
            self._skip(4 + self._count_bytes + self._offset_bytes)

    def _attributes(self) -> None:
        for _ in range(self._list(ATTRIBUTES, entry_bytes=2 * self._count_bytes + 4)):
            self._text()
            value_bytes = TYPE_BYTES.get(self._number(4))
            if value_bytes is None:
                raise self._error("a known type")
            self._skip(_padded(self._count(value_bytes) * value_bytes))

    def _text(self) -> None:
        self._skip(_padded(self._count(1)))

    def _list(self, tag: int, entry_bytes: int) -> int:
        """The number of entries of the list that begins here; 0 where it is absent."""
        found = self._number(4)
        count = self._count(entry_bytes)
        if found != tag and not (found == 0 and count == 0):
            raise self._error(f"a list of kind {tag}")
        return count

    def _count(self, entry_bytes: int) -> int:
        """A count of things that need entry_bytes or more each, and so can be no more than the payload has room for."""
        count = self._number(self._count_bytes)
        if count * entry_bytes > len(self._payload) - self._position:
            raise self._error("a count that fits the file")
        return count

    def _number(self, length: int) -> int:
        start = self._position
        self._skip(length)
        return int.from_bytes(self._payload[start : self._position], "big")

    def _skip(self, length: int) -> None:
        self._position += length
        if self._position > len(self._payload):
            raise self._error("a longer file")

    def _error(self, expected: str) -> InvalidObservationError:
        return InvalidObservationError(
            f"expected {expected} in the header of a NetCDF file of a {self._name}, but got another"
            f" (byte {self._position} of {len(self._payload)})"
        )


def _padded(length: int) -> int:
    """Names and values are filled up to a multiple of four bytes."""
    return (length + 3) // 4 * 4
