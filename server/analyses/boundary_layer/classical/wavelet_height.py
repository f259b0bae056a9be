"""The analysis, version 1: decodes a batch, transforms it grid by grid, chooses the layers. Knows no server.

Stateless: what it says about a profile depends on that profile alone, so that batches may be cut anywhere and repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.analyses import AnalysisInput, AnalysisResult
from server.analyses.boundary_layer import INSTRUMENT_MODELS, MAX_BATCH, NAME
from server.analyses.boundary_layer.classical.batch import (
    FLOOR_M,
    Decoded,
    Grid,
    Group,
    decode_each,
    group_by_grid,
    in_order,
)
from server.analyses.boundary_layer.classical.layers import MIN_SIGNIFICANCE, Candidates, Layers, choose_layers
from server.analyses.boundary_layer.classical.wavelet import HaarTransform, find_edges

SEPARATION_M = 150.0
EDGE_COUNT = 5
GRIDS_MAX = 64
"""Transforms kept; one costs about as much as a batch to make."""


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A group of observations on its way to the device.

    Attributes:
        group: The observations.
        clear: As in the group, on the device.
        noise: Likewise.
        copied: After this the device has them; None where nothing is copied.
    """

    group: Group
    clear: Tensor
    noise: Tensor
    copied: torch.cuda.Event | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A decoded batch: each observation or why it is none, and the groups on their way."""

    decoded: Sequence[Decoded]
    groups: list[_OnDevice]


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
        self._transforms: dict[Grid, HaarTransform] = {}

    def to(self, device: str) -> None:
        """Lets the transform run on another device; before the first batch."""
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._copying = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation, in order; InvalidObservationError in the place of what cannot be decoded."""
        return self.compute(self.prepare(batch))

    def predict_profiles(
        self, decoded: Sequence[Decoded], latitude_deg: float | None = None, longitude_deg: float | None = None
    ) -> list[AnalysisResult | Exception]:
        """As predict, of what is decoded already; the place on Earth makes no difference to this version."""
        return self.compute(self._prepare(decoded))

    def prepare(self, batch: Sequence[AnalysisInput]) -> Prepared:
        """Decodes a batch, masks it, and begins to copy it to the device."""
        return self._prepare(decode_each(batch))

    def compute(self, prepared: Prepared) -> list[AnalysisResult | Exception]:
        """Runs the transform once for each grid."""
        answers: dict[int, AnalysisResult] = {}
        for on_device in prepared.groups:
            answers |= on_device.group.results(self._retrieve(on_device))
        return in_order(prepared.decoded, answers)

    def _prepare(self, decoded: Sequence[Decoded]) -> Prepared:
        return Prepared(decoded, [self._begin_copy(group) for group in group_by_grid(decoded)])

    def _begin_copy(self, group: Group) -> _OnDevice:
        """Copies to the device beside what it computes now; from pinned memory, or it would wait."""
        clear, noise = torch.from_numpy(group.clear), torch.from_numpy(group.noise)
        if self._copying is None:
            return _OnDevice(group, clear, noise, None)
        with torch.cuda.stream(self._copying):
            clear, noise = (each.pin_memory().to(self._device, non_blocking=True) for each in (clear, noise))
            return _OnDevice(group, clear, noise, self._copying.record_event())

    def _retrieve(self, on_device: _OnDevice) -> Layers:
        """Runs the transform once over the profiles of all members of a group."""
        group = on_device.group
        transform = self._transforms.get(group.grid)
        if transform is None:
            if len(self._transforms) >= GRIDS_MAX:  # an instrument whose tilt changes with each file makes many
                self._transforms.clear()
            transform = HaarTransform(torch.tensor(group.searched_m)).to(self._device)
            self._transforms[group.grid] = transform
        if on_device.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(on_device.copied)
            for each in (on_device.clear, on_device.noise):
                each.record_stream(stream)  # its memory belongs to the copying stream, which might reuse it
        return _find_layers(transform, on_device)


def _find_layers(transform: HaarTransform, on_device: _OnDevice) -> Layers:
    """From profiles of one grid to layers; the transform was made for the searched part of that grid."""
    group = on_device.group
    with torch.inference_mode():
        edges = find_edges(
            transform(on_device.clear, on_device.noise),
            torch.from_numpy(_boundaries(group)).to(on_device.clear.device),
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
    return choose_layers(candidates, group.sky(), group.gate_m)


def _boundaries(group: Group) -> NDArray[np.float64]:
    """Heights between the searched gates, and at both ends: (searched gates + 1,)."""
    return np.append(group.searched_m, group.searched_m[-1] + group.gate_m) - group.gate_m / 2
