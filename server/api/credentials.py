"""Finds out who calls over gRPC, and opens its ports with certificates that may be renewed while the server runs.

Knows what a certificate and a token look like to gRPC; what a caller may do stands in server.access.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from fieldpost.errors import FieldpostError, InvalidRequestError, OverloadedError, TryAgainError
from server.api.access import LOCAL, Caller, Role, UnknownCallerError, check_call
from server.api.access_file import AccessList, parse_access_file

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0
"""How soon an edited access file is heeded."""
STATION_KNOWN_S = 10.0
STATIONS_KEPT_MAX = 10_000

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where gRPC is served, and how it is secured; names as in the settings.

    Attributes:
        grpc_address: host:port; off loopback only with a certificate.
        grpc_cert_file: The server's certificate, with those between it and its authority.
        grpc_key_file: Its key.
        grpc_client_ca_file: Who connects to grpc_address shows a certificate of this authority.
        grpc_token_address: A second host:port, for callers with a token and no certificate.
        access_file: Who is a reader or an operator.
    """

    grpc_address: str
    grpc_cert_file: Path | None = None
    grpc_key_file: Path | None = None
    grpc_client_ca_file: Path | None = None
    grpc_token_address: str = ""
    access_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.grpc_cert_file is None) != (self.grpc_key_file is None):
            raise InvalidRequestError("expected grpc_cert_file and grpc_key_file together, but got only one of them")
        if self.grpc_cert_file is not None:
            if self.grpc_client_ca_file is None and self.access_file is None:
                raise InvalidRequestError(
                    "expected grpc_client_ca_file or access_file beside grpc_cert_file, but got neither",
                    hint="without them nobody could call: name who signs clients' certificates, or list tokens",
                )
            if self.grpc_token_address and self.grpc_client_ca_file is None:
                raise InvalidRequestError(
                    "expected grpc_client_ca_file beside grpc_token_address, but it is not set",
                    hint="without it grpc_address takes tokens itself: leave grpc_token_address out",
                )
            return
        if not is_loopback(self.grpc_address):
            raise InvalidRequestError(
                f"expected a loopback address as grpc_address, but got {self.grpc_address}, which others can reach",
                hint="set grpc_cert_file and grpc_key_file, and grpc_client_ca_file or access_file, to serve others",
            )
        if self.grpc_client_ca_file is not None or self.grpc_token_address or self.access_file is not None:
            raise InvalidRequestError(
                "expected grpc_cert_file and grpc_key_file beside grpc_client_ca_file, grpc_token_address and "
                "access_file, but they are not set",
                hint="certificates and tokens mean nothing in the clear",
            )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address such as "127.0.0.1:50051", "[::1]:0" or "unix:/run/x"."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Door:
    """Finds out who calls, and whether they may.

    Args:
        access_file: Who is a reader or an operator; None for nobody.
        is_station: Whether a station of this name is registered.
        is_secured: Whether the ports have TLS. Where they have not, everybody is at home on this machine.

    Raises:
        InvalidRequestError: The access file is missing or wrong.
    """

    def __init__(
        self, access_file: Path | None, is_station: Callable[[str], Awaitable[bool]], *, is_secured: bool
    ) -> None:
        self._file = access_file
        self._is_station = is_station
        self._is_secured = is_secured
        self._stations: dict[str, tuple[bool, float]] = {}
        self._file_state: object = None
        self._look_again = 0.0
        self._list = AccessList()
        self.revision = 0
        """Another number whenever the access file was read again."""
        if access_file is not None:
            self._file_state = _file_state(access_file)
            self._list = _read_access_file(access_file)

    async def admit(self, context: Context, method: str) -> Caller:
        """Lets a call pass; returns who calls.

        Raises:
            NotAllowedError: They may not, or (UnknownCallerError) nobody knows them.
            TryAgainError: The store cannot be asked; what is wrong with it is not for strangers.
        """
        caller = await self.find_caller(context)
        check_call(caller, method)
        return caller or Caller("", frozenset())  # of health: everybody may

    async def find_caller(self, context: Context) -> Caller | None:
        """Who calls; None where nobody knows. A token, where there is one, decides.

        Raises:
            UnknownCallerError: The token is not one of ours.
        """
        if not self._is_secured:
            return LOCAL
        self.look_again()
        token = _bearer_token(context)
        if token is not None:
            caller = self._list.find_token(token)
            if caller is None:
                raise UnknownCallerError("expected a token that this server knows, but got another")
            return caller
        name = next(iter(context.auth_context().get("x509_common_name", ())), b"").decode(errors="replace")
        if not name:
            return None
        roles = self._list.certificates.get(name, frozenset())
        if await self._is_registered(name):
            roles |= {Role.STATION}
        return Caller(name, roles)

    def look_again(self) -> None:
        """Reads the access file again where it has changed; a wrong one is told, and the last right one holds."""
        now = time.monotonic()
        if self._file is None or now < self._look_again:
            return
        self._look_again = now + LOOK_AGAIN_S
        state = _file_state(self._file)
        if state == self._file_state:
            return
        self._file_state = state
        try:
            self._list = _read_access_file(self._file)
        except InvalidRequestError as error:
            logger.error("access file refused; the last right one holds", extra={"error": str(error)})
            return
        self.revision += 1
        logger.info("access file read again", extra={"path": str(self._file)})

    async def _is_registered(self, name: str) -> bool:
        now = time.monotonic()
        is_registered, until = self._stations.get(name, (False, 0.0))
        if now >= until:
            if len(self._stations) >= STATIONS_KEPT_MAX:
                self._stations.clear()
            try:
                is_registered = await self._is_station(name)
            except TryAgainError as error:
                logger.error("nobody can be looked up", extra={"error": str(error)})
                raise TryAgainError("the server cannot find out who calls at this moment; call again later") from error
            self._stations[name] = is_registered, now + STATION_KNOWN_S
        return is_registered


