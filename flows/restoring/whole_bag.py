"""Opens a bag once every byte of it was read and found as recorded; its copy, where the bag itself is damaged.

Knows shelves and files; nothing of what becomes of the bag.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from flows.bags.reading import BagReader, check_files
from server.archive.bags import BagRecord
from server.archive.shelf import Shelf

MAIN, COPY = "archive", "copy"


@dataclass(frozen=True, slots=True)
class WholeBag:
    """A bag that is as it was recorded.

    Attributes:
        reader: Reads it.
        place: MAIN or COPY: where it was whole.
        file_count: How many files were compared with their SHA-256.
        version: Of the bag.
    """

    reader: BagReader
    place: str
    file_count: int
    version: int


@contextmanager
def open_whole(shelf: Shelf, copy: Shelf | None, bag: BagRecord) -> Iterator[WholeBag]:
    """A bag that may be trusted, for as long as the block lasts.

    Raises:
        BrokenStateError: It is damaged or missing, in both places.
        TryAgainError: Likewise, or one of the places does not answer.
    """
    errors: list[FieldpostError] = []
    with ExitStack() as stack:
        for place, each in ((MAIN, shelf), (COPY, copy)):
            if each is None:
                continue
            try:
                folder = stack.enter_context(each.open(bag.path))
                file_count = check_files(folder, bag.manifest_sha256)
                whole = WholeBag(BagReader(folder), place, file_count, bag.version)
            except (BrokenStateError, TryAgainError) as error:
                errors.append(error)
                continue
            yield whole
            return
    if len(errors) == 1:
        raise errors[0]
    kind = BrokenStateError if all(isinstance(each, BrokenStateError) for each in errors) else TryAgainError
    raise kind(f"{errors[0]}; nor is its copy whole: {errors[1]}", hint=errors[0].hint) from errors[0]
