"""What framing makes of bytes: observations, what could not be framed, and filler. Knows no format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Framed:
    """The bytes of one observation, exactly as they came.

    Attributes:
        raw: The bytes.
        measure_unix_s: What the data logger's time line says, UTC; None where there is no such line.
    """

    raw: bytes
    measure_unix_s: int | None = None


@dataclass(frozen=True, slots=True)
class Unframed:
    """Bytes that should have been an observation, or that nobody can explain.

    Attributes:
        raw: The bytes.
        reason: For people: what was expected, what came.
    """

    raw: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Filler:
    """Bytes that a data logger puts between observations: time lines, file headers, empty lines."""

    raw: bytes


Part = Framed | Unframed | Filler
