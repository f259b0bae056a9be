"""Draws a held-out day: backscatter over time and height, the truth, and what versions say. Knows no version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from server.analyses.boundary_layer.retraining.days import KnownDay, join
from server.analyses.boundary_layer.scoring.simulated_courses import Heights

TOP_M = 3500.0
GATE_STRIDE, TIME_STRIDE = 3, 4
BACKSCATTER_LIMITS = (-7.5, -4.5)
"""Decadic logarithm of m-1 sr-1."""


def draw_day(path: Path, day: KnownDay, versions: Mapping[str, Heights]) -> None:
    """Draws a simulated day, as a PNG file."""
    profiles = join(day.observations)
    hours = (day.unix_s - day.unix_s[0]) / 3600
    gates = slice(0, int(np.searchsorted(profiles.height_m, TOP_M)), GATE_STRIDE)
    beta = profiles.beta[::TIME_STRIDE, gates]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    image = axes.pcolormesh(
        hours[::TIME_STRIDE],
        profiles.height_m[gates],
        np.log10(np.maximum(beta, 1e-9)).T,
        vmin=BACKSCATTER_LIMITS[0],
        vmax=BACKSCATTER_LIMITS[1],
        cmap="viridis",
        shading="nearest",
        rasterized=True,
    )
    for (name, heights), colour in zip(versions.items(), ("tab:orange", "tab:red"), strict=True):
        axes.plot(hours, heights.height_m, ".", markersize=2, color=colour, label=name)
    axes.plot(hours, day.true_m, color="white", linewidth=1.2, label="truth")
    axes.set_ylim(0, TOP_M)
    axes.set_xlabel("hours since solar noon")
    axes.set_ylabel("height, m")
    axes.legend(loc="upper right", facecolor="lightgrey", markerscale=4)
    figure.colorbar(image, label="log10 of the attenuated backscatter, m$^{-1}$ sr$^{-1}$")
    figure.savefig(path, dpi=100)
