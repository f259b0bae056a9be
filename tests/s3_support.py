"""A real S3 server on a port of its own, which can go away and come back with what it held."""

from __future__ import annotations

import atexit
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.request import Request, urlopen

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import ObjectStore, S3Store

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester", "AWS_REGION": "us-east-1"}


class S3Server:
    """Amazon's protocol on the loopback, with one bucket at a time."""

    def __init__(self) -> None:
        self.port = 0
        self.bucket = ""
        self.is_running = False
        self.start()

    def make_bucket(self) -> None:
        """An empty bucket in the place of the one before."""
        self.bucket = f"bucket-{secrets.token_hex(4)}"
        urlopen(Request(f"{self.endpoint}/{self.bucket}", method="PUT")).close()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begins, or comes back on the same port, with what it held: moto keeps that in this process."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self.is_running = True

    def stop(self) -> None:
        """Goes away."""
        self._server.stop()
        self.is_running = False

    def url(self, prefix: str) -> str:
        """Segments below a prefix, as an operator writes it."""
        return f"s3://{self.bucket}/{prefix}?endpoint={self.endpoint}"

    def objects(self, prefix: str) -> ObjectStore:
        """The same, past our own code."""
        return S3Store(self.bucket, prefix=prefix, endpoint=self.endpoint, client_options={"allow_http": True})

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of each object below a prefix."""
        return {each["path"]: each["size"] for page in obstore.list(self.objects(prefix)) for each in page}


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A running server with an empty bucket, and credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server = _running_server()
    server.make_bucket()
    try:
        yield server
    finally:
        if not server.is_running:
            server.start()


@cache
def _running_server() -> S3Server:
    """One for all tests: it takes half a second to end."""
    server = S3Server()
    atexit.register(server.stop)
    return server
