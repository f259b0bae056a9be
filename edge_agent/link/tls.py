"""TLS towards a broker: whom to trust, which certificate to show, and the error that ended a connection, kept."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

from edge_agent.link.pair_files import Pair
from fieldpost.errors import InvalidRequestError


class ErrorKeepingSocket(ssl.SSLSocket):
    """Keeps the TLS error that ended it; the MQTT library only logs its text.

    With TLS 1.3 that error is the one place where a broker says why it refused a certificate.
    """

    tls_error: ssl.SSLError | None = None

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As every socket."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.tls_error = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        """As every socket; but what the other side said before it closed is read first, since nobody else would."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            with contextlib.suppress(OSError):
                self.recv(1)
            raise

    def do_handshake(self, block: bool = False) -> None:
        """As every socket; but after a failure it is closed at once, and not when somebody collects garbage."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def make_context(ca_file: Path | None, pair: Pair | None) -> ssl.SSLContext:
    """What a connection to a broker needs.

    Args:
        ca_file: PEM of the authorities that sign brokers; None for the system's.
        pair: The station's certificate and key; None to show none.

    Raises:
        InvalidRequestError: A file is missing, or is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        message = f"expected PEM certificates of authorities in {ca_file}, but got {why}"
        raise InvalidRequestError(message, hint="ca_file names them") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = ErrorKeepingSocket
    if pair is not None:
        try:
            context.load_cert_chain(pair.certificate, pair.key, password=lambda: "")
        except OSError as error:
            why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            raise InvalidRequestError(
                f"expected a certificate and its key in {pair.certificate}, but got {why}"
            ) from error
    return context
