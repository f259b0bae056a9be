"""The link between a station and the broker, which can be cut: a TCP relay in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Link:
    """Relays connections to a port of this machine, until it is cut, and again when it is mended.

    Attributes:
        port: Where the station connects.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes now."""
        return self._is_cut

    def cut(self) -> None:
        """Breaks all connections and lets none in."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._break)

    def mend(self) -> None:
        """Lets connections in again."""
        self._is_cut = False

    def close(self) -> None:
        """Ends the relay."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._stop.wait()
            self._break()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers |= {writer, target_writer}
            await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))
            self._writers -= {writer, target_writer}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    writer.close()
