"""Reads the file that says which certificates and tokens are readers and operators. Knows no connection.

[[readers]]
certificate = "institute"          # common name of a client certificate

[[operators]]
name = "anna"                      # stands in the history of models
token_sha256 = "9f86d081…"         # as `fieldpost-server token` prints it
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fieldpost.errors import InvalidRequestError
from server.api.access import Caller, Role

_Name = Annotated[str, Field(min_length=1, max_length=255)]


class _Certificate(BaseModel):
    model_config = ConfigDict(extra="forbid")
    certificate: _Name


class _Token(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: _Name
    token_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    readers: list[_Certificate | _Token] = []
    operators: list[_Certificate | _Token] = []


@dataclass(frozen=True, slots=True)
class AccessList:
    """Who is a reader or an operator.

    Attributes:
        certificates: Roles by common name.
        tokens: Callers by the SHA-256 of their tokens.
    """

    certificates: Mapping[str, frozenset[Role]] = field(default_factory=dict)
    tokens: Mapping[bytes, Caller] = field(default_factory=dict, repr=False)

    def find_token(self, token: str) -> Caller | None:
        """Whose token it is. Looks at every entry, so that the time taken tells nothing."""
        digest = token_digest(token)
        found = None
        for known, caller in self.tokens.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def parse_access_file(text: str, where: str) -> AccessList:
    """Reads the file's text.

    Raises:
        InvalidRequestError: It breaks a rule; the message names the place.
    """
    try:
        parsed = _File.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise InvalidRequestError(
            f"expected a list of readers and operators in {where}, but: {_words(error)}",
            hint='entries are [[readers]] or [[operators]] with certificate = "…", or with name and token_sha256',
        ) from error
    certificates: dict[str, frozenset[Role]] = {}
    tokens: dict[bytes, Caller] = {}
    sides: tuple[tuple[Role, list[_Certificate | _Token]], ...] = (
        (Role.READER, parsed.readers),
        (Role.OPERATOR, parsed.operators),
    )
    for role, entries in sides:
        for entry in entries:
            if isinstance(entry, _Certificate):
                certificates[entry.certificate] = certificates.get(entry.certificate, frozenset()) | {role}
            else:
                digest = bytes.fromhex(entry.token_sha256)
                before = tokens.get(digest, Caller(entry.name, frozenset()))
                if before.name != entry.name:
                    raise InvalidRequestError(
                        f"expected a token of its own for each name in {where}, "
                        f"but {before.name!r} and {entry.name!r} have the same",
                        hint="`fieldpost-server token` makes another",
                    )
                tokens[digest] = Caller(entry.name, before.roles | {role})
    return AccessList(certificates, tokens)


def _words(error: tomllib.TOMLDecodeError | ValidationError) -> str:
    """Where it is wrong. Without the values: some are the digests of tokens."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return str(error)


def token_digest(token: str) -> bytes:
    """What is kept of a token: who reads the file cannot use it."""
    return hashlib.sha256(token.encode()).digest()


def make_token(name: str, role: Literal["readers", "operators"]) -> tuple[str, str]:
    """A new token, and the entry that lets it in."""
    token = secrets.token_urlsafe(32)
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return token, f'[[{role}]]\nname = "{quoted}"\ntoken_sha256 = "{token_digest(token).hex()}"'
