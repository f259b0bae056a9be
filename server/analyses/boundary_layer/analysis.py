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
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class _Group:
    """The observations of a batch that share one grid, on their way to the device.

    Attributes:
        grid: What makes grids the same.
        places: In the batch.
        members: The profiles of each.
        clear: (profiles of all, searched gates), m-1 sr-1; NaN where missing or in and above a cloud.
        cloud_base_m: (profiles of all,); NaN where there is none.
        is_obscured: (profiles of all,).
        on_device: `clear`, and the noise of each profile.
        copied: After this the device has them; None where nothing is copied.
    """

    grid: tuple[int, float, float]
    places: list[int]
    members: list[Profiles]
    clear: NDArray[np.float32]
    cloud_base_m: NDArray[np.float32]
    is_obscured: NDArray[np.bool_]
    on_device: tuple[Tensor, Tensor]
    copied: torch.cuda.Event | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A decoded batch: who gets an error at once, and the others."""

    count: int
    errors: dict[int, InvalidObservationError]
    groups: list[_Group]


class BoundaryLayerHeight:
    """Version 1: Haar wavelet covariance transform, lowest significant edge.

    What the host does first (prepare) and what the device does then (compute) may run in two threads, a batch apart.
    """

    name = NAME
    version = 1
    instrument_models = INSTRUMENT_MODELS
    max_batch = MAX_BATCH

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._copying: torch.cuda.Stream | None = None
        self._transforms: dict[tuple[int, float, float], HaarTransform] = {}

    def to(self, device: str) -> None:
        """Lets the transform run on another device; before the first batch."""
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._copying = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation, in order; InvalidObservationError in the place of what cannot be decoded."""
        return self.compute(self.prepare(batch))

    def prepare(self, batch: Sequence[AnalysisInput]) -> Prepared:
        """Decodes a batch, masks it, and begins to copy it to the device."""
        errors: dict[int, InvalidObservationError] = {}
        alike: dict[tuple[int, float, float], list[tuple[int, Profiles]]] = defaultdict(list)
        for place, observation in enumerate(batch):
            try:
                profiles = decode(observation)
                alike[_grid(profiles)].append((place, profiles))
            except InvalidObservationError as error:
                errors[place] = error
        return Prepared(len(batch), errors, [self._gather(grid, members) for grid, members in alike.items()])

    def compute(self, prepared: Prepared) -> list[AnalysisResult | Exception]:
        """Runs the transform once for each grid."""
        answers: dict[int, AnalysisResult | Exception] = dict(prepared.errors)
        for group in prepared.groups:
            for place, profiles, retrieval in zip(group.places, group.members, self._retrieve(group), strict=True):
                answers[place] = _result(profiles, retrieval)
        return [answers[place] for place in range(prepared.count)]

    def _gather(self, grid: tuple[int, float, float], placed: list[tuple[int, Profiles]]) -> _Group:
        members = [profiles for _, profiles in placed]
        height_m = members[0].height_m
        searched_m = _searched(height_m)
        beta = np.concatenate([member.beta for member in members])
        cloud_base_m = np.concatenate([member.lowest_cloud_base_m for member in members])
        clear = below_cloud(beta[:, : len(searched_m)], searched_m, cloud_base_m)
        on_host = torch.from_numpy(clear), torch.from_numpy(estimate_noise(beta, height_m))
        on_device, copied = self._begin_copy(on_host)
        return _Group(
            grid=grid,
            places=[place for place, _ in placed],
            members=members,
            clear=clear,
            cloud_base_m=cloud_base_m,
            is_obscured=np.concatenate([member.is_obscured for member in members]),
            on_device=on_device,
            copied=copied,
        )

    def _begin_copy(self, on_host: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], torch.cuda.Event | None]:
        """Copies to the device beside what it computes now; from pinned memory, or it would wait."""
        if self._copying is None:
            return on_host, None
        with torch.cuda.stream(self._copying):
            clear, noise = (each.pin_memory().to(self._device, non_blocking=True) for each in on_host)
            return (clear, noise), self._copying.record_event()

    def _retrieve(self, group: _Group) -> list[_Retrieval]:
        """Runs the transform once over the profiles of all members of a group."""
        height_m = group.members[0].height_m
        transform = self._transforms.get(group.grid)
        if transform is None:
            if len(self._transforms) >= GRIDS_MAX:  # an instrument whose tilt changes with each file makes many
                self._transforms.clear()
            transform = HaarTransform(torch.tensor(_searched(height_m))).to(self._device)
            self._transforms[group.grid] = transform
        if group.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(group.copied)
            for each in group.on_device:
                each.record_stream(stream)  # its memory belongs to the copying stream, which might reuse it
        layers = _find_layers(transform, group, height_m)
        ends = np.cumsum([len(member.unix_nanos) for member in group.members])[:-1]
        parts = zip(*(np.split(values, ends) for values in _columns(layers)), strict=True)
        clouds = np.split(group.cloud_base_m, ends)
        return [_Retrieval(Layers(*part), cloud) for part, cloud in zip(parts, clouds, strict=True)]


def _find_layers(transform: HaarTransform, group: _Group, height_m: NDArray[np.float64]) -> Layers:
    """From profiles of one grid to layers.

    Args:
        transform: Made for the searched part of the grid.
        group: The profiles.
        height_m: (gates,).
    """
    clear, noise = group.on_device
    searched_m = _searched(height_m)
    gate_m = float(height_m[1] - height_m[0])
    boundary_m = torch.from_numpy(np.append(searched_m, searched_m[-1] + gate_m) - gate_m / 2).to(clear.device)
    with torch.inference_mode():
        edges = find_edges(
            transform(clear, noise),
            boundary_m,
            min_significance=MIN_SIGNIFICANCE,
            floor_m=FLOOR_M,
            separation_m=SEPARATION_M,
            count=EDGE_COUNT,
        )
        candidates = Candidates(
            height_m=edges.height_m.cpu().numpy(),
            strength=edges.strength.cpu().numpy(),
            noise=edges.noise.cpu().numpy(),
            level=edges.level.cpu().numpy(),
            spread_m=edges.dilation_spread_m.cpu().numpy(),
        )
    return choose_layers(candidates, judge_sky(group.clear, searched_m, group.cloud_base_m, group.is_obscured), gate_m)


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
