"""The address of a broker, as settings name it: mqtt://host:1883 or mqtts://host:8883. Connects to nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from fieldpost.errors import InvalidRequestError

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "embedded": 1883}


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A parsed address."""

    scheme: str
    host: str
    port: int

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "mqtts"

    @property
    def is_embedded(self) -> bool:
        """Whether the broker is to run inside the server's own process."""
        return self.scheme == "embedded"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_broker_url(url: str, schemes: Collection[str] = ("mqtt", "mqtts")) -> BrokerUrl:
    """Parses an address.

    Args:
        url: The text.
        schemes: What may stand before "://", keys of DEFAULT_PORTS.

    Raises:
        InvalidRequestError: It is no such address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in schemes or not parts.hostname or parts.path.strip("/"):
        expected = " or ".join(f"{scheme}://host:port" for scheme in schemes)
        raise InvalidRequestError(f"expected a broker URL {expected}, but got {url!r}")
    return BrokerUrl(parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme])
