"""The methods that the benchmark holds against each other: each a course in, heights beside the truth out.

Most are versions of the analysis. Two are not: the median over ten minutes of the wavelet version, as networks use it,
and the shortest path with the whole day at hand. Knows no score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from time import process_time
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.analyses import Analysis
from server.analyses.boundary_layer import GRADIENT, LEARNED, SHORTEST_PATH, VARIANCE, WAVELET, load
from server.analyses.boundary_layer.classical.shortest_path import ShortestPathHeight
from server.analyses.boundary_layer.scoring.metrics import NORMAL_90, Compared
from server.analyses.boundary_layer.scoring.simulated_courses import SimulatedCourse, beside_truth, compare, retrieve

NAMES: Mapping[int, str] = MappingProxyType(
    {
        WAVELET: "wavelet",
        GRADIENT: "gradient",
        VARIANCE: "variance",
        SHORTEST_PATH: "shortest_path",
        LEARNED: "learned",
    }
)
MEDIAN_S = 600.0
MEDIAN_LEAST_SHARE = 0.5
WAVELET_MEDIAN, WHOLE_DAY_PATH = "wavelet_10_min_median", "shortest_path_whole_day"


class Found(NamedTuple):
    """What a method says of a course, and the processor time that it took."""

    compared: Compared
    cpu_s: float


Method = Callable[[SimulatedCourse], dict[str, Found]]
"""Some methods share their work, so one call may answer for several, by name."""


def methods_of(versions: Iterable[int]) -> list[Method]:
    """The versions, and what is made of them."""
    found: list[Method] = []
    for version in versions:
        analysis = load(version)
        found.append(partial(_by_version, analysis, NAMES[version]))
        if isinstance(analysis, ShortestPathHeight):
            found.append(partial(_whole_day, analysis))
    return found


def trailing_median(unix_s: NDArray[np.float64], heights: Compared) -> Compared:
    """The median of the heights of the last ten minutes, where at least half of these have one.

    Its standard error is the median of theirs: errors of neighbours are alike, so it does not shrink with their number.
    """
    columns = np.stack([heights.found_m, (heights.upper_m - heights.lower_m) / 2, heights.flag])
    medians = np.full_like(columns, np.nan)
    first = np.searchsorted(unix_s, unix_s - MEDIAN_S, side="right")
    for last, start in enumerate(first.tolist()):
        recent = columns[:, start : last + 1]
        there = np.isfinite(recent[0])
        if there.mean() >= MEDIAN_LEAST_SHARE:
            medians[:, last] = np.median(recent[:, there], axis=1)
    found_m, reach_m, flag = medians
    return replace(
        heights, found_m=found_m, lower_m=found_m - reach_m, upper_m=found_m + reach_m, flag=np.nan_to_num(flag)
    )


def _by_version(analysis: Analysis, name: str, course: SimulatedCourse) -> dict[str, Found]:
    results, cpu_s = retrieve(analysis, course)
    compared = compare(course, results)
    if name != NAMES[WAVELET]:
        return {name: Found(compared, cpu_s)}
    before_s = process_time()
    median = trailing_median(course.unix_s, compared)
    return {name: Found(compared, cpu_s), WAVELET_MEDIAN: Found(median, cpu_s + process_time() - before_s)}


def _whole_day(analysis: ShortestPathHeight, course: SimulatedCourse) -> dict[str, Found]:
    before_s = process_time()
    layers = analysis.find_path(course.observations, *course.site)
    cpu_s = process_time() - before_s
    found_m, error_m, flag = (
        column.astype(np.float64) for column in (layers.height_m, layers.standard_error_m, layers.flag)
    )
    compared = beside_truth(course, found_m, found_m - NORMAL_90 * error_m, found_m + NORMAL_90 * error_m, flag)
    return {WHOLE_DAY_PATH: Found(compared, cpu_s)}
