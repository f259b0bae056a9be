"""How a connection to the server is made: sizes, keepalive, TLS. The same for both clients."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from fieldpost.errors import InvalidRequestError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""gRPC's own limit of 4 MiB is below one NetCDF file of some instruments."""

DEFAULT_TIMEOUT_S = 30.0

OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A watch may be silent for hours; a router that forgot the connection is noticed after 40 s, not after days.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the one that counts: without it, silence is noticed after a minute
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own reconnect pause grows to two minutes; a station's link that is back should be used sooner.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 10_000),
]


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server proves who it is, and how the caller does.

    Attributes:
        root_certificates: PEM of the authority that signed the server's certificate; None for those of the system.
        certificate: PEM of the caller's own certificate chain; None where the server does not ask for one.
        private_key: PEM of the key that belongs to it. Never shown in a repr.
    """

    root_certificates: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """The same, as gRPC wants it."""
        return grpc.ssl_channel_credentials(self.root_certificates, self.private_key, self.certificate)


def channel_credentials(tls: Tls | None, token: str | None) -> grpc.ChannelCredentials | None:
    """What a connection is secured by; None for one in the clear.

    Args:
        tls: How to prove who is who.
        token: What the server's operator gave the caller, sent with every call.

    Raises:
        InvalidRequestError: There is a token without TLS, or one that no header can hold.
    """
    if tls is None:
        if token is not None:
            raise InvalidRequestError(
                "expected TLS together with a token, but got a token alone",
                hint="a token in the clear is everybody's: give tls=Tls(...), or --certificates, too",
            )
        return None
    if token is None:
        return tls.credentials()
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise InvalidRequestError(
            "expected a token of printable ASCII characters without spaces, but got another",
            hint="a token is one line, as the server's operator gave it to you, and nothing else is in its file",
        )
    return grpc.composite_channel_credentials(tls.credentials(), grpc.access_token_call_credentials(token))
