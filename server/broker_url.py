"""The address of a broker: embedded://127.0.0.1:1883, mqtt://host:1883 or mqtts://host:8883."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt

from fieldpost.errors import InvalidRequestError

_PORTS = {"embedded": 1883, "mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A parsed address, with the files that mqtts needs."""

    scheme: str
    host: str
    port: int
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def parse(
        cls, url: str, *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
    ) -> BrokerUrl:
        """Parses an address.

        Raises:
            InvalidRequestError: It is none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/"):
            raise InvalidRequestError(
                "expected mqtt://host:port, mqtts://host:port or embedded://127.0.0.1:port in mqtt_urls, "
                f"but got {url!r}"
            )
        return cls(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], ca_file, cert_file, key_file)

    @property
    def is_embedded(self) -> bool:
        """Whether the broker is to run inside this process."""
        return self.scheme == "embedded"

    def configure_tls(self, client: mqtt.Client) -> None:
        """Makes the client use TLS where the address says so."""
        if self.scheme == "mqtts":
            files = (self.ca_file, self.cert_file, self.key_file)
            ca_file, cert_file, key_file = (str(path) if path else None for path in files)
            client.tls_set(ca_file, cert_file, key_file)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"
