"""An analysis that remembers: of each observation it says the lengths of all payloads of its course so far, as digits.

It is a package of an analysis as a worker process loads them (add_package puts it where that finds it), and
fails in the ways that real ones do: told by the payload.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fieldpost.errors import InvalidObservationError
from server.analyses import AnalysisInput, AnalysisResult, Followed, Stretch
from server.workers.jobs import STATE_BYTES_MAX, ModelKey

NAME = "digits"
VERSIONS = (1,)
INSTRUMENT_MODELS = frozenset({"any"})
MAX_BATCH = 8
DIGITS = ModelKey(NAME, 1)

SITE = "import server.analyses\nserver.analyses.__path__.append({folder!r})\n"


class Digits:
    """Payloads of 1, 2 and 3 bytes are answered by 1, 12 and 123, and then it knows b"123".

    Attributes:
        begin: What it knows at the start of a course.
    """

    name, instrument_models, max_batch = NAME, INSTRUMENT_MODELS, MAX_BATCH

    def __init__(self, version: int = 1, begin: bytes = b"") -> None:
        self.version, self.begin = version, begin

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        return [self._follow(Stretch(b"", [each])).results[0] for each in batch]

    def follow(self, stretches: Sequence[Stretch]) -> list[Followed]:
        return [self._follow(each) for each in stretches]

    def _follow(self, stretch: Stretch) -> Followed:
        state = stretch.state or self.begin
        results: list[AnalysisResult | Exception] = []
        for each in stretch.observations:
            if each.payload == b"unreadable":
                results.append(InvalidObservationError("expected digits"))
                continue
            misbehave(each.payload)
            state += str(len(each.payload)).encode()
            results.append(AnalysisResult(np.array([int(state)], np.int64), ()))
        is_swollen = any(each.payload == b"swollen" for each in stretch.observations)
        return Followed(results, b"9" * (STATE_BYTES_MAX + 1) if is_swollen else state)


def misbehave(payload: bytes) -> None:
    if payload == b"poison":
        raise ZeroDivisionError("poisoned")
    if payload == b"hungry":
        raise MemoryError("hungry")
    if payload == b"deadly":
        os.kill(os.getpid(), signal.SIGKILL)


def load(version: int) -> Digits:
    return Digits(version)


def load_trained(version: int, content: bytes) -> Digits:
    return Digits(version, content)


def add_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets worker processes that are started from now on find this analysis beside the built-in ones."""
    package = folder / NAME
    package.mkdir()
    (package / "__init__.py").write_text("from following_support import *\n")
    (folder / "sitecustomize.py").write_text(SITE.format(folder=str(folder)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(__file__).parent)]))
