"""Opens the SDK's client for a flow: to the server of the settings, or to another, with the command line's variables.

It knows no call.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from fieldpost import Client
from fieldpost._cli_options import connected
from server.settings import Settings

ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""A server that listens on all of its addresses is asked on its own machine."""


def open_client(settings: Settings, address: str = "") -> AbstractContextManager[Client]:
    """A client of the server.

    FIELDPOST_CERTIFICATES and FIELDPOST_TOKEN_FILE mean what they mean to `fieldpost`: a folder with ca.crt and,
    where the server wants to know who asks, client.crt and client.key; and a file that holds a token.

    Args:
        settings: Of the server.
        address: host:port; empty for the one of the settings.

    Raises:
        InvalidRequestError: A file that a variable names cannot be read.
    """
    host, separator, port = settings.grpc_address.rpartition(":")
    folder, token_file = os.environ.get("FIELDPOST_CERTIFICATES"), os.environ.get("FIELDPOST_TOKEN_FILE")
    return connected(
        address or f"{ANYWHERE.get(host, host)}{separator}{port}",
        Path(folder) if folder else None,
        Path(token_file) if token_file else None,
    )
