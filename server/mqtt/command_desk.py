"""Passes commands to stations, and waits for their answers. Knows no MQTT: a gateway carries both."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from fieldpost.errors import InvalidRequestError, TryAgainError
from fieldpost.names import check_name, commands_topic
from fieldpost.v1 import command_pb2 as pb

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 5.0
"""A station that is just coming back must not have to be asked by hand again."""

Publish = Callable[[str, bytes], None]
"""(topic, message) -> None; may lose it."""


class CommandDesk:
    """The commands that wait for an answer. Used in the event loop, but for note_result."""

    def __init__(self) -> None:
        self._ways: list[Publish] = []
        self._waiting: dict[tuple[str, str], asyncio.Future[pb.CommandResult]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add_way(self, publish: Publish) -> None:
        """A broker by which stations can be reached. Nobody knows by which one a station is: all are used."""
        self._ways.append(publish)

    async def ask(self, station: str, command: pb.Command, timeout_s: float) -> pb.CommandResult:
        """Asks a station until it answers.

        Raises:
            InvalidRequestError: The command says nothing, or there is no broker.
            TryAgainError: The station does not answer in time.
        """
        if command.WhichOneof("action") is None:
            raise InvalidRequestError("expected a command to say what to do, but it is empty")
        if not self._ways:
            raise InvalidRequestError("expected a server with a broker, but mqtt_urls is empty here")
        command.command_id = command.command_id or secrets.token_hex(16)
        topic, message = commands_topic(check_name("station", station)), command.SerializeToString()
        self._loop = asyncio.get_running_loop()
        key = (station, command.command_id)
        answer = self._waiting.setdefault(key, self._loop.create_future())
        logger.info("command", extra={"station": station, "command_id": command.command_id})
        try:
            async with asyncio.timeout(timeout_s):
                while not answer.done():
                    for publish in self._ways:
                        publish(topic, message)
                    await asyncio.wait([answer], timeout=ASK_AGAIN_S)
            return answer.result()
        except TimeoutError as error:
            raise TryAgainError(
                f"expected an answer of station {station} within {timeout_s:.0f} s, but none came",
                hint="is it online? `fieldpost stations` tells",
            ) from error
        finally:
            self._waiting.pop(key, None)

    def note_result(self, station: str, result: pb.CommandResult) -> None:
        """A station has answered; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._settle, station, result)

    def _settle(self, station: str, result: pb.CommandResult) -> None:
        answer = self._waiting.get((station, result.command_id))
        if answer is not None and not answer.done():
            answer.set_result(result)
