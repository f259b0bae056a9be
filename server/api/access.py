"""Who may call what: a table, and the rule that a station speaks for itself alone.

Knows no certificates, tokens, files or gRPC: server.credentials finds out who calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fieldpost.errors import NotAllowedError


class Role(StrEnum):
    """What a caller is to this server."""

    STATION = "station"
    READER = "reader"
    OPERATOR = "operator"


class UnknownCallerError(NotAllowedError):
    """Nobody knows who calls."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        name: Common name of the certificate, name of the token, or "local".
        roles: All that it is; without any it may do nothing.
    """

    name: str
    roles: frozenset[Role]


LOCAL = Caller("local", frozenset({Role.OPERATOR}))
"""Whoever calls over loopback without TLS: who can do that is at home on this machine."""

_SENDERS = frozenset({Role.STATION, Role.OPERATOR})
_READERS = frozenset({Role.READER, Role.OPERATOR})
_OPERATORS = frozenset({Role.OPERATOR})

EVERYBODY_MAY = ("/grpc.health.v1.Health/",)
"""Load balancers and supervisors ask for health, and have no certificates."""

# The first prefix that fits; a method that none fits is nobody's.
TABLE: tuple[tuple[str, frozenset[Role]], ...] = (
    ("/fieldpost.v1.Ingest/Send", _SENDERS),
    ("/fieldpost.v1.Ingest/Upload", _SENDERS),
    ("/fieldpost.v1.Observations/", _READERS),
    ("/fieldpost.v1.Predictions/Retry", _OPERATORS),
    ("/fieldpost.v1.Predictions/", _READERS),
    ("/fieldpost.v1.Inference/", _READERS),
    ("/fieldpost.v1.Archive/", _READERS),
    ("/fieldpost.v1.Capacity/", _READERS),
    ("/fieldpost.v1.Stations/Command", _OPERATORS),
    ("/fieldpost.v1.Stations/", _READERS),
    ("/fieldpost.v1.Models/List", _READERS),
    ("/fieldpost.v1.Models/Get", _READERS),
    ("/fieldpost.v1.Models/", _OPERATORS),
    ("/grpc.reflection.", _READERS),
)


def roles_for(method: str) -> frozenset[Role]:
    """The roles that may call a method, named as gRPC names it: "/package.Service/Method"."""
    return next((roles for prefix, roles in TABLE if method.startswith(prefix)), frozenset())


def check_call(caller: Caller | None, method: str) -> None:
    """Lets the call pass, or says no, and nothing that a stranger could use.

    Args:
        caller: Who calls; None where nobody knows.
        method: As roles_for takes it.

    Raises:
        UnknownCallerError: Nobody knows who calls.
        NotAllowedError: The caller may not do this.
    """
    if method.startswith(EVERYBODY_MAY):
        return
    if caller is None or not caller.roles:
        raise UnknownCallerError("expected a certificate or a token that this server knows, but got none of them")
    if not caller.roles & roles_for(method):
        raise NotAllowedError("expected a caller who may do this, but this one may not")


def check_sender(caller: Caller, stations: Iterable[str]) -> None:
    """Lets a station send what is its own; an operator may send for all.

    Raises:
        NotAllowedError: One of the observations is another station's.
    """
    if Role.OPERATOR in caller.roles:
        return
    for station in stations:
        if station != caller.name:
            raise NotAllowedError(
                f"expected observations of station {caller.name}, whose certificate this is, but got {station[:63]!r}",
                hint="a station sends with a certificate of its own name",
            )
