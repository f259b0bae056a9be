"""An analysis whose every answer tells all that it was told before; it is a package of an analysis, too.

It chains: what it says of a payload is a digest of all payloads of the course up to it. One that was left out, repeated
or asked in another order changes everything after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from server_support import START_NANOS

from fieldpost.errors import InvalidObservationError
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable, Followed, Stretch
from server.workers.jobs import ModelKey

NAME = "chain"
VERSIONS = (1,)
INSTRUMENT_MODELS = frozenset({"cl31", "cl51"})
MAX_BATCH = 8
CHAIN = ModelKey(NAME, 1)
STEP_NANOS = 15 * 10**9
COURSE_NANOS = 10 * STEP_NANOS
POISON = b"poison"
COURSE_START = START_NANOS // COURSE_NANOS * COURSE_NANOS
"""Of a course whose observations are 0 to 9."""


def course_start(version: int, measure_unix_nanos: int, longitude_deg: float | None) -> int | None:
    """Ten observations make a course."""
    return measure_unix_nanos // COURSE_NANOS * COURSE_NANOS if version else None


class Chain:
    """A payload is the instant that it was measured at, a space, and what else it says."""

    name, version, instrument_models, max_batch = NAME, 1, INSTRUMENT_MODELS, MAX_BATCH

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        return [self._follow(Stretch(b"", [each])).results[0] for each in batch]

    def follow(self, stretches: Sequence[Stretch]) -> list[Followed]:
        return [self._follow(each) for each in stretches]

    def _follow(self, stretch: Stretch) -> Followed:
        state = stretch.state
        results: list[AnalysisResult | Exception] = []
        for each in stretch.observations:
            instant, _, said = each.payload.partition(b" ")
            if said == b"unreadable":
                results.append(InvalidObservationError("expected words"))
                continue
            if said == POISON:
                raise ZeroDivisionError("poisoned")
            state = hashlib.sha256(state + each.payload + str(each.measure_unix_nanos).encode()).digest()
            values = np.frombuffer(state[:4], np.uint8).astype(np.float32)
            variables = tuple(AnalysisVariable(f"digest_{i}", "1", values[i : i + 1]) for i in range(4))
            results.append(AnalysisResult(np.array([int(instant)], np.int64), variables))
        return Followed(results, state)


def load(version: int) -> Chain:
    assert version == 1
    return Chain()
