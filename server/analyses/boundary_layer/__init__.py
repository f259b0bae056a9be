"""The analysis `boundary-layer-height`: from a ceilometer's backscatter to the depth of the boundary layer.

Importing this costs no torch, NetCDF or matplotlib; load and draw do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError
from server.analyses import Analysis, AnalysisInput, AnalysisResult
from server.analyses.boundary_layer.clock import course_start_nanos

if TYPE_CHECKING:
    from fieldpost.v1.prediction_pb2 import Prediction
    from server.cf import Site

NAME = "boundary-layer-height"
WAVELET, GRADIENT, VARIANCE, SHORTEST_PATH, LEARNED = 1, 2, 3, 4, 5
VERSIONS = (WAVELET, GRADIENT, VARIANCE, SHORTEST_PATH, LEARNED)
FIRST_TRAINED_VERSION = 1001
"""Versions below come with Fieldpost; those from here on were trained at a network, and are learned ones."""
REMEMBERING_VERSIONS = frozenset({VARIANCE, SHORTEST_PATH, LEARNED})
INSTRUMENT_MODELS = frozenset({"cl31", "cl51", "ct25k", "chm15k", "cl61"})
MAX_BATCH = 64
"""Measured (benchmarks/wavelet.py, one CPU thread): a batch of 64 runs ten times as many profiles a second as one by
one; 128 is within 4 % of it, and 512 runs fewer again."""
SHIPPED_WEIGHTS = Path(__file__).parent / "learned" / "weights.safetensors"


def load(version: int) -> Analysis:
    """Loads a version, in the process that will run it.

    Raises:
        InvalidRequestError: There is no such version.
    """
    if version == WAVELET:
        from server.analyses.boundary_layer.classical.wavelet_height import BoundaryLayerHeight

        return BoundaryLayerHeight()
    if version == GRADIENT:
        from server.analyses.boundary_layer.classical.gradient import GradientHeight

        return GradientHeight()
    if version == VARIANCE:
        from server.analyses.boundary_layer.classical.variance import VarianceHeight

        return VarianceHeight()
    if version == SHORTEST_PATH:
        from server.analyses.boundary_layer.classical.shortest_path import ShortestPathHeight

        return ShortestPathHeight()
    if version == LEARNED:
        return load_trained(version, SHIPPED_WEIGHTS.read_bytes())
    raise InvalidRequestError(f"expected a version of {NAME} among {VERSIONS}, but got {version}")


def load_trained(version: int, content: bytes) -> Analysis:
    """Loads a learned version from its weights, a safetensors file.

    Raises:
        InvalidRequestError: They are no such weights.
    """
    from server.analyses.boundary_layer.learned.retrieval import LearnedHeight
    from server.analyses.boundary_layer.learned.weights import Weights

    return LearnedHeight(Weights.from_bytes(content), version)


def course_start(version: int, measure_unix_nanos: int, longitude_deg: float | None) -> int | None:
    """The start of the course that an instant belongs to, nanoseconds since 1970; None where a version forgets."""
    if version in REMEMBERING_VERSIONS or version >= FIRST_TRAINED_VERSION:
        return course_start_nanos(measure_unix_nanos, longitude_deg)
    return None


def draw(
    path: Path,
    title: str,
    inputs: Sequence[AnalysisInput],
    results: Sequence[AnalysisResult | None],
    truth: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None,
    others: Mapping[str, Sequence[AnalysisResult | None]] = MappingProxyType({}),
) -> None:
    """Draws backscatter over time and height with the retrieved heights, as a PNG file.

    Args:
        path: Where to write it.
        title: What stands above it.
        inputs: The observations of one instrument, in any order; those that cannot be decoded are left out.
        results: The result of each, or None where there is none.
        truth: Where it is known: instants (times,), nanoseconds since 1970 UTC, and heights (times,), m.
        others: What other versions say of the same observations, by the name that the legend has for them.

    Raises:
        InvalidRequestError: There is nothing to draw.
    """
    from server.analyses.boundary_layer.figure import draw_time_height

    draw_time_height(path, title, inputs, results, truth, others)


def write_products(
    folder: Path, site: Site, version: int, day: date, predictions: Iterable[Prediction], history: str
) -> list[Path]:
    """Writes 10-minute and hourly heights of a UTC day as CF-NetCDF, beside its predictions in a bag.

    Args:
        folder: Where to.
        site: Which instrument.
        version: The model version that made the predictions.
        day: Which.
        predictions: All of the day.
        history: For the first line of each file's history.

    Returns:
        The files; none where nothing was found.

    Raises:
        TryAgainError: The disk refuses.
    """
    from server.analyses.boundary_layer.products.netcdf_file import write_products as write

    return write(folder, site, version, day, predictions, history)
