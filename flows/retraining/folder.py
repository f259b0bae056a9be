"""The folder of a run of the retrain flow: each step leaves a file, and a run that was ended is taken up where it was.

A file has its final name only when it is whole, so that its being there is the record that its step is done. Knows
no step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.archive.disk import locked, remove_folder, sync

REQUEST, LOCK, UNFINISHED = "request.json", ".lock", "unfinished"


@contextmanager
def open_run(home: Path, request: Mapping[str, object], fresh: Mapping[str, object], *, afresh: bool) -> Iterator[Path]:
    """The folder of the one run that is at work: that of an ended run with the same request, or a new one.

    Args:
        home: Where the runs of an analysis lie.
        request: What makes a run the same.
        fresh: What a new run adds to it; one that is taken up keeps what it had.
        afresh: Whether an ended run is not to be taken up.

    Raises:
        TryAgainError: Another run is at work.
    """
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / LOCK, 0.0):
        folder = home / UNFINISHED
        known = read_json(folder / REQUEST) if (folder / REQUEST).exists() else {}
        if afresh or {key: known.get(key) for key in request} != json.loads(json.dumps(request)):
            remove_folder(folder)
            folder.mkdir()
            make_json(folder / REQUEST, lambda: {**request, **fresh})
        yield folder


def finish(folder: Path, name: str) -> Path:
    """Gives the folder of a run that is over its name; one of that name, of the same result, is replaced."""
    final = folder.with_name(name)
    remove_folder(final)
    folder.rename(final)
    sync(final.parent)
    return final


def make_file(path: Path, write: Callable[[Path], None]) -> Path:
    """Lets a file be written where it is not there yet."""
    if not path.exists():
        part = path.with_name(f".part-{path.name}")  # its suffix stays: some libraries go by it
        write(part)
        sync(part)
        part.replace(path)
        sync(path.parent)
    return path


def make_json(path: Path, make: Callable[[], object]) -> Any:
    """What a step found, as JSON gives it back; from its file where it is there."""

    def write(part: Path) -> None:
        part.write_text(json.dumps(make(), indent=1))

    return read_json(make_file(path, write))


def read_json(path: Path) -> Any:
    """What make_json has written."""
    return json.loads(path.read_text())
