"""The analysis `boundary-layer-height`: from a ceilometer's backscatter to the depth of the boundary layer.

Importing this costs no torch, NetCDF or matplotlib; load and draw do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError
from server.analyses import Analysis, AnalysisInput, AnalysisResult

NAME = "boundary-layer-height"
VERSIONS = (1,)
INSTRUMENT_MODELS = frozenset({"cl31", "cl51", "ct25k", "chm15k", "cl61"})
MAX_BATCH = 64
"""Measured (benchmarks/wavelet.py, one CPU thread): a batch of 64 runs ten times as many profiles a second as one by
one; 128 is within 4 % of it, and 512 runs fewer again."""


def load(version: int) -> Analysis:
    """Loads a version, in the process that will run it.

    Raises:
        InvalidRequestError: There is no such version.
    """
    if version not in VERSIONS:
        raise InvalidRequestError(f"expected a version of {NAME} among {VERSIONS}, but got {version}")
    from server.analyses.boundary_layer.analysis import BoundaryLayerHeight

    return BoundaryLayerHeight()


def draw(
    path: Path,
    title: str,
    inputs: Sequence[AnalysisInput],
    results: Sequence[AnalysisResult | None],
    truth: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None,
) -> None:
    """Draws backscatter over time and height with the retrieved heights, as a PNG file.

    Args:
        path: Where to write it.
        title: What stands above it.
        inputs: The observations of one instrument, in any order; those that cannot be decoded are left out.
        results: The result of each, or None where there is none.
        truth: Where it is known: instants (times,), nanoseconds since 1970 UTC, and heights (times,), m.

    Raises:
        InvalidRequestError: There is nothing to draw.
    """
    from server.analyses.boundary_layer.figure import draw_time_height

    draw_time_height(path, title, inputs, results, truth)
