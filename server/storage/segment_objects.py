"""Segments as objects in an object store: Amazon S3 and what speaks like it, Google Cloud Storage, Azure.

Objects cannot be appended to, so each group commit is one object, sent in sync(). A PUT that has returned is durable,
and whole or not there at all. Where the objects lie is a URL, s3://bucket/prefix?endpoint=https://...; credentials are
never part of it: they come from the environment (AWS_ACCESS_KEY_ID and so on), from a profile or from the machine.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import obstore
import obstore.store
from obstore.exceptions import BaseError

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from server.storage.segments import Place

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SUFFIX = ".seg"
PIECE_BYTES = 8 * 1024 * 1024
"""Longer records are sent and read in pieces of this size, so that each has a time limit that means something."""
PIECES_AT_ONCE = 4
CLIENT: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
RETRY: RetryConfig = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
"""The writer waits meanwhile, and so does every sender: rather refuse soon, and let them send again."""
OPTIONS = {
    "s3": frozenset({"endpoint", "region", "virtual_hosted_style_request"}),
    "gs": frozenset(),
    "az": frozenset({"account_name", "endpoint"}),
}
"""What a URL may say. Everything else, credentials above all, the library takes from the environment."""

_EXAMPLE = "for example s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-central-1"


class ObjectWriter:
    """Gathers the records of a group commit and sends them as one object. One writer, one thread."""

    def __init__(self, objects: ObjectStore, label: str) -> None:
        self._objects = objects
        self._label = label
        self._name = ""
        self._records: list[bytes] = []
        self._end = 0

    def append(self, records: Sequence[bytes]) -> tuple[str, list[int]]:
        """Takes the records into the group's object; they are durable only after sync().

        Returns:
            The object's name, and the offset of each record in it.
        """
        if not self._records:
            self._name, self._end = _new_name(), 0
        *offsets, self._end = accumulate(map(len, records), initial=self._end)
        self._records.extend(records)
        return self._name, offsets

    def sync(self) -> None:
        """Sends what was gathered, and returns once the store has it.

        Raises:
            OSError: It does not take it. What was gathered is abandoned.
        """
        records, self._records = self._records, []
        if records:
            try:
                obstore.put(self._objects, self._name, b"".join(records), **pieces())
            except (BaseError, OSError) as error:
                raise OSError(f"{self._label} did not take a segment: {reason(error)}") from error

    def adopt(self, path: Path) -> str:
        """Sends a finished file as an object of its own, in pieces; the file stays. From any thread.

        Returns:
            The object's name, durable.

        Raises:
            OSError: The disk, or the object store.
        """
        name = _new_name()
        try:
            obstore.put(self._objects, name, path, **pieces())
        except BaseError as error:
            raise OSError(f"{self._label} did not take {path.name}: {reason(error)}") from error
        return name

    def close(self) -> None:
        """Abandons what was gathered and not sent."""
        self._records.clear()


class ObjectReader:
    """Reads records, from any thread, and removes objects."""

    def __init__(self, objects: ObjectStore, label: str) -> None:
        self._objects = objects
        self._label = label

    def read(self, place: Place) -> bytes:
        """The record's bytes.

        Raises:
            BrokenStateError: The object is missing or too short.
            TryAgainError: The object store does not answer.
        """
        return self._read(place.segment, place.offset, place.offset + place.length)

    def read_range(self, place: Place, offset: int, length: int) -> bytes:
        """Some of the record's bytes: from offset on, and fewer than length where the record ends.

        Raises:
            BrokenStateError: The object is missing or too short.
            TryAgainError: The object store does not answer.
        """
        return self._read(place.segment, *place.clip(offset, length))

    def _read(self, name: str, start: int, stop: int) -> bytes:
        pieces = [(at, min(at + PIECE_BYTES, stop)) for at in range(start, stop, PIECE_BYTES)]
        return b"".join(self._read_piece(name, *piece) for piece in pieces)

    def _read_piece(self, name: str, start: int, stop: int) -> bytes:
        try:
            content = bytes(obstore.get_range(self._objects, name, start=start, end=stop))
            size = start + len(content)
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except BaseError as error:
            size = self.length(name)  # a range past the end is an error like any other
            if size > start:
                raise self._offline(error) from error
            content = b""
        if len(content) != stop - start:
            raise BrokenStateError(
                f"expected {stop - start} bytes at offset {start} of segment {name}, but it has {size} in all",
                hint="the object was replaced; restore it from its backup, or the days concerned from the archive",
            )
        return content

    def length(self, name: str) -> int:
        """Bytes of an object.

        Raises:
            BrokenStateError: It is not there.
            TryAgainError: The object store does not answer.
        """
        try:
            return int(obstore.head(self._objects, name)["size"])
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except BaseError as error:
            raise self._offline(error) from error

    def _missing(self, name: str) -> BrokenStateError:
        return BrokenStateError(
            f"expected segment {name} in {self._label}, but it is not there",
            hint="restore the objects from their backup or older version, or the days concerned from the archive",
        )

    def _offline(self, error: Exception) -> TryAgainError:
        return TryAgainError(
            f"{self._label} did not answer: {reason(error)}",
            hint="check the network, the object store and the credentials in the server's environment",
        )

    def list_names(self, before_unix_s: float) -> Iterator[str]:
        """The objects that were written before an instant.

        Raises:
            TryAgainError: The object store does not answer.
        """
        try:
            for page in obstore.list(self._objects):
                for each in page:
                    if each["path"].endswith(SUFFIX) and each["last_modified"].timestamp() < before_unix_s:
                        yield each["path"]
        except BaseError as error:
            raise self._offline(error) from error

    def is_being_written(self, name: str) -> bool:
        """Never: an object is there as a whole or not at all."""
        return False

    def remove(self, name: str) -> None:
        """Removes an object; one that is gone already is no error.

        Raises:
            OSError: The object store does not answer.
        """
        try:
            with suppress(FileNotFoundError):
                obstore.delete(self._objects, name)
        except BaseError as error:
            raise OSError(f"{self._label} did not remove segment {name}: {reason(error)}") from error

    def close(self) -> None:
        """Nothing is held open."""


def open_objects(url: str) -> tuple[ObjectWriter, ObjectReader]:
    """Opens an object store by its URL, for segments.

    Raises:
        InvalidRequestError: The URL makes no sense, or says what it may not, a credential for example.
    """
    objects, label = connect(url)
    return ObjectWriter(objects, label), ObjectReader(objects, label)


def connect(url: str) -> tuple[ObjectStore, str]:
    """An object store by its URL, and what to call it; nothing is asked of it yet.

    Raises:
        InvalidRequestError: The URL makes no sense, or says what it may not, a credential for example.
    """
    parts = urlsplit(url)
    label = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    refused = sorted(options.keys() - OPTIONS[parts.scheme])
    if refused or "@" in parts.netloc:
        raise InvalidRequestError(
            f"expected a URL that says at most {', '.join(sorted(OPTIONS[parts.scheme])) or 'the place'}, "
            f"but {label} has {', '.join(refused) or 'a user name'}",
            hint="put the rest, credentials above all, into the environment, for S3 as AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY; {_EXAMPLE}",
        )
    is_plain = options.get("endpoint", "").startswith("http://")  # whoever writes that means it
    config: Any = options
    try:
        objects = obstore.store.from_url(
            label, config=config, client_options={**CLIENT, "allow_http": is_plain}, retry_config=RETRY
        )
    except (BaseError, ValueError) as error:
        raise InvalidRequestError(
            f"expected the URL of an object store, but {label} cannot be used: {reason(error)}", hint=_EXAMPLE
        ) from error
    return objects, label


def pieces() -> dict[str, Any]:
    """How a large object is sent."""
    return {"chunk_size": PIECE_BYTES, "max_concurrency": PIECES_AT_ONCE}


def _new_name() -> str:
    return f"{secrets.token_hex(8)}{SUFFIX}"


def reason(error: BaseException) -> str:
    """The library's own words, but for what follows a question mark in an address: Azure signs its requests there."""
    first_line = str(error).partition("\n")[0]
    return re.sub(r"\?\S*", "", first_line)
