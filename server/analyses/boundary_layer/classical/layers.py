"""Chooses, among the edges of a profile, the top of the layer in contact with the ground. Pure: numbers in and out.

Each profile is judged by itself: no time of day, no neighbours. So it cannot know that a layer has just collapsed below
a residual layer that still looks the same, and takes the residual layer for it; this costs most of its error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float32]

FLAG_NONE, FLAG_LOW, FLAG_GOOD = 0, 1, 2
MIN_SIGNIFICANCE = 4.0
"""An edge counts if W exceeds its noise so many times. Noise alone does so somewhere in one profile of 70 (measured on
pure noise, 400 gates of 10 m)."""
GOOD_SIGNIFICANCE = 6.0
MIN_CONTRAST = 0.1
"""An edge counts if W is at least this share of the mean backscatter below it, that is, if it takes away a fifth: faint
strata within a layer do not."""
MIN_SHARE_OF_STRONGEST = 0.4
"""The lowest edge wins that has this share of the strongest one's W, after the noise is taken off both: below a
residual layer the stable layer wins, and a stratum within the mixing layer does not. These four were
chosen on simulated days (seeds 101 to 106)."""
HIGHEST_CLOUD_TOPPED_M = 3000.0
"""Cumulus and stratocumulus below this sit on the boundary layer; higher clouds say nothing about it."""
NOISE_LENGTH_M = 300.0
SPREAD_SHARE = 0.7
"""Standard error**2 = (NOISE_LENGTH_M / significance)**2 + (SPREAD_SHARE * spread among dilations)**2 + gate**2 / 12.
With these two numbers about 70 % of the edges that are the right ones lie within one standard error of the truth on
simulated days, whatever their significance; the first is what noise does to the place of a maximum."""
CLOUD_ERROR_SHARE = 0.1
"""Standard error of a height that is a cloud's base, as a share of it: cumulus bases scatter by this much about the
mixing height."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The edges of each profile, the lowest first; each attribute (profiles, edges), NaN where there are fewer.

    Attributes:
        height_m: Above the ground.
        strength: W, m-1 sr-1.
        noise: Standard deviation of W, m-1 sr-1.
        level: Mean backscatter below the edge, m-1 sr-1.
        spread_m: Standard deviation of the height among the dilations.
    """

    height_m: Column
    strength: Column
    noise: Column
    level: Column
    spread_m: Column


@dataclass(frozen=True, slots=True)
class Sky:
    """What else is known of each profile; each attribute (profiles,).

    Attributes:
        cloud_base_m: Lowest cloud base that the instrument reports; NaN where there is none.
        is_hidden: Fog or precipitation.
        droplets_m: Lowest height with backscatter so strong that it must be droplets; NaN where there is none.
    """

    cloud_base_m: Column
    is_hidden: NDArray[np.bool_]
    droplets_m: Column


@dataclass(frozen=True, slots=True)
class Layers:
    """The choice for each profile; each attribute (profiles,), float32, NaN where there is none.

    Attributes:
        height_m: Top of the layer in contact with the ground.
        standard_error_m: Of the place of the edge, provided that it is the right edge.
        significance: W / noise of the edge; NaN where the height is a cloud's base.
        flag: FLAG_NONE, FLAG_LOW or FLAG_GOOD; never NaN.
    """

    height_m: Column
    standard_error_m: Column
    significance: Column
    flag: Column


def choose_layers(edges: Candidates, sky: Sky, gate_m: float) -> Layers:
    """Chooses the layer of each profile.

    Args:
        edges: At most up to the cloud base; what lies above it is not to be among them.
        sky: No height is given where it is hidden; one at or above droplets is at best of low quality, since then the
            edge is the end of a cloud that the instrument has not reported.
        gate_m: Width of a gate.
    """
    excess = edges.strength - MIN_SIGNIFICANCE * edges.noise
    counts = (excess > 0) & (edges.strength >= MIN_CONTRAST * edges.level)
    excess = np.where(counts, excess, 0)
    strongest = excess.max(axis=1, initial=0, keepdims=True)
    is_eligible = counts & (excess >= MIN_SHARE_OF_STRONGEST * strongest)
    chosen = is_eligible.argmax(axis=1)[:, None]
    has_edge = is_eligible.any(axis=1) & ~sky.is_hidden
    is_cloud_topped = ~has_edge & ~sky.is_hidden & (sky.cloud_base_m <= HIGHEST_CLOUD_TOPPED_M)

    height_m, strength, noise, spread_m = (
        np.where(has_edge, np.take_along_axis(values, chosen, axis=1)[:, 0], np.nan)
        for values in (edges.height_m, edges.strength, edges.noise, edges.spread_m)
    )
    significance = strength / noise
    error_m = np.sqrt((NOISE_LENGTH_M / significance) ** 2 + (SPREAD_SHARE * spread_m) ** 2 + gate_m**2 / 12)
    is_strongest = np.take_along_axis(excess, chosen, axis=1)[:, 0] >= strongest[:, 0]
    is_good = has_edge & is_strongest & (significance >= GOOD_SIGNIFICANCE) & ~(height_m > sky.droplets_m)
    return Layers(
        height_m=np.where(is_cloud_topped, sky.cloud_base_m, height_m).astype(np.float32),
        standard_error_m=np.where(is_cloud_topped, CLOUD_ERROR_SHARE * sky.cloud_base_m, error_m).astype(np.float32),
        significance=significance.astype(np.float32),
        flag=np.select([is_good, has_edge | is_cloud_topped], [FLAG_GOOD, FLAG_LOW], FLAG_NONE).astype(np.float32),
    )
