"""What every source is, and what it may do with what it finds. Knows no particular source."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from edge_agent.capture import Capture


class Stopping(Exception):
    """The agent is stopping; what was put is not on the disk, and the source still has it."""


class Sink(Protocol):
    """The way from a source's thread to the buffer."""

    def put(self, captures: Sequence[Capture]) -> None:
        """Returns once all captures are on the disk; waits as long as the disk refuses.

        Raises:
            Stopping: The agent ends first; nothing is on the disk.
        """
        ...

    def set_aside(self, content: bytes, source_name: str, reason: str) -> None:
        """Puts bytes that cannot be framed into quarantine; returns once they are on the disk.

        Raises:
            Stopping: The agent ends first.
        """
        ...

    def alarm(self, text: str) -> None:
        """Says what is wrong with this source, in plain words; an empty text says that all is well."""
        ...


class Source(Protocol):
    """One instrument's source."""

    @property
    def instrument(self) -> str:
        """The instrument's name."""
        ...

    @property
    def is_finite(self) -> bool:
        """Whether run returns by itself, once everything has been handed over."""
        ...

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Hands over observations until there are no more, or until stop is set.

        May be called again after an error, and then goes on where it was.
        """
        ...
