"""An MQTT broker inside this process, for one machine: amqtt, on the loopback, in a thread of its own.

It forgets everything when it ends, and that is no loss: stations resend until the receipt. It stays on the loopback,
since it neither tells stations apart nor keeps them from each other's topics; stations in the field need Mosquitto
(deploy/mosquitto).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import threading

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig

from fieldpost.errors import InvalidRequestError, TryAgainError

# What it says of every connection and every packet is for its own developers.
logging.getLogger("amqtt").setLevel(logging.ERROR)
logging.getLogger("transitions").setLevel(logging.ERROR)

START_TIMEOUT_S = 15.0


class EmbeddedBroker:
    """A running broker.

    Raises:
        InvalidRequestError: The host is not of the loopback.
        TryAgainError: The port is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        if not ipaddress.ip_address(host).is_loopback:
            raise InvalidRequestError(
                f"expected a loopback address for the embedded broker, but got {host}",
                hint="use embedded://127.0.0.1:1883, or a Mosquitto (deploy/mosquitto) with mqtts://",
            )
        self._address = f"{host}:{port}"
        self._is_started = threading.Event()
        self._failure: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._thread.start()
        self._is_started.wait(START_TIMEOUT_S)
        if self._failure is not None or not self._is_started.is_set():
            raise TryAgainError(
                f"the embedded broker could not listen on {self._address}: {self._failure or 'it does not start'}",
                hint="another program may use the port; choose another one in mqtt_urls",
            ) from self._failure

    def close(self) -> None:
        """Ends the broker."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        config = BrokerConfig(
            listeners={"default": ListenerConfig(bind=self._address)},
            plugins={"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        )
        broker = Broker(config)
        try:
            await broker.start()
        except Exception as error:  # amqtt's own types for a taken port vary
            self._failure = error
            return
        finally:
            self._is_started.set()
        await self._stop.wait()
        await broker.shutdown()
