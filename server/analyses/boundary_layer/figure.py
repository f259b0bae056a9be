"""Draws the time-height picture of one instrument: backscatter, and on it what was retrieved. Knows no retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError, InvalidRequestError
from fieldpost.sun import solar_elevation_deg
from server.analyses import AnalysisInput, AnalysisResult
from server.analyses.boundary_layer.curtain import Curtain, make_curtain
from server.analyses.boundary_layer.decoding.decode import decode
from server.analyses.boundary_layer.figure_marks import (
    draw_cloud_bases,
    draw_heights,
    draw_other_heights,
    draw_residual_layer,
    draw_sky,
    draw_truth,
    to_dates,
)
from server.analyses.boundary_layer.samples import CLOUD_BASE, HEIGHT, RESIDUAL_LAYER, SKY, Samples, collect

TOP_M, LOWEST_TOP_M = 4500.0, 2000.0
"""The picture reaches a third above the highest layer, within these: by winter all of them are low."""
COLUMN_COUNT = 900
"""About one column for each pixel of the picture."""
WEAKEST, STRONGEST = 1e-7, 2e-5
SUNRISE_DEG = -0.833
"""Elevation of the sun's centre when its upper limb is on the horizon, refraction included."""


def draw_time_height(
    path: Path,
    title: str,
    inputs: Sequence[AnalysisInput],
    results: Sequence[AnalysisResult | None],
    truth: tuple[NDArray[np.int64], NDArray[np.float32]] | None,
    others: Mapping[str, Sequence[AnalysisResult | None]],
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
    samples = collect(results)
    has_strip = samples.gives(SKY)

    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [0.035, 1] if has_strip else [1]
    *strips, axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_backscatter(figure, axes, curtain)
    draw_heights(axes, samples, curtain.column_nanos)  # in the order that the legend is to have
    if truth is not None:
        draw_truth(axes, *truth, curtain.column_nanos)
    for number, (name, other) in enumerate(others.items()):
        draw_other_heights(axes, collect(other), curtain.column_nanos, name, number)
    draw_residual_layer(axes, samples, curtain.column_nanos)
    draw_cloud_bases(axes, samples, curtain)
    for strip in strips:
        draw_sky(strip, samples, curtain.column_nanos)
    _mark_the_sun(axes, inputs, curtain)
    _label(axes, curtain, np.clip(_highest_layer_m(samples, truth) * 4 / 3, LOWEST_TOP_M, TOP_M))
    _add_legend(figure, axes)
    (strips or [axes])[0].set_title(title, loc="left", fontsize=11)
    figure.savefig(path, format="png")


def _draw_backscatter(figure: Figure, axes: Axes, curtain: Curtain) -> None:
    # what noise makes negative is weaker than the weakest colour; grey is kept for where nothing was measured
    shown = np.where(curtain.beta > 0, curtain.beta, WEAKEST / 10)
    shown = np.ma.masked_where(np.isnan(curtain.beta), shown)
    axes.set_facecolor("0.85")
    mesh = axes.pcolormesh(
        to_dates(curtain.time_edges_nanos),
        curtain.height_edges_m / 1000,
        shown.T,
        norm=LogNorm(WEAKEST, STRONGEST),
        cmap="viridis",
        rasterized=True,
    )
    bar = figure.colorbar(mesh, ax=axes, extend="both", pad=0.015, aspect=24)
    bar.set_label("attenuated backscatter (m$^{-1}$ sr$^{-1}$)")


def _mark_the_sun(axes: Axes, inputs: Sequence[AnalysisInput], curtain: Curtain) -> None:
    """Sunrise and sunset, where it is known where the instrument stands."""
    latitude_deg, longitude_deg = inputs[0].latitude_deg, inputs[0].longitude_deg
    if latitude_deg is None or longitude_deg is None:
        return
    first, last = curtain.time_edges_nanos[[0, -1]]
    nanos = np.linspace(first, last, 2000).astype(np.int64)
    is_up = solar_elevation_deg(nanos / 1e9, latitude_deg, longitude_deg) > SUNRISE_DEG
    for place in np.flatnonzero(np.diff(is_up)):
        axes.axvline(to_dates(nanos)[place], color="white", linewidth=0.8, linestyle=(0, (1, 3)), zorder=2.5)
        axes.annotate(
            "sunset" if is_up[place] else "sunrise",
            (to_dates(nanos)[place], 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            verticalalignment="top",
            color="white",
            fontsize=7.5,
        )


def _highest_layer_m(samples: Samples, truth: tuple[NDArray[np.int64], NDArray[np.float32]] | None) -> float:
    """Of what was retrieved or is true, but for a few stray heights; TOP_M where there is none."""
    layers = [samples[name] for name in (HEIGHT, RESIDUAL_LAYER, CLOUD_BASE)] + ([] if truth is None else [truth[1]])
    heights_m = np.concatenate(layers)
    found_m = heights_m[heights_m < TOP_M]
    return float(np.percentile(found_m, 99.5)) if len(found_m) else TOP_M


def _label(axes: Axes, curtain: Curtain, top_m: float) -> None:
    axes.set_ylabel("height above ground (km)")
    axes.set_ylim(0, min(top_m, curtain.height_edges_m[-1]) / 1000)
    start, end = to_dates(curtain.time_edges_nanos[[0, -1]])
    axes.set_xlim(start, end)
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=5, maxticks=13))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(DateFormatter(_tick_format(end - start), tz="UTC"))  # type: ignore[no-untyped-call]
    first, last = (str(day) for day in to_dates(curtain.column_nanos[[0, -1]]).astype("M8[D]"))
    axes.set_xlabel(f"time (UTC), {first}" + (f" to {last}" if last != first else ""))
    axes.tick_params(direction="out")


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Below the picture, so that it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=4,
            fontsize=8.5,
            facecolor="0.4",
            labelcolor="white",
            framealpha=1,
        )


def _tick_format(span: np.timedelta64) -> str:
    if span < np.timedelta64(8, "m"):
        return "%H:%M:%S"
    return "%H:%M" if span < np.timedelta64(36, "h") else "%d %b\n%H:%M"
