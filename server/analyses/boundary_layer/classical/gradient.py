"""The analysis, version 2: the gradient method, each profile alone. The slope of the backscatter is looked at, not
noise.

The classical method (argmin of the gradient, or of the logarithm's): where the backscatter falls the most, after
vertical smoothing, a test against noise, the screening of cloud and rain, and limits by the sun. The slope at a height
is that of the straight line of least squares over a window about it (Savitzky and Golay 1964, Anal. Chem. 36, 1627), so
smoothing and differentiating are one step. Stateless, like version 1. Knows no time but the sun's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from server.analyses import AnalysisInput, AnalysisResult
from server.analyses.boundary_layer import INSTRUMENT_MODELS, MAX_BATCH, NAME
from server.analyses.boundary_layer.classical.batch import FLOOR_M, Decoded, Group, decode_each, group_by_grid, in_order
from server.analyses.boundary_layer.classical.guides import Limits, limits
from server.analyses.boundary_layer.classical.layers import Candidates, Layers, Sky, choose_layers
from server.analyses.boundary_layer.classical.spread import Spread, with_spread
from server.analyses.boundary_layer.classical.wavelet import Transform, find_edges
from server.analyses.boundary_layer.classical.windows import weighted_sums

NANOS = 1e9


@dataclass(frozen=True, slots=True)
class GradientSettings:
    """The constants of the method, chosen on simulated courses of the climate TRAINING (seeds 700 000 to 700 059).

    Attributes:
        narrow_m: Window below `widens_at_m`: stable layers are shallow and their signal is strong.
        wide_m: Window above: there noise, which grows with the square of the height, needs it.
        widens_at_m: Where the one gives way to the other.
        min_significance: Only slopes of at least so many standard deviations of their noise.
        min_share: Only slopes of at least this share of the profile's steepest; of these the lowest is taken. 1 is the
            textbook's argmin, which takes the top of the residual layer for that of the stable layer.
        is_logarithmic: Whether the slope is that of the logarithm.
        separation_m: Of two slopes nearer than this only the steeper.
    """

    narrow_m: float = 120.0
    wide_m: float = 300.0
    widens_at_m: float = 500.0
    min_significance: float = 5.0
    min_share: float = 0.4
    is_logarithmic: bool = False
    separation_m: float = 150.0


SETTINGS = GradientSettings()
SPREAD = Spread(good_m=20.0, good_share=0.072, low_m=20.0, low_share=0.528)
"""On courses of the climate TRAINING (seeds 700 000 to 700 047) 90 % of the errors of either flag lie within 1.645
times this, those of a wrong layer among them: fewer between 300 and 1500 m, more below."""
EDGE_COUNT = 5
LOGARITHM_M = 50.0
"""The logarithm of a single noisy gate means little; that of the mean over this does."""
LOGARITHM_SIGNIFICANCE = 3.0


class GradientHeight:
    """Version 2: the lowest of the steep gradients of a profile."""

    name = NAME
    version = 2
    instrument_models = INSTRUMENT_MODELS
    max_batch = MAX_BATCH

    def __init__(self, settings: GradientSettings = SETTINGS) -> None:
        self._settings = settings

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation, in order; InvalidObservationError in the place of what cannot be decoded."""
        decoded = decode_each(batch)
        answers: dict[int, AnalysisResult] = {}
        for group in group_by_grid(decoded):
            sites = [(batch[place].latitude_deg, batch[place].longitude_deg) for place in group.places]
            answers |= self._answer(group, sites)
        return in_order(decoded, answers)

    def predict_profiles(
        self, decoded: Sequence[Decoded], latitude_deg: float | None = None, longitude_deg: float | None = None
    ) -> list[AnalysisResult | Exception]:
        """As predict, of what is decoded already, all from one place on Earth."""
        answers: dict[int, AnalysisResult] = {}
        for group in group_by_grid(decoded):
            answers |= self._answer(group, [(latitude_deg, longitude_deg)] * len(group.places))
        return in_order(decoded, answers)

    def _answer(self, group: Group, sites: list[tuple[float | None, float | None]]) -> dict[int, AnalysisResult]:
        parts = [limits(m.unix_nanos / NANOS, *site) for m, site in zip(group.members, sites, strict=True)]
        within = Limits(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        clear, sky = group.screened()
        layers = find_layers(clear, group.noise, group.searched_m, within, sky, self._settings)
        return group.results(with_spread(layers, SPREAD))


def find_layers(
    clear: NDArray[np.float32],
    noise: NDArray[np.float64],
    height_m: NDArray[np.float64],
    within: Limits,
    sky: Sky,
    settings: GradientSettings,
) -> Layers:
    """The layer of each profile by its gradient; the standard error is only that of the edge's place.

    Args:
        clear: (profiles, gates), m-1 sr-1; NaN where missing or in and above a cloud.
        noise: (profiles,): standard deviation before range correction, m-3 sr-1.
        height_m: (gates,): evenly spaced.
        within: Of each profile: nothing outside is taken.
        sky: Of each profile.
        settings: The method's constants.
    """
    edges = find_gradients(clear, noise, height_m, within, settings)
    return choose_layers(only(edges, is_steep(edges, settings)), sky, float(height_m[1] - height_m[0]))


def is_steep(edges: Candidates, settings: GradientSettings) -> NDArray[np.bool_]:
    """Which of the edges of a profile are steep enough beside its steepest: (profiles, edges)."""
    strongest = np.nan_to_num(edges.strength).max(axis=1, initial=0, keepdims=True)
    steep: NDArray[np.bool_] = edges.strength >= settings.min_share * strongest
    return steep


def only(edges: Candidates, kept: NDArray[np.bool_]) -> Candidates:
    """The edges without those that are not kept."""
    return replace(edges, strength=np.where(kept, edges.strength, np.float32(np.nan)))


def find_gradients(
    clear: NDArray[np.float32],
    noise: NDArray[np.float64],
    height_m: NDArray[np.float64],
    within: Limits,
    settings: GradientSettings,
) -> Candidates:
    """The steepest falls of each profile, the lowest first; arguments as in find_layers.

    Strength is a third of what the fitted line falls over the window: half of a sudden step in its middle, as with the
    wavelet; of the logarithm's slope, half of the step over the mean of what is below and above it.
    """
    fits = [_fit(clear, noise, height_m, width_m, settings) for width_m in (settings.narrow_m, settings.wide_m)]
    is_low = height_m < settings.widens_at_m
    strength, sigma = (np.where(is_low, narrow, wide) for narrow, wide in zip(*fits, strict=True))
    strength[~within.hold(height_m)] = np.nan
    level = np.ones_like(strength) if settings.is_logarithmic else _level_below(clear)
    transform = Transform(
        mean=torch.from_numpy(strength),
        noise=torch.from_numpy(sigma),
        by_dilation=torch.from_numpy(np.stack([fit for fit, _ in fits], axis=1)),
        level=torch.from_numpy(level),
    )
    edges = find_edges(
        transform,
        torch.tensor(height_m),
        min_significance=settings.min_significance,
        floor_m=FLOOR_M,
        separation_m=settings.separation_m,
        count=EDGE_COUNT,
    )
    return Candidates(
        height_m=edges.height_m.numpy(),
        strength=edges.strength.numpy(),
        noise=edges.noise.numpy(),
        level=edges.level.numpy(),
        spread_m=edges.dilation_spread_m.numpy(),
    )


def _fit(
    clear: NDArray[np.float32],
    noise: NDArray[np.float64],
    height_m: NDArray[np.float64],
    width_m: float,
    settings: GradientSettings,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Strength of the fall in a window about each gate, and its noise, each (profiles, gates); NaN where undefined."""
    gate_m = float(height_m[1] - height_m[0])
    half = max(1, round(width_m / (2 * gate_m)))
    offset = np.arange(-half, half + 1, dtype=np.float64)
    # what the line falls over a third of the window
    weights = -offset / np.square(offset).sum() * (2 * half + 1) / 3
    values, variance = clear.astype(np.float64), np.square(noise[:, None] * height_m**2)
    if settings.is_logarithmic:
        values, variance = _logarithm(values, variance, 1 + 2 * round(LOGARITHM_M / gate_m / 2))
    strength = weighted_sums(values, weights)
    sigma = np.sqrt(weighted_sums(variance, np.square(weights)))
    return strength.astype(np.float32), sigma.astype(np.float32)


def _logarithm(
    values: NDArray[np.float64], variance: NDArray[np.float64], gates: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The logarithm of the mean over some gates, and the variance that noise gives it, each (profiles, gates).

    What does not stand out of the noise is lifted to where it would, or clean air would be all edges. Neighbouring
    means share gates; the variance returned is that of a gate whose neighbours share none, as the sums over windows
    take it.
    """
    mean = weighted_sums(values, np.full(gates, 1 / gates))
    floor = LOGARITHM_SIGNIFICANCE * np.sqrt(variance / gates)
    lifted = np.maximum(mean, floor)
    return np.log(lifted), variance / np.square(lifted)


def _level_below(clear: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean backscatter from the ground to each gate: (profiles, gates)."""
    is_there = np.isfinite(clear)
    total = np.cumsum(np.where(is_there, clear, 0), axis=1, dtype=np.float64)
    level: NDArray[np.float32] = (total / np.maximum(np.cumsum(is_there, axis=1), 1)).astype(np.float32)
    return level
