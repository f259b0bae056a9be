"""Draws averaged heights over what they were made of, and says where a rule left a gap. Knows no backscatter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from server.analyses.boundary_layer.products.cells import IN_ANY_SKY, NANOS, Cells, Product
from server.analyses.boundary_layer.products.retrievals import CLOUD_BASE, MIXING_HEIGHT, RESIDUAL_LAYER, Retrievals
from server.analyses.boundary_layer.products.rules import Reason

LOWEST_TOP_M = 2000.0
STANDARD_ERRORS = 1.645
"""Half the width of the central 90 % of a normal distribution."""
STRIPES = (
    (Reason.RAIN, "#2166ac"),
    (Reason.FOG, "#8073ac"),
    (Reason.CLOUD, "#67a9cf"),
    (Reason.SPREAD, "#d6604d"),
    (Reason.LOW_QUALITY, "#f4a582"),
    (Reason.NO_LAYER, "#bababa"),
    (Reason.MISSING, "#404040"),
)
"""A cell without a value is drawn once for each of its reasons, in rows below the picture."""


def draw_products(path: Path, title: str, product: Product, found: Retrievals) -> None:
    """Draws the cells, and below them why some have no value, as a PNG file.

    Args:
        path: Where to.
        title: What stands above it.
        product: The cells.
        found: What they were made of.
    """
    figure = Figure(figsize=(11, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    starts = product.start_unix_nanos
    ends = np.append(starts, starts[-1] + product.cell_s * NANOS)
    _draw_profiles(upper, found, product)
    _draw_cells(upper, ends, product.heights[MIXING_HEIGHT], "black", "mixing height, 90 % interval of the mean")
    for name, colour, label in (
        (RESIDUAL_LAYER, "#b2182b", "residual layer"),
        (CLOUD_BASE, "#4393c3", "cloud base"),
    ):
        if name in product.heights:
            _draw_cells(upper, ends, product.heights[name], colour, label)
    _draw_reasons(lower, ends, product.heights[MIXING_HEIGHT].reasons)
    highest_m = np.nanmax([LOWEST_TOP_M, *product.heights[MIXING_HEIGHT + IN_ANY_SKY].mean_m * 1.3])
    upper.set_ylim(0, highest_m / 1000)
    upper.set_ylabel("height above ground (km)")
    upper.set_title(title, loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    lower.xaxis.set_major_locator(locator)
    lower.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz="UTC"))  # type: ignore[no-untyped-call]
    lower.set_xlabel("time (UTC)")
    lower.set_xlim(*_dates(ends[[0, -1]]))
    figure.savefig(path, format="png")


def _draw_profiles(axes: Axes, found: Retrievals, product: Product) -> None:
    axes.plot(
        _dates(found.unix_nanos),
        found.heights_m[MIXING_HEIGHT] / 1000,
        ".",
        markersize=2,
        markeredgewidth=0,
        color="#fdae61",
        rasterized=True,
        label="single profiles, any sky",
    )
    in_any_sky = product.heights[MIXING_HEIGHT + IN_ANY_SKY]
    middle = product.start_unix_nanos + product.cell_s * NANOS // 2
    axes.plot(_dates(middle), in_any_sky.mean_m / 1000, "_", color="#e08214", markersize=5, label="their mean")


def _draw_cells(axes: Axes, ends: NDArray[np.int64], cells: Cells, colour: str, label: str) -> None:
    """Steps, with a band where the standard error is known."""
    axes.stairs(cells.mean_m / 1000, _dates(ends), baseline=None, color=colour, linewidth=1.5, label=label, zorder=3)
    if np.isfinite(cells.standard_error_m).any():
        half_m = STANDARD_ERRORS * cells.standard_error_m
        lower, upper = ((cells.mean_m + sign * half_m) / 1000 for sign in (-1, 1))
        axes.stairs(upper, _dates(ends), baseline=lower, fill=True, color=colour, alpha=0.18)


def _draw_reasons(axes: Axes, ends: NDArray[np.int64], reasons: NDArray[np.int16]) -> None:
    for row, (reason, colour) in enumerate(STRIPES):
        top = np.where(reasons & reason, row + 0.4, np.nan)
        axes.stairs(top, _dates(ends), baseline=row - 0.4, fill=True, color=colour)
    axes.set_ylim(len(STRIPES) - 0.5, -0.5)
    axes.set_yticks(range(len(STRIPES)), [str(reason.name).lower().replace("_", " ") for reason, _ in STRIPES])
    axes.tick_params(axis="y", labelsize=7, length=0)
    axes.set_title("why there is no mixing height", loc="left", fontsize=8)


def _dates(unix_nanos: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return unix_nanos.astype("M8[ns]")