def open_ports(server: grpc.aio.Server, listen: Listen) -> int:
    """Opens what is to be listened on; returns the port of grpc_address.

    Raises:
        InvalidRequestError: A certificate or key cannot be read.
        OverloadedError: An address is taken.
    """
    if listen.grpc_cert_file is None or listen.grpc_key_file is None:
        return _open(server, listen.grpc_address, None)
    files = (listen.grpc_cert_file, listen.grpc_key_file)
    credentials = _Certificates(*files, listen.grpc_client_ca_file).credentials()
    port = _open(server, listen.grpc_address, credentials)
    if listen.grpc_token_address:
        # One port cannot serve both: gRPC for Python either insists on a client's certificate or never asks for it.
        _open(server, listen.grpc_token_address, _Certificates(*files, None).credentials())
    return port


class _Certificates:
    """The server's certificate, read again when its files change: a renewal needs no restart."""

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
        self._files = (cert_file, key_file, client_ca_file)
        self._state = self._states()
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        fetch: Any = self._fetch  # gRPC's types do not know that None stands for no change
        return grpc.dynamic_ssl_server_credentials(self._first, fetch, self._files[2] is not None)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed; gRPC calls it before each handshake, from a thread of its own."""
        try:
            state = self._states()
            if state == self._state:
                return None
            changed = self._read()
            self._state = state
        except FieldpostError as error:  # between two renames: the next handshake looks again
            logger.error("certificate refused; the last right one holds", extra={"error": str(error)})
            return None
        logger.info("certificate read again", extra={"path": str(self._files[0])})
        return changed

    def _states(self) -> tuple[object, ...]:
        return tuple(None if each is None else _file_state(each) for each in self._files)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        cert, key, ca = (b"" if each is None else _read(each) for each in self._files)
        _check_pair(cert, key, self._files[0])
        return grpc.ssl_server_certificate_configuration([(key, cert)], ca or None)


def _check_pair(cert: bytes, key: bytes, where: Path) -> None:
    """Holds a key against its certificate: gRPC takes any two, and then refuses every handshake."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        is_pair = x509.load_pem_x509_certificate(cert).public_key() == load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"expected a PEM certificate in {where} and its key, but: {error}") from error
    if not is_pair:
        raise InvalidRequestError(f"expected the key of the certificate in {where}, but got another's")


def _open(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OverloadedError(
            f"gRPC cannot listen on {address}: {error}",
            hint="another program may use the port; choose another grpc_address",
        ) from error


def _bearer_token(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            scheme, _, token = (value if isinstance(value, str) else "").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None


def _read_access_file(path: Path) -> AccessList:
    return parse_access_file(_read(path).decode(errors="replace"), str(path))


def _file_state(path: Path) -> object:
    """Something that is another when the file is; a missing one has a state too."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"expected a file at {path}, but it cannot be read: {error.strerror}") from error
