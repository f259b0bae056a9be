"""The station's own door: a Unix socket by which the person beside it asks the running agent. Decides nothing.

A request is four bytes of length, big-endian, and a serialised fieldpost.v1.Command; the answer is four bytes of length
and JSON: {"is_accepted", "detail", "report"}, the last one where a report was asked for. One client at a time. A client
that hangs, or sends nonsense, costs its own connection and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from edge_agent.storage.durable import disk_error
from fieldpost.errors import RejectedError, TryAgainError
from fieldpost.v1 import command_pb2

logger = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 5 << 20
"""A model package, of at most 4 MiB, is the largest thing that anybody sends; it lies in the agent's memory twice."""
CLIENT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 75.0
"""A model is tried for up to a minute."""
NOT_ALLOWED_HINT = "call it with sudo, or become a member of the group: sudo usermod -aG fieldpost $USER"
_MAX_SUN_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody at the station asks."""

    command: command_pb2.Command
    reply: Future[dict[str, Any]]

    def answer(self, is_accepted: bool, detail: str = "", report: dict[str, Any] | None = None) -> None:
        """Answers, from any thread; does nothing where nobody waits any more.

        Args:
            is_accepted: Whether it was done, or will be.
            detail: Why not, or what was done, for people.
            report: The station's report as in status.json, where it was asked for.
        """
        if self.reply.set_running_or_notify_cancel():
            self.reply.set_result(_answer(is_accepted, detail) | ({} if report is None else {"report": report}))


class ControlSocket:
    """The agent's side: listens in a thread of its own, and puts what is asked into the agent's queue.

    Args:
        path: The socket; what a killed agent left there is replaced. Whoever has the buffer's lock may do that.
        put_event: Takes the events; usually the queue's put.
        answer_timeout_s: How long the agent may take for an answer.
    """

    def __init__(
        self, path: Path, put_event: Callable[[Asked], object], *, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self._path = path
        self._put_event = put_event
        self._answer_timeout_s = answer_timeout_s
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._pending: Future[dict[str, Any]] | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Begins to listen.

        Raises:
            TryAgainError: The disk is full.
            BrokenStateError: The socket cannot be made.
        """
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            temporary.unlink(missing_ok=True)
            with _short_path(temporary) as address:
                self._listener.bind(address)
            # Its owner and group may ask, nobody else; under its own name it is never seen with other permissions.
            temporary.chmod(0o660)
            self._listener.listen(8)
            temporary.replace(self._path)
        except OSError as error:
            self._listener.close()
            raise disk_error(error, self._path) from error
        self._thread.start()

    def stop(self) -> None:
        """Ends listening; whoever waits for an answer is told that there will be none."""
        self._is_stopping = True
        pending = self._pending
        if pending is not None:
            pending.cancel()
        # Wakes accept, which close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(CLIENT_TIMEOUT_S)
        self._listener.close()
        # A disk that refuses must not keep the agent from its own end; the next start replaces what is left.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if self._is_stopping:
                    return
                # Out of descriptors, most likely: no reason to spin.
                logger.warning("control socket does not accept", extra={"reason": str(error)})
                time.sleep(1.0)
                continue
            with client:
                try:
                    self._serve(client)
                except (OSError, ValueError) as error:
                    logger.info("control client given up", extra={"reason": str(error)})

    def _serve(self, client: socket.socket) -> None:
        deadline_s = time.monotonic() + CLIENT_TIMEOUT_S
        request = _receive_message(client, deadline_s, MAX_REQUEST_BYTES)
        try:
            answer = self._ask_agent(command_pb2.Command.FromString(request))
        except DecodeError as error:
            answer = _refusal(f"expected a fieldpost.v1.Command, but got {error}")
        client.settimeout(CLIENT_TIMEOUT_S)
        _send_message(client, json.dumps(answer).encode())

    def _ask_agent(self, command: command_pb2.Command) -> dict[str, Any]:
        reply: Future[dict[str, Any]] = Future()
        self._pending = reply
        if self._is_stopping:
            return _refusal("the agent is ending")
        self._put_event(Asked(command, reply))
        try:
            return reply.result(self._answer_timeout_s)
        except CancelledError:
            return _refusal("the agent is ending")
        except TimeoutError:
            return _refusal(f"expected the agent's answer within {self._answer_timeout_s:g} s, but got none")
        finally:
            self._pending = None


def ask(path: Path, command: command_pb2.Command, timeout_s: float = ANSWER_TIMEOUT_S + 5) -> dict[str, Any]:
    """Asks the running agent.

    Args:
        path: Its socket: control.sock in the buffer's folder.
        command: What is asked; a command_id makes a repeat harmless.
        timeout_s: For all of it.

    Raises:
        TryAgainError: No agent listens there, or it did not answer in time.
        RejectedError: This user may not ask, or the request is too large.
    """
    request = command.SerializeToString()
    if len(request) > MAX_REQUEST_BYTES:
        raise RejectedError(f"expected a request of at most {MAX_REQUEST_BYTES} bytes, but got {len(request)}")
    deadline_s = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            with _short_path(path) as address:
                connection.connect(address)
            _send_message(connection, request)
            answer: dict[str, Any] = json.loads(_receive_message(connection, deadline_s, 1 << 30))
            return answer
    except PermissionError as error:
        raise RejectedError(
            f"expected to be allowed to ask the agent at {path}, but got {error.strerror}",
            hint=NOT_ALLOWED_HINT,
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"expected an answer of the agent at {path}, but got: {reason}"
        raise TryAgainError(message, hint="is the agent running? systemctl status fieldpost-agent") from error


def _answer(is_accepted: bool, detail: str) -> dict[str, Any]:
    return {"is_accepted": is_accepted, "detail": detail}


def _refusal(detail: str) -> dict[str, Any]:
    return _answer(False, detail)


def _send_message(connection: socket.socket, message: bytes) -> None:
    connection.sendall(struct.pack(">I", len(message)) + message)


def _receive_message(connection: socket.socket, deadline_s: float, max_bytes: int) -> bytes:
    (length,) = struct.unpack(">I", _receive(connection, 4, deadline_s))
    if length > max_bytes:
        raise ValueError(f"expected a message of at most {max_bytes} bytes, but got one of {length}")
    return _receive(connection, length, deadline_s)


def _receive(connection: socket.socket, length: int, deadline_s: float) -> bytes:
    """Exactly so many bytes; a peer that sends one byte at a time has no more time than any other."""
    content = bytearray()
    while len(content) < length:
        rest_s = deadline_s - time.monotonic()
        if rest_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "no whole message in time")
        connection.settimeout(rest_s)
        part = connection.recv(min(length - len(content), 1 << 16))
        if not part:
            raise ConnectionError(f"expected {length} bytes, but the other side ended after {len(content)}")
        content += part
    return bytes(content)


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name of the path that fits into a socket's address, which has room for 107 bytes."""
    if len(os.fsencode(path)) <= _MAX_SUN_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
