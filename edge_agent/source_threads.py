"""The sources' threads, and their way to the agent's one queue. Knows no buffer and no session."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from edge_agent.capture import Capture, observation_of
from edge_agent.sources.source import Source, Stopping
from edge_agent.storage.quarantine import Quarantine
from fieldpost.errors import BrokenStateError, TryAgainError
from fieldpost.v1 import observation_pb2 as pb

logger = logging.getLogger(__name__)

RETRY_FIRST_S = 5.0
RETRY_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Captured:
    """A source has observations and waits until they are on the disk.

    Attributes:
        instrument: Name of the instrument.
        observations: Without station, epoch and sequence.
        done: Completed once they are on the disk.
    """

    instrument: str
    observations: list[pb.Observation]
    done: Future[None]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An input of this instrument was set aside; is_new where it was not there before."""

    instrument: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class SourceAlarm:
    """What is wrong with a source; an empty text where nothing is any more."""

    instrument: str
    text: str


@dataclass(frozen=True, slots=True)
class SourceEnded:
    """The source's thread has returned."""

    instrument: str


Estimate = Callable[[Sequence[pb.Observation], Sequence[bytes]], None]
"""(observations, their bytes) -> None; writes into the headers."""

SourceEvent = Captured | Quarantined | SourceAlarm | SourceEnded


class SourceThread:
    """Runs one source in a thread and begins it again after an error.

    Args:
        source: The source.
        put_event: Takes everything that happens, from the source's thread.
        quarantine: Where its unframed bytes go.
        stop: Set when the agent ends.
        estimate: Adds a first estimate to observations, given their bytes; never raises, and is soon done.
    """

    def __init__(
        self,
        source: Source,
        put_event: Callable[[SourceEvent], object],
        quarantine: Quarantine,
        stop: threading.Event,
        estimate: Estimate | None = None,
    ) -> None:
        self.source = source
        self._estimate = estimate
        self._put_event = put_event
        self._quarantine = quarantine
        self._stop = stop
        self._alarm_text = ""
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=f"source {source.instrument}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, captures: Sequence[Capture]) -> None:
        """See Sink."""
        done: Future[None] = Future()
        observations = [observation_of(capture) for capture in captures]
        if self._estimate is not None:
            self._estimate(observations, [capture.content for capture in captures])
        self._put_event(Captured(self.source.instrument, observations, done))
        done.result()
        if self._has_failed:
            self._has_failed = False
            self.alarm("")

    def set_aside(self, content: bytes, source_name: str, reason: str) -> None:
        """See Sink."""
        instrument = self.source.instrument
        while True:
            try:
                is_new = self._quarantine.put(
                    content, instrument=instrument, source_name=source_name, reason=reason, now_unix_s=time.time()
                )
            except (TryAgainError, BrokenStateError) as error:
                self.alarm(str(error))
                if self._stop.wait(RETRY_FIRST_S):
                    raise Stopping from error
                continue
            self._put_event(Quarantined(instrument, is_new))
            return

    def alarm(self, text: str) -> None:
        """See Sink."""
        if text != self._alarm_text:
            self._alarm_text = text
            self._put_event(SourceAlarm(self.source.instrument, text))

    def _run(self) -> None:
        """Until the source returns or the agent ends. The one place that catches what a source raises."""
        retry_s = RETRY_FIRST_S
        while not self._stop.is_set():
            try:
                self.source.run(self, self._stop)
                break
            except Stopping:
                break
            except Exception as error:
                logger.exception("source failed, tried again later", extra={"instrument": self.source.instrument})
                self._has_failed = True
                self.alarm(f"source failed: {error}")
                self._stop.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
        self._put_event(SourceEnded(self.source.instrument))
