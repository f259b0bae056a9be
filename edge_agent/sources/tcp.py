"""Bytes from TCP connections: one that the station makes, or those that instruments make to it. Knows no framing.

Keepalive finds a peer that lost its power: within a minute instead of never.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Sequence

from edge_agent.source_settings import TcpClientSettings, TcpServerSettings
from edge_agent.sources.link import READ_BYTES, Arrival

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
NO_ROOM_WAIT_S = 0.2
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TcpClientLink:
    """A connection to an instrument.

    Args:
        settings: Its settings.
    """

    kind = "tcp"
    can_hold_back = True
    has_ends = True
    problem = ""

    def __init__(self, settings: TcpClientSettings) -> None:
        self.name = f"{settings.host} port {settings.port}"
        self._address = (settings.host, settings.port)
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """See Link."""
        self._socket = socket.create_connection(self._address, CONNECT_TIMEOUT_S)
        _keep_alive(self._socket)

    def read(self, timeout_s: float) -> Sequence[Arrival]:
        """See Link."""
        assert self._socket is not None
        self._socket.settimeout(timeout_s)
        try:
            content = self._socket.recv(READ_BYTES)
        except TimeoutError as error:
            if error.errno is not None:
                raise  # of the connection: keepalive found nobody
            return ()
        if not content:
            raise ConnectionAbortedError("the other side closed the connection")
        return (Arrival("", content),)

    def close(self) -> None:
        """See Link."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class TcpServerLink:
    """Connections of instruments to the station. That one closes is no alarm: many connect for each message.

    Args:
        settings: Its settings.
    """

    kind = "tcp"
    can_hold_back = True
    has_ends = True

    def __init__(self, settings: TcpServerSettings) -> None:
        self.name = f"TCP port {settings.port} of {settings.address}"
        self.problem = ""
        self._settings = settings
        self._listener: socket.socket | None = None
        self._clients: dict[socket.socket, str] = {}
        self._selector: selectors.BaseSelector | None = None

    def open(self) -> None:
        """See Link."""
        address = self._settings.address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((address, self._settings.port), family=family)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def read(self, timeout_s: float) -> Sequence[Arrival]:
        """See Link."""
        assert self._selector is not None
        arrivals = []
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            else:
                assert isinstance(key.fileobj, socket.socket)
                arrivals.append(self._receive(key.fileobj))
        return arrivals

    def close(self) -> None:
        """See Link."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.problem = ""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._selector is not None:
            self._selector.close()
            self._selector = None

    def _accept(self) -> None:
        assert self._listener is not None and self._selector is not None
        try:
            client, address = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                # It stays in the listener's queue: without a pause it would be tried again at once, for ever.
                self.problem = f"expected to accept a connection, but got: {error.strerror}"
                time.sleep(NO_ROOM_WAIT_S)
            return  # or it was gone before it was accepted
        if len(self._clients) >= self._settings.max_clients:
            client.close()
            self.problem = f"expected at most {self._settings.max_clients} connections, but {address[0]} makes one more"
            return
        _keep_alive(client)
        client.setblocking(False)
        self.problem = ""
        self._clients[client] = f"{address[0]}:{address[1]}"
        self._selector.register(client, selectors.EVENT_READ)

    def _receive(self, client: socket.socket) -> Arrival:
        channel = self._clients[client]
        try:
            content = client.recv(READ_BYTES)
        except BlockingIOError:
            return Arrival(channel, b"")
        except OSError:
            content = b""  # reset: what came before is all there is
        if content:
            return Arrival(channel, content)
        assert self._selector is not None
        self._selector.unregister(client)
        del self._clients[client]
        client.close()
        self.problem = ""
        return Arrival(channel, b"", is_end=True)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
