"""A source whose bytes come by themselves: frames what a link's reader puts into the queue, and hands it over.

What ends without being an observation (at a stop, when a connection closes, after silence) is set aside. Knows no
particular link, no buffer and no network.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from edge_agent.capture import Capture
from edge_agent.framing import Framed, Framer, Part, Unframed, stream_framer
from edge_agent.source_settings import StreamSettings
from edge_agent.sources.chunk_queue import Chunk, ChunkQueue
from edge_agent.sources.framed_file import in_groups
from edge_agent.sources.link import LOSS_ALARM_S, Link, LinkReader
from edge_agent.sources.quarantine_entries import Entry, QuarantineEntries
from edge_agent.sources.source import Sink, Stopping
from fieldpost.v1 import observation_pb2 as pb

logger = logging.getLogger(__name__)

WAKE_S = 0.25
JOIN_S = 0.5
IDLE_MARGIN_S = 0.05
"""What came may be on its way from the reader: silence is told so much later."""
MAX_CHANNELS = 64


@dataclass(slots=True)
class _Channel:
    """One connection: its framer, and the clock of its last bytes."""

    framer: Framer
    clock: bytes


class StreamSource:
    """Hands over the observations of a stream.

    Args:
        settings: Its settings.
        link: Where its bytes come from.
    """

    is_finite = False

    def __init__(self, settings: StreamSettings, link: Link) -> None:
        self.instrument = settings.name
        self._format = settings.payload_format or ""
        self._parameters = settings.framing_parameters()
        self._link = link
        self._queue = ChunkQueue(settings.queue_max_bytes)
        # Nothing of a stream comes twice: the name only has to be another one after each start, whatever the clock is.
        begin = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._origin_name = f"{settings.name}:{link.kind}-{begin}"
        self._next_index = 0
        self._channels: dict[str, _Channel] = {}
        self._captures: list[Capture] = []  # framed, not on the disk
        self._unframed = QuarantineEntries()
        self._entries: list[Entry] = []  # due, not on the disk
        self._reader: LinkReader | None = None
        self._sink: Sink | None = None
        self._telling = threading.Lock()
        self._loss_told = (0, 0.0)  # (bytes, monotonic time of the last loss)

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """See Source. After an error the reader goes on, so that nothing is lost until run is called again."""
        self._sink = sink
        if self._reader is None:
            self._reader = LinkReader(self._link, self._queue, stop, self._tell)
            self._reader.start()
        try:
            self._write(sink)  # what an error left over goes first: as long as that fails, only the queue grows
            while not stop.is_set():
                chunks = self._queue.take(self._wait_s())
                # Up to the last chunk everything is here, also where it waited long for the disk.
                self._work(sink, chunks, chunks[-1].arrived_s if chunks else self._reader.now_s() - IDLE_MARGIN_S)
                self._tell()
            self._reader.join(JOIN_S)
            while chunks := self._queue.take(0):
                self._work(sink, chunks, chunks[-1].arrived_s)
            self._end(sink)
        except Stopping:
            lost_bytes = sum(len(capture.content) for capture in self._captures) + self._queue.content_bytes
            lost_bytes += sum(len(entry.content) for entry in self._entries) + self._unframed.waiting_bytes
            if lost_bytes:
                facts = {"instrument": self.instrument, "lost_bytes": lost_bytes}
                logger.warning("the disk took nothing until the end, bytes lost", extra=facts)
            raise

    # --- from chunks to the disk ---

    def _wait_s(self) -> float:
        return max(0.02, min(WAKE_S, self._parameters.idle_gap_s / 4)) if self._channels else WAKE_S

    def _work(self, sink: Sink, chunks: list[Chunk], through_s: float) -> None:
        """Frames the chunks, ends what is silent, and writes.

        Args:
            sink: Where it goes.
            chunks: What came.
            through_s: Up to this time everything that came is among the chunks.
        """
        for chunk in chunks:
            self._take(chunk)
        for name, channel in list(self._channels.items()):
            self._keep(name, channel.framer.idle(through_s), channel.clock)
            if channel.framer.is_at_rest:
                del self._channels[name]
        self._entries += self._unframed.due(time.monotonic())
        self._write(sink)

    def _take(self, chunk: Chunk) -> None:
        name, now_s = chunk.channel, chunk.arrived_s
        channel = self._channels.get(name)
        if channel is None:
            if chunk.is_end:
                return
            if len(self._channels) >= MAX_CHANNELS:
                self._end_channel(next(iter(self._channels)))
            channel = _Channel(stream_framer(self._format, self._parameters), chunk.clock)
            self._channels[name] = channel
        # What silence or a loss ended was complete with the bytes before: their clock is the one that counts.
        parts = channel.framer.idle(now_s)
        if chunk.is_behind_loss:
            parts += channel.framer.lose()
        self._keep(name, parts, channel.clock)
        if chunk.is_end:
            self._end_channel(name)
            return
        channel.clock = chunk.clock
        self._keep(name, channel.framer.feed(chunk.content, now_s), chunk.clock)

    def _end_channel(self, name: str) -> None:
        channel = self._channels.pop(name)
        self._keep(name, channel.framer.end(), channel.clock)

    def _keep(self, channel_name: str, parts: list[Part], clock: bytes) -> None:
        for part in parts:
            if isinstance(part, Framed):
                self._captures.append(self._capture(part, clock))
            elif isinstance(part, Unframed):
                sender = channel_name.rpartition(":")[0]
                source_name = f"{self._link.kind} {sender}" if sender else self._link.name
                self._unframed.add(source_name, part, time.monotonic())

    def _capture(self, part: Framed, clock: bytes) -> Capture:
        index = self._next_index
        self._next_index += 1
        return Capture(
            instrument=self.instrument,
            payload_format=self._format,
            content=part.raw,
            origin_name=self._origin_name,
            origin_index=index,
            measure_unix_nanos=None if part.measure_unix_s is None else part.measure_unix_s * 10**9,
            clock=pb.CaptureClock.FromString(clock),
        )

    def _write(self, sink: Sink) -> None:
        """Returns once everything is on the disk. What is not, where the sink raises, is tried again."""
        for group in in_groups(self._captures[:]):
            sink.put(group)
            del self._captures[: len(group)]
        while self._entries:
            entry = self._entries[0]
            sink.set_aside(entry.content, entry.source_name, entry.reason)
            del self._entries[0]

    def _end(self, sink: Sink) -> None:
        for name in list(self._channels):
            self._end_channel(name)
        self._entries += self._unframed.take_all()
        self._write(sink)

    # --- what is wrong ---

    def _tell(self) -> None:
        """Called by both threads: while one waits for the disk, the other sees what is lost."""
        with self._telling:
            if self._sink is not None:
                self._sink.alarm("; ".join(filter(None, self._problems(time.monotonic()))))

    def _problems(self, now_s: float) -> list[str]:
        lost_bytes = self._queue.lost_bytes
        if lost_bytes > self._loss_told[0]:
            self._loss_told = (lost_bytes, now_s)
        has_lost = lost_bytes > 0 and now_s - self._loss_told[1] < LOSS_ALARM_S
        loss = f"{lost_bytes} bytes were lost, which came while the disk took nothing and the queue was full"
        reader_problem = self._reader.problem if self._reader is not None else ""
        return [reader_problem, self._link.problem, loss if has_lost else ""]
