"""The analysis, version 3: where the backscatter fluctuates the most, over the last half hour.

By day thermals throw the top of the mixing layer up and down, so that the signal at its height changes from minute to
minute (Menut et al. 1999, Appl. Opt. 38, 945; STRATfinder looks at the variance so). What fluctuates slowly is taken
out by looking at differences of successive minutes, and the variance of noise is subtracted. Where the variance has no
peak, as in most nights, the height is that of version 2 on the mean of the last ten minutes; where it has one, that of
the gradient of this mean that lies nearest to the peak, if one is near: the peak itself trails behind a growing layer
by half of the time it is taken over. Knows of the past what its state holds: one-minute means of half an hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.analyses.boundary_layer.classical.coarse import LEVEL_COUNT, LEVEL_M, LEVELS_M, CoarseProfiles
from server.analyses.boundary_layer.classical.gradient import SETTINGS as GRADIENT
from server.analyses.boundary_layer.classical.gradient import GradientSettings, find_gradients, is_steep, only
from server.analyses.boundary_layer.classical.guides import Limits
from server.analyses.boundary_layer.classical.layers import Candidates, Layers, Sky, choose_layers
from server.analyses.boundary_layer.classical.recent import recent_mean, remember, slot_fields
from server.analyses.boundary_layer.classical.remembering import RememberingHeight, read_state
from server.analyses.boundary_layer.classical.spread import Spread, with_spread
from server.analyses.boundary_layer.classical.windows import largest_around, weighted_sums

MINUTE_S = 60.0
MINUTES = 30
MEAN_MINUTES = 10


@dataclass(frozen=True, slots=True)
class VarianceSettings:
    """The constants of the method, chosen on simulated courses of the climate TRAINING (seeds 700 000 to 700 059).

    Attributes:
        min_pairs: So many differences of successive minutes at least; fewer say nothing.
        min_significance: A peak counts if the variance beyond noise is so many times its own standard deviation.
        min_fluctuation: And its root at least this share of the mean backscatter below.
        near_m: A gradient of the mean is near a peak within this.
        smoothing_levels: The variance is averaged over so many levels, an odd number.
        reach_levels: A peak is the largest among so many levels below and above.
    """

    min_pairs: int = 12
    min_significance: float = 6.0
    min_fluctuation: float = 0.02
    near_m: float = 100.0
    smoothing_levels: int = 3
    reach_levels: int = 5


SETTINGS = VarianceSettings()
SPREAD = Spread(good_m=20.0, good_share=0.077, low_m=20.0, low_share=0.55)
"""On courses of the climate TRAINING (seeds 700 000 to 700 047) 90 % of the errors of either flag lie within 1.645
times this, those of a wrong layer among them: fewer between 300 and 1500 m, more below."""
_STATE = np.dtype(slot_fields(MINUTES))
"""One-minute sums."""


class VarianceHeight(RememberingHeight):
    """Version 3: the peak of the temporal variance, else the gradient."""

    version = 3

    def __init__(self, settings: VarianceSettings = SETTINGS, gradient: GradientSettings = GRADIENT) -> None:
        self._settings = settings
        self._gradient = gradient

    def fold(self, state: bytes, profiles: CoarseProfiles, within: Limits) -> tuple[Layers, bytes]:
        """See RememberingHeight."""
        memory = read_state(state, _STATE) if state else np.zeros((), _STATE)
        shape = (len(profiles.unix_s), LEVEL_COUNT)
        variance, sigma, mean = (np.full(shape, np.nan) for _ in range(3))
        noise = np.zeros(shape[0])
        for place, unix_s in enumerate(profiles.unix_s):
            remember(memory, int(unix_s // MINUTE_S), profiles.beta[place], profiles.noise_variance[place])
            variance[place], sigma[place] = _fluctuation(memory, self._settings.min_pairs)
            mean[place], noise[place] = recent_mean(memory, MEAN_MINUTES)
        peak_m = _peaks(variance, sigma, mean, within, self._settings)
        edges = find_gradients(mean.astype(np.float32), noise, LEVELS_M, within, self._gradient)
        layers = _choose(edges, peak_m, profiles.sky, self._settings, self._gradient)
        return with_spread(layers, SPREAD), memory.tobytes()


def _fluctuation(memory: NDArray[np.void], min_pairs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance beyond noise of the differences of successive minutes, and its own standard deviation by noise alone.

    Half of the mean square of n differences of white noise of variance v has the mean v and, since neighbours share a
    value, the standard deviation v sqrt(3 / n).

    Returns:
        Each (LEVEL_COUNT,), m-2 sr-2; NaN where fewer than min_pairs minutes follow each other.
    """
    minute = memory["slot"]
    recent = minute > minute[-1] - MINUTES
    follows = (np.diff(minute) == 1) & recent[:-1]
    count = memory["count"]
    mean = memory["total"] / np.maximum(count, 1)
    valid = (count[1:] > 0) & (count[:-1] > 0) & follows[:, None]
    pairs = valid.sum(axis=0)
    enough = pairs >= min_pairs
    squares = np.where(valid, np.square(np.diff(mean, axis=0)), 0).sum(axis=0, dtype=np.float64)
    minute_noise = memory["noise_variance"] / np.square(np.maximum(memory["profile_count"], 1.0))
    noise = np.where(valid, (minute_noise[1:] + minute_noise[:-1])[:, None], 0).sum(axis=0) * LEVELS_M**4
    scale = np.where(enough, 0.5 / np.maximum(pairs, 1), np.nan)
    return (squares - noise) * scale, noise * scale * np.sqrt(3 / np.maximum(pairs, 1))


