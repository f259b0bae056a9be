"""The analysis, version 4: the cheapest path through time and height, as far as it is known now.

Pathfinder (de Bruine et al. 2017, AMT 10, 1893) looks for the path from sunrise to sunset that follows strong edges and
does not jump, by Dijkstra's algorithm over a day that has passed. The same path by dynamic programming,

    D[t, z] = c(t, z) + min over z' of (D[t - 1, z'] + k(z, z')),

needs of the past only D[t - 1]. So it runs online: the height is where the cheapest path so far ends, and what comes
later never corrects it. With the whole day at hand find_path traces the path back; that is the published method, and a
reference.

c is 1 where there is no edge and falls to 0 where one takes away a seventh of the backscatter; k grows with the step in
height up to the price of a jump, for a layer that collapses is not a path; guides limit the heights by the sun. Knows
of the past what its state holds: sums over three steps of time, and D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fieldpost.telegrams import Profiles
from server.analyses.boundary_layer.classical.batch import group_by_grid
from server.analyses.boundary_layer.classical.coarse import (
    LEVEL_COUNT,
    LEVEL_M,
    LEVELS_M,
    CoarseProfiles,
    coarsen,
    join,
)
from server.analyses.boundary_layer.classical.guides import Limits, limits
from server.analyses.boundary_layer.classical.layers import (
    FLAG_GOOD,
    FLAG_LOW,
    FLAG_NONE,
    HIGHEST_CLOUD_TOPPED_M,
    Layers,
)
from server.analyses.boundary_layer.classical.recent import recent_mean, remember, slot_fields
from server.analyses.boundary_layer.classical.remembering import RememberingHeight, read_state
from server.analyses.boundary_layer.classical.spread import Spread, with_spread
from server.analyses.boundary_layer.classical.wavelet import HaarTransform
from server.analyses.boundary_layer.classical.windows import largest_around

STEP_S = 300.0
STEP_COUNT = 3
"""Edges are looked for in the mean over so many steps."""
CLEANEST = 1e-12
"""No mean backscatter is below this, m-1 sr-1."""
OUT_OF_BOUNDS = 50.0
"""What a step outside the guides costs: more than any detour."""
PEAK_LEVELS = 3
"""An edge is the largest among so many levels below and above."""
REACH = 2
"""An edge is looked for within so many levels of the path's end."""


@dataclass(frozen=True, slots=True)
class PathSettings:
    """The constants of the method, chosen on simulated courses of the climate TRAINING (seeds 700 000 to 700 059).

    Attributes:
        min_significance: So many standard deviations of noise are taken off an edge before it counts.
        climb: What a step up costs for each level of 20 m, in units of the cost of a time without an edge.
        descent: What a step down costs.
        jump: What a step costs at the most.
        height: What a level costs for each kilometre of its height: of two edges alike the lower wins.
        full: An edge counts in full where W, beyond noise, is this share of the mean backscatter below; of those beside
            the strongest of a time, as some do it, noise aloft and the near range below leave too little.
        power: What an edge counts to this power is taken off the cost.
        cloud: Share that the base of a low cloud counts as.
        good_share: A height is good if its edge counts this much.
    """

    min_significance: float = 1.0
    climb: float = 0.02
    descent: float = 0.02
    jump: float = 0.5
    height: float = 0.1
    full: float = 0.07
    power: float = 0.5
    cloud: float = 0.9
    good_share: float = 0.3


SETTINGS = PathSettings()
SPREAD = Spread(good_m=20.0, good_share=0.109, low_m=20.0, low_share=0.437)
"""On courses of the climate TRAINING (seeds 700 000 to 700 047) 90 % of the errors of either flag lie within 1.645
times this, those of a wrong layer among them: fewer between 300 and 1500 m, more below."""
_STATE = np.dtype([*slot_fields(STEP_COUNT), ("before", "<f8", LEVEL_COUNT), ("now", "<f8", LEVEL_COUNT)])
"""Sums over steps; D after the step before the newest, and after it."""


