"""Brings profiles of any number and grid onto about as many columns as a picture has pixels. Pure numpy.

Averages, and never interpolates over time: where nothing was measured, a gap stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldpost.telegrams import Profiles

LONE_PROFILE_NANOS = 15_000_000_000
"""How wide one profile is drawn that has no neighbour to tell the interval."""
GAP_STEPS = 3
"""Columns further apart than this many of their usual distance have a gap between them."""


@dataclass(frozen=True, slots=True)
class Curtain:
    """What pcolormesh wants.

    Attributes:
        time_edges_nanos: (cells + 1,), int64.
        height_edges_m: (rows + 1,), float64.
        beta: (cells, rows), float32, m-1 sr-1; NaN where nothing was measured. A gap is a cell of its own.
        column_nanos: (columns,), int64: mean time of each column of measurements, ascending.
        cloud_base_m: (columns,), float32: lowest cloud base in the column; NaN where there is none.
    """

    time_edges_nanos: NDArray[np.int64]
    height_edges_m: NDArray[np.float64]
    beta: NDArray[np.float32]
    column_nanos: NDArray[np.int64]
    cloud_base_m: NDArray[np.float32]


def make_curtain(profiles: Sequence[Profiles], top_m: float, column_count: int) -> Curtain:
    """Averages profiles into columns, and puts them onto the finest grid among them.

    Args:
        profiles: One or more, of one instrument, in any order of time.
        top_m: What is higher is left out.
        column_count: Roughly how many columns at most.
    """
    finest = min(profiles, key=lambda part: part.height_m[1] - part.height_m[0]).height_m
    height_m = finest[: max(2, int(np.searchsorted(finest, top_m)))]
    nanos = np.concatenate([part.unix_nanos for part in profiles])
    beta = np.concatenate([_onto(height_m, part) for part in profiles])
    base_m = np.concatenate([np.nan_to_num(part.lowest_cloud_base_m, nan=np.inf) for part in profiles])

    column = _columns(nanos, column_count)
    order = np.argsort(column, kind="stable")
    starts = np.flatnonzero(np.diff(column[order], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    first = nanos.min()
    column_nanos = first + np.add.reduceat(nanos[order] - first, starts) // counts
    valid = np.isfinite(beta)
    sums = np.add.reduceat(np.where(valid, beta, 0)[order], starts, axis=0)
    valid_counts = np.add.reduceat(valid[order].astype(np.float32), starts, axis=0)
    mean = np.where(valid_counts > 0, sums / np.maximum(valid_counts, 1), np.nan).astype(np.float32)
    lowest_m = np.minimum.reduceat(base_m[order], starts)
    edges, cells = to_cells(column_nanos, mean)
    step_m = height_m[1] - height_m[0]
    return Curtain(
        time_edges_nanos=edges,
        height_edges_m=np.append(height_m, height_m[-1] + step_m) - step_m / 2,
        beta=cells,
        column_nanos=column_nanos,
        cloud_base_m=np.where(np.isfinite(lowest_m), lowest_m, np.nan).astype(np.float32),
    )


def medians_in_columns(
    unix_nanos: NDArray[np.int64], values: NDArray[np.float32], column_nanos: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The median of the values that belong to each column: (columns,), float32; NaN where there are none.

    Args:
        unix_nanos: (samples,), ascending.
        values: (samples,).
        column_nanos: (columns,), ascending.
    """
    between = column_nanos[:-1] + np.diff(column_nanos) // 2
    parts = np.split(values, np.searchsorted(unix_nanos, between))
    return np.array([np.nanmedian(part) if np.isfinite(part).any() else np.nan for part in parts], np.float32)


def break_at_gaps(
    unix_nanos: NDArray[np.int64], values: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The same with a NaN in every gap, so that a line through the values ends there and starts again."""
    steps = np.diff(unix_nanos)
    if not len(steps):
        return unix_nanos, values
    after = np.flatnonzero(steps > GAP_STEPS * np.median(steps)) + 1
    return np.insert(unix_nanos, after, unix_nanos[after] - 1), np.insert(values, after, np.float32(np.nan))


def to_cells(
    column_nanos: NDArray[np.int64], columns: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Edges between columns half-way; where the next one is far, the column ends early and an empty cell follows.

    Args:
        column_nanos: (columns,), ascending.
        columns: (columns, rows).

    Returns:
        (cells + 1,) and (cells, rows).
    """
    steps = np.diff(column_nanos)
    usual = int(np.median(steps)) if len(steps) else LONE_PROFILE_NANOS
    edges = [int(column_nanos[0]) - usual // 2]
    cells = [columns[0]]
    empty = np.full(columns.shape[1], np.nan, np.float32)
    for step, time, column in zip(steps, column_nanos[1:], columns[1:], strict=True):
        if step > GAP_STEPS * usual:
            edges += [int(time - step) + usual // 2, int(time) - usual // 2]
            cells += [empty, column]
        else:
            edges.append(int(time - step // 2))
            cells.append(column)
    edges.append(int(column_nanos[-1]) + usual // 2)
    return np.array(edges, np.int64), np.array(cells)


def _columns(nanos: NDArray[np.int64], column_count: int) -> NDArray[np.int64]:
    """The column of each profile: one for each where they are few, else intervals of the whole span."""
    if len(np.unique(nanos)) <= column_count:
        return np.unique(nanos, return_inverse=True)[1].astype(np.int64)
    span = int(nanos.max() - nanos.min()) + 1
    column: NDArray[np.int64] = (nanos - nanos.min()) // (span // column_count + 1)
    return column


def _onto(height_m: NDArray[np.float64], part: Profiles) -> NDArray[np.float32]:
    """The backscatter at the nearest gate of each height: (times, rows); NaN above the highest gate."""
    if len(part.height_m) >= len(height_m) and np.array_equal(part.height_m[: len(height_m)], height_m):
        return part.beta[:, : len(height_m)]
    step_m = part.height_m[1] - part.height_m[0]
    nearest = np.rint((height_m - part.height_m[0]) / step_m).astype(np.int64)
    inside = (nearest >= 0) & (nearest < len(part.height_m))
    return np.where(inside, part.beta[:, nearest.clip(0, len(part.height_m) - 1)], np.float32(np.nan))
