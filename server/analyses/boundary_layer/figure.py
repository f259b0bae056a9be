"""Draws the time-height picture of one instrument: backscatter, retrieved heights, cloud bases. Knows no retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError, InvalidRequestError
from server.analyses import AnalysisInput, AnalysisResult
from server.analyses.boundary_layer.curtain import Curtain, average_in_time, break_at_gaps, make_curtain
from server.analyses.boundary_layer.decode import decode
from server.analyses.boundary_layer.layers import FLAG_GOOD, FLAG_LOW

TOP_M = 4500.0
COLUMN_COUNT = 900
"""About one column for each pixel of the picture."""
WEAKEST, STRONGEST = 1e-7, 2e-5
FEW_SAMPLES = 120
"""Up to here each sample is drawn with its standard error."""


@dataclass(frozen=True, slots=True)
class _Heights:
    """Retrieved heights, each (samples,), in order of time."""

    unix_nanos: NDArray[np.int64]
    height_m: NDArray[np.float32]
    error_m: NDArray[np.float32]
    flag: NDArray[np.float32]


def draw_time_height(
    path: Path,
    title: str,
    inputs: Sequence[AnalysisInput],
    results: Sequence[AnalysisResult | None],
    truth: tuple[NDArray[np.int64], NDArray[np.float32]] | None,
) -> None:
    """Draws the picture; see boundary_layer.draw."""
    profiles = []
    for observation in inputs:
        try:
            profiles.append(decode(observation))
        except InvalidObservationError:
            continue  # it has its failure stored beside it; here it is a gap
    if not profiles:
        raise InvalidRequestError(
            f"expected one observation or more that can be decoded, but got none of {len(inputs)}"
        )
    curtain = make_curtain(profiles, TOP_M, COLUMN_COUNT)

    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_backscatter(figure, axes, curtain)
    _draw_cloud_bases(axes, curtain)
    if truth is not None:
        nanos, height_m = break_at_gaps(*average_in_time(truth[0], truth[1], curtain.column_nanos))
        axes.plot(_dates(nanos), height_m / 1000, color="#ff3b30", linewidth=1.4, label="true mixing height")
    heights = _collect(results)
    _draw_heights(axes, heights, curtain.column_nanos, FLAG_LOW, "boundary-layer height, low quality")
    _draw_heights(axes, heights, curtain.column_nanos, FLAG_GOOD, "boundary-layer height, good")
    _label(axes, title, curtain)
    figure.savefig(path, format="png")


def _draw_backscatter(figure: Figure, axes: Axes, curtain: Curtain) -> None:
    # what noise makes negative is weaker than the weakest colour; grey is kept for where nothing was measured
    shown = np.where(curtain.beta > 0, curtain.beta, WEAKEST / 10)
    shown = np.ma.masked_where(np.isnan(curtain.beta), shown)
    axes.set_facecolor("0.85")
    mesh = axes.pcolormesh(
        _dates(curtain.time_edges_nanos),
        curtain.height_edges_m / 1000,
        shown.T,
        norm=LogNorm(WEAKEST, STRONGEST),
        cmap="viridis",
        rasterized=True,
    )
    bar = figure.colorbar(mesh, ax=axes, extend="both", pad=0.015, aspect=24)
    bar.set_label("attenuated backscatter (m$^{-1}$ sr$^{-1}$)")


def _draw_cloud_bases(axes: Axes, curtain: Curtain) -> None:
    has_base = np.isfinite(curtain.cloud_base_m) & (curtain.cloud_base_m < TOP_M)
    if has_base.any():
        axes.plot(
            _dates(curtain.column_nanos)[has_base],
            curtain.cloud_base_m[has_base] / 1000,
            linestyle="none",
            marker="_",
            markersize=5,
            markeredgewidth=1.6,
            color="black",
            zorder=4,
            label="cloud base",
        )


def _draw_heights(axes: Axes, heights: _Heights, column_nanos: NDArray[np.int64], flag: int, label: str) -> None:
    """One marker a column and quality; with error bars where there are few. Good ones filled, others hollow."""
    has_flag = heights.flag == flag
    nanos, height_m, error_m = (x[has_flag] for x in (heights.unix_nanos, heights.height_m, heights.error_m))
    if not len(nanos):
        return
    is_good = flag == FLAG_GOOD
    fill, edge = ("white", "black") if is_good else ("none", "#ffb3d9")
    if len(heights.flag) <= FEW_SAMPLES:
        axes.errorbar(
            _dates(nanos),
            height_m / 1000,
            yerr=error_m / 1000,
            fmt="o",
            markersize=5,
            color=edge if not is_good else "white",
            markerfacecolor=fill,
            markeredgecolor=edge,
            elinewidth=0.9,
            label=label,
        )
        return
    nanos, height_m = average_in_time(nanos, height_m, column_nanos)
    axes.plot(
        _dates(nanos),
        height_m / 1000,
        linestyle="none",
        marker="o",
        markersize=2.6,
        markeredgewidth=0.35 if is_good else 0.7,
        markerfacecolor=fill,
        markeredgecolor=edge,
        label=label,
    )


def _label(axes: Axes, title: str, curtain: Curtain) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_ylabel("height above ground (km)")
    axes.set_ylim(0, curtain.height_edges_m[-1] / 1000)
    start, end = _dates(curtain.time_edges_nanos[[0, -1]])
    axes.set_xlim(start, end)
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=5, maxticks=13))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(DateFormatter(_tick_format(end - start), tz="UTC"))  # type: ignore[no-untyped-call]
    first, last = (str(day) for day in _dates(curtain.column_nanos[[0, -1]]).astype("M8[D]"))
    axes.set_xlabel(f"time (UTC), {first}" + (f" to {last}" if last != first else ""))
    axes.tick_params(direction="out")
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(loc="upper right", fontsize=8, framealpha=0.75, facecolor="0.35", labelcolor="white")
        legend.set_zorder(5)


def _tick_format(span: np.timedelta64) -> str:
    if span < np.timedelta64(8, "m"):
        return "%H:%M:%S"
    return "%H:%M" if span < np.timedelta64(36, "h") else "%d %b\n%H:%M"


def _collect(results: Sequence[AnalysisResult | None]) -> _Heights:
    """The samples of all results, in order of time."""
    kept = [result for result in results if result is not None]
    if not kept:
        nothing = np.empty(0, np.float32)
        return _Heights(np.empty(0, np.int64), nothing, nothing, nothing)
    nanos = np.concatenate([result.sample_unix_nanos for result in kept])
    order = np.argsort(nanos, kind="stable")
    height_m, error_m, flag = (
        np.concatenate([_values(result, name) for result in kept])[order]
        for name in (
            "atmosphere_boundary_layer_thickness",
            "atmosphere_boundary_layer_thickness_standard_error",
            "quality_flag",
        )
    )
    return _Heights(nanos[order], height_m, error_m, flag)


def _values(result: AnalysisResult, name: str) -> NDArray[np.float32]:
    """A variable of a result; NaN where another version does not give it."""
    for variable in result.variables:
        if variable.name == name:
            return variable.values
    return np.full(len(result.sample_unix_nanos), np.nan, np.float32)


def _dates(unix_nanos: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return unix_nanos.astype("M8[ns]")