@dataclass(frozen=True, slots=True)
class _Edges:
    """What speaks for a top at each level; each (profiles, LEVEL_COUNT).

    Attributes:
        share: Of what counts as an edge in full, 0 to 1.
        strength: W, m-1 sr-1; NaN where undefined.
        noise: Its standard deviation by noise alone.
    """

    share: NDArray[np.float64]
    strength: NDArray[np.float64]
    noise: NDArray[np.float64]


class ShortestPathHeight(RememberingHeight):
    """Version 4: the end of the cheapest path so far."""

    version = 4

    def __init__(self, settings: PathSettings = SETTINGS) -> None:
        self._settings = settings
        self._transition = _transition(settings)
        self._haar = HaarTransform(torch.tensor(LEVELS_M))

    def fold(self, state: bytes, profiles: CoarseProfiles, within: Limits) -> tuple[Layers, bytes]:
        """See RememberingHeight."""
        memory = read_state(state, _STATE) if state else np.zeros((), _STATE)
        mean, noise, is_new = _running_means(memory, profiles)
        edges = self._edges(mean, noise, profiles, within)
        cost = _cost(edges, within, profiles, self._settings)
        end = np.zeros(len(cost), np.intp)
        for place in range(len(cost)):
            if is_new[place]:
                memory["before"] = memory["now"]
            now = cost[place] + (memory["before"] + self._transition).min(axis=1)
            memory["now"] = now - now.min()
            end[place] = now.argmin()
        return with_spread(_layers(end, edges, profiles, self._settings), SPREAD), memory.tobytes()

    def find_path(
        self, day: Sequence[Profiles], latitude_deg: float | None = None, longitude_deg: float | None = None
    ) -> Layers:
        """The cheapest path through a whole day, traced back from its end: what can be known when the day has passed.

        Args:
            day: The profiles of one instrument, by measure time.
            latitude_deg: None where unknown, as with longitude_deg.

        Returns:
            The layers of each profile of all, by time.
        """
        profiles = join([coarsen(group) for group in group_by_grid(day)])
        profiles = profiles.take(np.argsort(profiles.unix_s, kind="stable"))
        within = limits(profiles.unix_s, latitude_deg, longitude_deg)
        mean, noise, is_new = _running_means(np.zeros((), _STATE), profiles)
        edges = self._edges(mean, noise, profiles, within)
        last = np.flatnonzero(np.append(is_new[1:], True))  # of each step
        cost = _cost(edges, within, profiles, self._settings)[last]
        came_from = np.zeros(cost.shape, np.intp)
        now = cost[0]
        for step in range(1, len(cost)):
            ways = now + self._transition
            came_from[step] = ways.argmin(axis=1)
            now = cost[step] + ways.min(axis=1)
        path = np.zeros(len(cost), np.intp)
        path[-1] = now.argmin()
        for step in range(len(cost) - 1, 0, -1):
            path[step - 1] = came_from[step, path[step]]
        end = path[np.cumsum(is_new) - 1]
        return with_spread(_layers(end, edges, profiles, self._settings), SPREAD)

    def _edges(
        self,
        mean: NDArray[np.float64],
        noise: NDArray[np.float64],
        profiles: CoarseProfiles,
        within: Limits,
    ) -> _Edges:
        with torch.inference_mode():
            haar = self._haar(torch.from_numpy(mean), torch.from_numpy(noise))
        # the transform lies between levels; each level takes what is at its lower end
        strength, sigma, level = (v.numpy()[:, :-1].astype(np.float64) for v in (haar.mean, haar.noise, haar.level))
        excess = np.nan_to_num(strength - self._settings.min_significance * sigma)
        excess[~within.hold(LEVELS_M) | ~_is_peak(strength) | profiles.sky.is_hidden[:, None]] = 0
        share = np.clip(excess / np.maximum(self._settings.full * np.nan_to_num(level), CLEANEST), 0, 1)
        base_m = profiles.sky.cloud_base_m
        is_base = np.abs(LEVELS_M - np.nan_to_num(base_m, nan=-1e6)[:, None]) <= LEVEL_M
        share = np.where(is_base & (base_m[:, None] <= HIGHEST_CLOUD_TOPPED_M), self._settings.cloud, share)
        return _Edges(share, strength, sigma)


