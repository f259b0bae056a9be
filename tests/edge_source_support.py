"""What the tests of sources share: a sink that remembers, a real quarantine behind it, and waiting for conditions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge_agent.capture import Capture
from edge_agent.sources.source import Source
from edge_agent.storage.quarantine import Quarantine


class RememberingSink:
    """What a source handed over, in order; raises once so many captures are there, as a crash would.

    Args:
        crash_after: Raises at the next put once so many captures are there.
        quarantine_folder: Where a real quarantine keeps what is set aside; None to remember it only.
    """

    def __init__(self, crash_after: int | None = None, quarantine_folder: Path | None = None) -> None:
        self.captures: list[Capture] = []
        self.groups: list[int] = []
        self.unframed: list[tuple[str, bytes, str]] = []
        self.alarms: list[str] = []
        self.disk_takes = threading.Event()
        self.disk_takes.set()
        self.instrument = "cl51"
        self._crash_after = crash_after
        self._quarantine = Quarantine(quarantine_folder) if quarantine_folder else None

    def put(self, captures: Sequence[Capture]) -> None:
        if self._crash_after is not None and len(self.captures) >= self._crash_after:
            raise ConnectionAbortedError("killed")
        assert self.disk_takes.wait(30)
        self.captures += captures
        self.groups.append(len(captures))

    def set_aside(self, content: bytes, source_name: str, reason: str) -> None:
        if self._quarantine is not None:
            self._quarantine.put(
                content, instrument=self.instrument, source_name=source_name, reason=reason, now_unix_s=time.time()
            )
        self.unframed.append((source_name, content, reason))

    def alarm(self, text: str) -> None:
        if not self.alarms or self.alarms[-1] != text:
            self.alarms.append(text)

    def origins(self) -> dict[str, int]:
        return {capture.origin_name: capture.origin_index for capture in self.captures}

    def contents(self) -> list[bytes]:
        return [capture.content for capture in self.captures]

    @property
    def alarm_now(self) -> str:
        return self.alarms[-1] if self.alarms else ""


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Returns once the condition holds; fails after the timeout."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"after {timeout_s} s still not: {what}"
        time.sleep(0.005)


@contextmanager
def running(source: Source, sink: RememberingSink) -> Iterator[threading.Event]:
    """Runs the source in a thread; at the end it must stop within a second or so, without an error."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            source.run(sink, stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        stopped_s = time.monotonic()
        thread.join(10)
        assert not thread.is_alive(), "the source does not stop"
        assert time.monotonic() - stopped_s < 5, "a second or so, and what a busy machine takes"
        assert not errors, errors
