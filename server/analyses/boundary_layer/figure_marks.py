"""What is drawn upon the backscatter of a time-height picture, one function for each thing. Knows no retrieval.

Told apart by brightness, width and shape first and by colour last, so that those who see no red and green read it too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from server.analyses.boundary_layer.classical.layers import FLAG_GOOD, FLAG_LOW
from server.analyses.boundary_layer.curtain import Curtain, break_at_gaps, medians_in_columns, to_cells
from server.analyses.boundary_layer.samples import (
    CLOUD_BASE,
    HEIGHT,
    LOWER,
    QUALITY,
    RESIDUAL_LAYER,
    SKY,
    STANDARD_ERROR,
    UPPER,
    Samples,
)

FEW_SAMPLES = 120
"""Up to here each sample is drawn with its standard error."""
TRUTH_COLOUR = "#ff3b30"
OTHER_COLOURS = ("#ffb000", "#fe6100", "#c8a2ff", "#ffd9ec")
SKY_COLOURS = {"clear": "#d9e8f5", "cloud": "#8c96a3", "rain": "#08519c", "fog": "#e08214"}
Nanos = NDArray[np.int64]


def draw_heights(axes: Axes, samples: Samples, column_nanos: Nanos) -> None:
    """The retrieved heights: a line in its 90 % interval where the version gives one, else points by their quality.

    Where there are few, no line would tell of a single one: points again, each with its interval or standard error.
    """
    if not samples.gives(HEIGHT):
        return
    if _has_interval(samples) and len(samples) > FEW_SAMPLES:
        _draw_line(axes, samples, column_nanos)
        return
    for flag, label in ((FLAG_GOOD, "retrieved mixing height"), (FLAG_LOW, "the same, of low quality")):
        if len(samples) <= FEW_SAMPLES:
            _draw_error_bars(axes, samples, flag, label)
        else:
            _draw_points(axes, samples, column_nanos, flag, label)


def _draw_line(axes: Axes, samples: Samples, column_nanos: Nanos) -> None:
    """A line within its interval; thin where the quality is low."""
    columns = [medians_in_columns(samples.unix_nanos, samples[name], column_nanos) for name in (HEIGHT, LOWER, UPPER)]
    nanos = break_at_gaps(column_nanos, columns[0])[0]
    height_km, lower_km, upper_km = (break_at_gaps(column_nanos, column)[1] / 1000 for column in columns)
    dates = to_dates(nanos)
    is_good = (samples[QUALITY] == FLAG_GOOD).astype(np.float32)
    is_good_column = break_at_gaps(column_nanos, medians_in_columns(samples.unix_nanos, is_good, column_nanos))[1]
    for chosen_km, width, label in (
        (np.where(is_good_column >= 0.5, height_km, np.nan), 1.4, "retrieved mixing height"),
        (height_km, 0.7, "the same, of low quality"),  # all of it: what is good lies upon it, and no point is lone
    ):
        casing = [withStroke(linewidth=width + 1.2, foreground="black")]
        axes.plot(dates, chosen_km, "w", linewidth=width, path_effects=casing, zorder=3.4 + width, label=label)
    axes.fill_between(dates, lower_km, upper_km, color="white", alpha=0.3, linewidth=0, zorder=3, label="90 % interval")
    for end_km in (lower_km, upper_km):
        axes.plot(dates, end_km, "w", linewidth=0.5, alpha=0.7, zorder=3)


def _draw_points(axes: Axes, samples: Samples, column_nanos: Nanos, flag: int, label: str) -> None:
    """One marker a column; good ones filled, others hollow."""
    height_m = np.where(samples[QUALITY] == flag, samples[HEIGHT], np.float32(np.nan))
    style = _marks("o", 2.6, "white", "black", 0.35) if flag == FLAG_GOOD else _marks("o", 2.6, "none", "#ffb3d9", 0.7)
    _draw_marks(axes, samples.unix_nanos, height_m, column_nanos, style | {"zorder": 3, "label": label})


def _draw_error_bars(axes: Axes, samples: Samples, flag: int, label: str) -> None:
    has_flag = samples[QUALITY] == flag
    if not has_flag.any():
        return
    height_m, error_m = samples[HEIGHT][has_flag], samples[STANDARD_ERROR][has_flag]
    lower_m, upper_m = height_m - error_m, height_m + error_m
    if _has_interval(samples):
        lower_m, upper_m = samples[LOWER][has_flag], samples[UPPER][has_flag]
    is_good = flag == FLAG_GOOD
    axes.errorbar(
        to_dates(samples.unix_nanos[has_flag]),
        height_m / 1000,
        yerr=np.stack([height_m - lower_m, upper_m - height_m]) / 1000,
        fmt="o",
        markersize=5,
        color="white" if is_good else "#ffb3d9",
        markerfacecolor="white" if is_good else "none",
        markeredgecolor="black" if is_good else "#ffb3d9",
        elinewidth=0.9,
        zorder=3,
        label=f"{label}, {'90 % interval' if _has_interval(samples) else 'standard error'}",
    )


def _has_interval(samples: Samples) -> bool:
    return samples.gives(LOWER) and samples.gives(UPPER)


def draw_other_heights(axes: Axes, samples: Samples, column_nanos: Nanos, name: str, number: int) -> None:
    """The heights of another version, as small points below the lines."""
    colour = OTHER_COLOURS[number % len(OTHER_COLOURS)]
    style = _marks("o", 2.6, colour, "black", 0.3) | {"zorder": 3.3, "label": name}
    _draw_marks(axes, samples.unix_nanos, samples[HEIGHT], column_nanos, style)


def draw_truth(axes: Axes, unix_nanos: Nanos, height_m: NDArray[np.float32], column_nanos: Nanos) -> None:
    """The height that is known to be true: a broad line, which what lies upon it does not hide."""
    nanos, height_m = break_at_gaps(column_nanos, medians_in_columns(unix_nanos, height_m, column_nanos))
    axes.plot(
        to_dates(nanos), height_m / 1000, color=TRUTH_COLOUR, linewidth=2.6, zorder=3.2, label="true mixing height"
    )


def draw_residual_layer(axes: Axes, samples: Samples, column_nanos: Nanos) -> None:
    """The top of the residual layer, where the version tells it."""
    style = _marks("_", 4, "none", "#7fe7ff", 1.2) | {"zorder": 2.8, "label": "top of the residual layer"}
    _draw_marks(axes, samples.unix_nanos, samples[RESIDUAL_LAYER], column_nanos, style)


def draw_cloud_bases(axes: Axes, samples: Samples, curtain: Curtain) -> None:
    """Cloud bases: the version's where it tells of them, else the instrument's own."""
    style = _marks("_", 5, "none", "black", 1.6) | {"zorder": 5, "label": "cloud base"}
    is_told = CLOUD_BASE in samples.columns
    nanos = samples.unix_nanos if is_told else curtain.column_nanos
    base_m = samples[CLOUD_BASE] if is_told else curtain.cloud_base_m
    shown_m = np.where(base_m < curtain.height_edges_m[-1], base_m, np.float32(np.nan))
    _draw_marks(axes, nanos, shown_m, curtain.column_nanos, style)


def draw_sky(axes: Axes, samples: Samples, column_nanos: Nanos) -> None:
    """The sky condition as a strip of colours; grey where nobody knows it."""
    number = np.full(len(column_nanos), np.nan, np.float32)
    for place, name in enumerate(SKY_COLOURS):
        is_class = samples.is_class(SKY, name).astype(np.float32)
        number[medians_in_columns(samples.unix_nanos, is_class, column_nanos) > 0.5] = place
    edges, cells = to_cells(column_nanos, number[:, None])
    axes.set_facecolor("0.85")
    axes.pcolormesh(
        to_dates(edges),
        [0, 1],
        np.ma.masked_invalid(cells.T),
        cmap=ListedColormap(list(SKY_COLOURS.values())),
        vmin=-0.5,
        vmax=len(SKY_COLOURS) - 0.5,
        rasterized=True,
    )
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.legend(
        handles=[Patch(color=colour, label=name) for name, colour in SKY_COLOURS.items()],
        loc="lower right",
        bbox_to_anchor=(1.0, 0.9),
        ncols=len(SKY_COLOURS),
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def to_dates(unix_nanos: Nanos) -> NDArray[np.datetime64]:
    """As matplotlib takes them."""
    return unix_nanos.astype("M8[ns]")


def _marks(marker: str, size: float, fill: str, edge: str, edge_width: float) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": marker,
        "markersize": size,
        "markerfacecolor": fill,
        "markeredgecolor": edge,
        "markeredgewidth": edge_width,
    }


def _draw_marks(
    axes: Axes, unix_nanos: Nanos, height_m: NDArray[np.float32], column_nanos: Nanos, style: dict[str, Any]
) -> None:
    """One mark a column; nothing, and no label, where there is no height at all."""
    medians_m = medians_in_columns(unix_nanos, height_m, column_nanos)
    if np.isfinite(medians_m).any():
        axes.plot(to_dates(column_nanos), medians_m / 1000, **style)