def _running_means(
    memory: NDArray[np.void], profiles: CoarseProfiles
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Adds profile by profile to the memory's sums.

    Returns:
        After each profile: mean over its step so far and those before it, (profiles, LEVEL_COUNT); standard deviation
        of that mean's noise before range correction; whether the profile is the first of its step.
    """
    mean = np.full(profiles.beta.shape, np.nan)
    noise = np.zeros(len(mean))
    is_new = np.zeros(len(mean), np.bool_)
    for place, unix_s in enumerate(profiles.unix_s):
        slot = int(unix_s // STEP_S)
        is_new[place] = remember(memory, slot, profiles.beta[place], profiles.noise_variance[place])
        mean[place], noise[place] = recent_mean(memory, STEP_COUNT)
    return mean, noise, is_new


def _is_peak(strength: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which levels are local maxima, or beside one; on the flanks of an edge a path would find it as good."""
    finite = np.nan_to_num(strength, nan=-np.inf)
    return largest_around(finite == largest_around(finite, PEAK_LEVELS), 1)


def _transition(settings: PathSettings) -> NDArray[np.float64]:
    """What a step costs: (to, from)."""
    level = np.arange(LEVEL_COUNT)
    up = level[:, None] - level
    cost: NDArray[np.float64] = np.minimum(np.where(up > 0, settings.climb * up, -settings.descent * up), settings.jump)
    return cost


def _cost(edges: _Edges, within: Limits, profiles: CoarseProfiles, settings: PathSettings) -> NDArray[np.float64]:
    """What it costs to be at each level at the time of each profile: (profiles, LEVEL_COUNT)."""
    cost = 1 - edges.share**settings.power + settings.height * LEVELS_M / 1000
    cost = np.where(profiles.sky.is_hidden[:, None], 1.0, cost)
    return np.where(within.hold(LEVELS_M), cost, OUT_OF_BOUNDS)


def _layers(end: NDArray[np.intp], edges: _Edges, profiles: CoarseProfiles, settings: PathSettings) -> Layers:
    """The strongest edge about the path's end, between the levels by a parabola; the end itself where there is none."""
    row = np.arange(len(end))
    near = np.clip(end[:, None] + np.arange(-REACH, REACH + 1), 1, LEVEL_COUNT - 2)
    best = near[row, (edges.share * np.nan_to_num(edges.strength, nan=0))[row[:, None], near].argmax(axis=1)]
    left, centre, right = (edges.strength[row, best + step] for step in (-1, 0, 1))
    bend = left - 2 * centre + right
    is_refined = bend < 0
    offset = np.where(is_refined, 0.5 * (left - right) / np.where(is_refined, bend, 1), 0).clip(-0.5, 0.5)
    share = edges.share[row, best]
    is_edge = share > 0
    base_m = profiles.sky.cloud_base_m
    is_base = is_edge & (np.abs(LEVELS_M[best] - base_m) <= LEVEL_M)
    height_m = np.where(is_edge, LEVELS_M[best] - LEVEL_M / 2 + offset * LEVEL_M, LEVELS_M[end])
    height_m = np.where(is_base, base_m, height_m)
    flag = np.where(share >= settings.good_share, FLAG_GOOD, FLAG_LOW)
    hidden = profiles.sky.is_hidden
    return Layers(
        height_m=np.where(hidden, np.nan, height_m).astype(np.float32),
        standard_error_m=np.full(len(end), np.nan, np.float32),
        significance=np.where(hidden | ~is_edge | is_base, np.nan, centre / edges.noise[row, best]).astype(np.float32),
        flag=np.where(hidden, FLAG_NONE, flag).astype(np.float32),
    )