def _peaks(
    variance: NDArray[np.float64],
    sigma: NDArray[np.float64],
    mean: NDArray[np.float64],
    within: Limits,
    settings: VarianceSettings,
) -> NDArray[np.float64]:
    """Where the variance of each profile is the largest, (profiles,), m; NaN where it has no peak.

    Args:
        variance: (profiles, LEVEL_COUNT), m-2 sr-2; NaN where unknown, as with sigma.
        sigma: Its standard deviation by noise alone.
        mean: Mean backscatter, m-1 sr-1.
        within: Of each profile.
        settings: What counts.
    """
    levels = settings.smoothing_levels
    weights = np.full(levels, 1 / levels)
    smooth = np.nan_to_num(weighted_sums(np.nan_to_num(variance), weights))
    noise = np.nan_to_num(weighted_sums(np.nan_to_num(sigma), weights)) / np.sqrt(levels)
    known = np.isfinite(variance) & within.hold(LEVELS_M)
    is_there = np.isfinite(mean)
    level = np.cumsum(np.where(is_there, mean, 0), axis=1) / np.maximum(np.cumsum(is_there, axis=1), 1)
    counts = (smooth > settings.min_significance * noise) & (smooth > np.square(settings.min_fluctuation * level))
    is_peak = known & counts & (smooth == largest_around(smooth, settings.reach_levels))
    best = np.where(is_peak, smooth, -np.inf).argmax(axis=1)
    return np.where(is_peak.any(axis=1), LEVELS_M[best], np.nan)


def _choose(
    edges: Candidates,
    peak_m: NDArray[np.float64],
    sky: Sky,
    settings: VarianceSettings,
    gradient: GradientSettings,
) -> Layers:
    """The gradient nearest to the peak; where there is no peak, or no gradient near it, as version 2."""
    away_m = np.abs(edges.height_m - peak_m[:, None])
    nearest = away_m == np.where(np.isnan(away_m), np.inf, away_m).min(axis=1, keepdims=True)
    by_peak = nearest & (away_m <= settings.near_m)
    kept = np.where(by_peak.any(axis=1, keepdims=True), by_peak, is_steep(edges, gradient))
    return choose_layers(only(edges, kept), sky, LEVEL_M)
