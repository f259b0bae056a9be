"""What somebody who looks after a program finds: one line each, with what to do. Shared by station and server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check.

    Attributes:
        level: FAIL where something does not work, WARN where it will not for long, or may not.
        subject: What was looked at.
        text: What was found.
        hint: What to do; empty where there is nothing to do.
    """

    level: Level
    subject: str
    text: str
    hint: str = ""

    def lines(self) -> list[str]:
        """For people."""
        first = f"{self.level:4}  {self.subject}: {self.text}"
        return [first, f"      -> {self.hint}"] if self.hint else [first]

    def to_dict(self) -> dict[str, str]:
        """For programs."""
        return asdict(self)
