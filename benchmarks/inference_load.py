"""Closed-loop clients over raw sockets: each sends its request, waits for the answer, and sends it again at once.

One thread and one epoll for all of them, requests made beforehand: a load generator that costs 10 to 50 µs a request,
so that what is measured is the server. What is spoken over a connection is the business of an Exchange
(inference_protocols).
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

SILENCE_MAX_S = 20.0


class Exchange(Protocol):
    """One client's conversation over one connection. Does no I/O."""

    def begin(self) -> bytes:
        """What to send first, the first request included."""

    def again(self) -> bytes:
        """What to send for the next request."""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Takes what came.

        Returns:
            What to send back at once, and whether the answer is complete.

        Raises:
            WrongAnswerError: The server refused, or said something else than expected.
        """

    @property
    def answer(self) -> bytes:
        """The floats of the last complete answer; empty before the first."""


class WrongAnswerError(Exception):
    """A server did not answer as expected."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What a load came to.

    Attributes:
        requests: Answered between the start and the end.
        took_s: From the start to the end.
        latencies_ms: Of each of these requests.
        client_cpu_s: Of the load generator itself.
    """

    requests: int
    took_s: float
    latencies_ms: list[float]
    client_cpu_s: float


@dataclass(slots=True)
class _Client:
    """One connection with what is under way on it."""

    connection: socket.socket
    exchange: Exchange
    unsent: bytes = b""
    asked_s: float = 0.0


def run_clients(address: tuple[str, int], exchanges: Sequence[Exchange], requests_max: int | None, duration_s: float,
                started: Callable[[], None] = lambda: None) -> LoadFigures:  # fmt: skip
    """Keeps as many requests under way as there are exchanges.

    Args:
        address: Host and port of the server.
        exchanges: One for each client.
        requests_max: Ends after so many answers; None for no such end.
        duration_s: Ends after this time.
        started: Called when all are connected, before the first request.

    Raises:
        WrongAnswerError: A server refused, closed a connection, or fell silent.
    """
    clients = {}
    poll = select.epoll()
    try:
        for exchange in exchanges:
            connection = socket.create_connection(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            clients[connection.fileno()] = _Client(connection, exchange)
            poll.register(connection.fileno(), select.EPOLLIN)
        started()
        return _drive(poll, clients, requests_max, duration_s)
    finally:
        poll.close()
        for client in clients.values():
            client.connection.close()


def _drive(poll: select.epoll, clients: dict[int, _Client], requests_max: int | None, duration_s: float) -> LoadFigures:
    latencies_ms: list[float] = []
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    for number, client in clients.items():
        client.asked_s = time.perf_counter()
        _send(poll, number, client, client.exchange.begin())
    end_s = started_s + duration_s
    now_s = started_s
    while now_s < end_s and (requests_max is None or len(latencies_ms) < requests_max):
        events = poll.poll(SILENCE_MAX_S)
        if not events:
            raise WrongAnswerError(f"expected an answer, but got none in {SILENCE_MAX_S:g} s")
        for number, event in events:
            client = clients[number]
            if event & select.EPOLLOUT:
                _send(poll, number, client, b"")
            if event & ~select.EPOLLOUT and _receive(poll, number, client):
                now_s = time.perf_counter()
                latencies_ms.append((now_s - client.asked_s) * 1000)
                client.asked_s = now_s
                _send(poll, number, client, client.exchange.again())
        now_s = time.perf_counter()
    return LoadFigures(len(latencies_ms), now_s - started_s, latencies_ms, time.process_time() - started_cpu_s)


def _receive(poll: select.epoll, number: int, client: _Client) -> bool:
    """Takes what came; returns whether the answer is complete."""
    data = client.connection.recv(262_144)
    if not data:
        raise WrongAnswerError("expected an answer, but the server closed the connection")
    reply, is_complete = client.exchange.feed(data)
    if reply:
        _send(poll, number, client, reply)
    return is_complete


def _send(poll: select.epoll, number: int, client: _Client, data: bytes) -> None:
    """Sends what the socket takes; the rest when it takes more."""
    had_unsent = bool(client.unsent)
    data = client.unsent + data
    try:
        sent = client.connection.send(data) if data else 0
    except BlockingIOError:
        sent = 0
    client.unsent = data[sent:]
    if bool(client.unsent) != had_unsent:
        poll.modify(number, select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0))
