"""Replaces a damaged bag by the whole one of the other shelf. At every moment at least one whole bag has its name.

The whole one is only read. It is copied to a stage beside the damaged one and read back there; then the damaged one is
set aside under a name that nothing lists, and the new one is published. Whatever ends it in between, the next scrub
finds a damaged or missing bag, and a whole one. Knows no database.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from fieldpost.errors import BrokenStateError
from flows.bags.durable import HashedFile, digest_file, forget_cached
from server.archive.disk import sync
from server.archive.shelf import Shelf


class MendStep(StrEnum):
    """What has just been done; a run can end after any of them."""

    LOCKED = "locked"
    STAGED = "staged"
    READ_BACK = "read back"
    SET_ASIDE = "set aside"
    PUBLISHED = "published"
    RECORDED = "recorded"


OnStep = Callable[[MendStep], None]
"""Told after each step."""


def ignore_step(step: MendStep) -> None:
    """Does nothing."""


def mend(source: Shelf, target: Shelf, path: str, promised: dict[str, str], on_step: OnStep) -> str:
    """Brings a whole bag to the shelf on which it is damaged or missing; the lock of its instrument is held.

    Args:
        source: Where it is whole.
        target: Where it is not.
        path: The bag.
        promised: SHA-256 of each file, from the manifests of the whole one.
        on_step: See OnStep.

    Returns:
        The name under which the damaged one was set aside; empty where there was none.

    Raises:
        BrokenStateError: What was read, from the source or back from the stage, is not what was promised.
        TryAgainError: The storage refuses; the damaged bag is where it was, or set aside.
    """
    target.sweep(path.rsplit("/", 2)[0])
    with target.stage(path) as part:
        for name, sha256 in promised.items():
            _copy(source, path, name, sha256, part / name)
        for folder in (each for each in (*part.rglob("*"), part) if each.is_dir()):
            sync(folder)
        on_step(MendStep.STAGED)
        for name, sha256 in promised.items():
            _read_back(part / name, sha256)
        on_step(MendStep.READ_BACK)
        aside = target.set_aside(path) if target.list_files(path) else ""
        on_step(MendStep.SET_ASIDE)
        target.publish(part, path)
    on_step(MendStep.PUBLISHED)
    return aside


def _copy(source: Shelf, path: str, name: str, sha256: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with HashedFile(target) as file:
        for piece in source.read(path, name):
            file.write(piece)
    _compare(file.digest.sha256, sha256, f"{path}/{name} in {source.url}")


def _read_back(path: Path, sha256: str) -> None:
    forget_cached(path)
    _compare(digest_file(path).sha256, sha256, str(path))


def _compare(got: str, expected: str, where: str) -> None:
    if got != expected:
        raise BrokenStateError(
            f"expected SHA-256 {expected}, but got {got} ({where})",
            hint="the storage changes what it is given: look at its log; then run the flow scrub again",
        )
