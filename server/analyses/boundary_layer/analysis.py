"""The analysis, version 1: decodes a batch, transforms it grid by grid, chooses the layers. Knows no server.

Stateless: what it says about a profile depends on that profile alone, so that batches may be cut anywhere and repeated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams import Profiles, estimate_noise
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable
from server.analyses.boundary_layer import INSTRUMENT_MODELS, MAX_BATCH, NAME
from server.analyses.boundary_layer.decode import decode
from server.analyses.boundary_layer.layers import MIN_SIGNIFICANCE, Candidates, Layers, choose_layers
from server.analyses.boundary_layer.sky import below_cloud, judge_sky
from server.analyses.boundary_layer.wavelet import HaarTransform, find_edges

CEILING_M = 4000.0
"""No higher is searched; over mid-latitudes the boundary layer hardly ever reaches this."""
FLOOR_M = 60.0
"""No lower is searched: there the overlap correction makes edges of its own."""
SEPARATION_M = 150.0
EDGE_COUNT = 5
GRIDS_MAX = 64
"""Transforms kept; one costs about as much as a batch to make."""


@dataclass(frozen=True, slots=True)
class _Retrieval:
    """What is found in the profiles of one observation: the layers, and the lowest cloud base of each."""

    layers: Layers
    cloud_base_m: NDArray[np.float32]


class BoundaryLayerHeight:
    """Version 1: Haar wavelet covariance transform, lowest significant edge."""

    name = NAME
    version = 1
    instrument_models = INSTRUMENT_MODELS
    max_batch = MAX_BATCH

    def __init__(self) -> None:
        self._transforms: dict[tuple[int, float, float], HaarTransform] = {}

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation, in order; InvalidObservationError in the place of what cannot be decoded."""
        answers: list[AnalysisResult | Exception | None] = [None] * len(batch)
        groups: dict[tuple[int, float, float], list[tuple[int, Profiles]]] = defaultdict(list)
        for place, observation in enumerate(batch):
            try:
                profiles = decode(observation)
                groups[_grid(profiles)].append((place, profiles))
            except InvalidObservationError as error:
                answers[place] = error
        for grid, members in groups.items():
            retrievals = self._retrieve(grid, [profiles for _, profiles in members])
            for (place, profiles), retrieval in zip(members, retrievals, strict=True):
                answers[place] = _result(profiles, retrieval)
        return [answer for answer in answers if answer is not None]

    def _retrieve(self, grid: tuple[int, float, float], members: list[Profiles]) -> list[_Retrieval]:
        """Runs the transform once over the profiles of all members, which share one grid."""
        height_m = members[0].height_m
        beta = np.concatenate([member.beta for member in members])
        cloud_base_m = np.concatenate([member.lowest_cloud_base_m for member in members])
        is_obscured = np.concatenate([member.is_obscured for member in members])
        transform = self._transforms.get(grid)
        if transform is None:
            if len(self._transforms) >= GRIDS_MAX:  # an instrument whose tilt changes with each file makes many
                self._transforms.clear()
            transform = self._transforms[grid] = HaarTransform(torch.tensor(_searched(height_m)))
        layers = _find_layers(transform, beta, height_m, cloud_base_m, is_obscured)
        ends = np.cumsum([len(member.unix_nanos) for member in members])[:-1]
        parts = zip(*(np.split(values, ends) for values in _columns(layers)), strict=True)
        clouds = np.split(cloud_base_m, ends)
        return [_Retrieval(Layers(*part), cloud) for part, cloud in zip(parts, clouds, strict=True)]


def _find_layers(
    transform: HaarTransform,
    beta: NDArray[np.float32],
    height_m: NDArray[np.float64],
    cloud_base_m: NDArray[np.float32],
    is_obscured: NDArray[np.bool_],
) -> Layers:
    """From profiles of one grid to layers.

    Args:
        transform: Made for the searched part of the grid.
        beta: (profiles, gates), m-1 sr-1; NaN where missing.
        height_m: (gates,).
        cloud_base_m: (profiles,); NaN where there is none.
        is_obscured: (profiles,).
    """
    noise = estimate_noise(beta, height_m)
    searched_m = _searched(height_m)
    clear = below_cloud(beta[:, : len(searched_m)], searched_m, cloud_base_m)
    gate_m = float(height_m[1] - height_m[0])
    boundary_m = torch.from_numpy(np.append(searched_m, searched_m[-1] + gate_m) - gate_m / 2)
    with torch.inference_mode():
        edges = find_edges(
            transform(torch.from_numpy(clear), torch.from_numpy(noise)),
            boundary_m,
            min_significance=MIN_SIGNIFICANCE,
            floor_m=FLOOR_M,
            separation_m=SEPARATION_M,
            count=EDGE_COUNT,
        )
        candidates = Candidates(
            height_m=edges.height_m.numpy(),
            strength=edges.strength.numpy(),
            noise=edges.noise.numpy(),
            level=edges.level.numpy(),
            spread_m=edges.dilation_spread_m.numpy(),
        )
    return choose_layers(candidates, judge_sky(clear, searched_m, cloud_base_m, is_obscured), gate_m)


def _result(profiles: Profiles, retrieval: _Retrieval) -> AnalysisResult:
    layers = retrieval.layers
    return AnalysisResult(
        sample_unix_nanos=profiles.unix_nanos,
        variables=(
            AnalysisVariable("atmosphere_boundary_layer_thickness", "m", layers.height_m),
            AnalysisVariable("atmosphere_boundary_layer_thickness_standard_error", "m", layers.standard_error_m),
            AnalysisVariable("cloud_base_height", "m", retrieval.cloud_base_m),
            AnalysisVariable("quality_flag", "1", layers.flag),
            AnalysisVariable("significance", "1", layers.significance),
        ),
    )


def _grid(profiles: Profiles) -> tuple[int, float, float]:
    """What makes two grids the same: number of gates, first and last height."""
    return len(profiles.height_m), float(profiles.height_m[0]), float(profiles.height_m[-1])


def _searched(height_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """The heights that are looked at: up to the ceiling and half the widest dilation above it."""
    return height_m[: max(2, int(np.searchsorted(height_m, CEILING_M + 200)))]


def _columns(layers: Layers) -> tuple[NDArray[np.float32], ...]:
    return layers.height_m, layers.standard_error_m, layers.significance, layers.flag
