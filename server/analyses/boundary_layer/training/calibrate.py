"""Measures a network on courses, and fits its uncertainty on those of another climate than it was trained on.

A network is too sure of itself where it has never been; so the width of its intervals is fitted where it has not been.
Knows no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from server.analyses.boundary_layer.learned.distribution import heights_at
from server.analyses.boundary_layer.learned.network import LayerNetwork
from server.analyses.boundary_layer.learned.weights import Calibration
from server.analyses.boundary_layer.training.batches import make_batch
from server.analyses.boundary_layer.training.courses import UNKNOWN, Course

COVERAGE_AIM = 0.90
INTERVAL_LEVELS = (0.05, 0.95)
TEMPERATURES = tuple(np.exp(np.linspace(np.log(0.5), np.log(4.0), 61)).tolist())
WRONG_M = 300.0
GOOD_WRONG_MAX = 0.01
"""Heights of good quality are to be wrong by more than WRONG_M no more often than this."""
WIDTHS_M = (600.0, 450.0, 350.0, 300.0, 250.0, 200.0, 150.0, 120.0)
WIDTH_RATIO = 0.3


@dataclass(frozen=True)
class Measured:
    """How well a network did.

    Attributes:
        rmse_m: Of the median height where one is defined, as the three that follow.
        mae_m: Mean absolute error.
        bias_m: Mean of found minus true.
        wrong: Share of errors beyond WRONG_M.
        coverage_90: Share of true heights within the central 90 % interval, before it is fitted.
        sky_right: Share of looks whose sky was told right.
    """

    rmse_m: float
    mae_m: float
    bias_m: float
    wrong: float
    coverage_90: float
    sky_right: float

    def to_dict(self) -> dict[str, float]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Looked:
    """What the network said of courses, and the truth: looks where a height is defined."""

    mixing: Tensor
    height_m: Tensor
    sky_right: float


def measure(network: LayerNetwork, courses: Sequence[Course], batch_size: int) -> Measured:
    """How well a network does on courses; the same profiles each time."""
    looked = _look(network, courses, batch_size)
    found_m = heights_at(looked.mixing, (INTERVAL_LEVELS[0], 0.5, INTERVAL_LEVELS[1]))
    error_m = (found_m[:, 1] - looked.height_m).numpy()
    inside = (found_m[:, 0] <= looked.height_m) & (looked.height_m <= found_m[:, 2])
    return Measured(
        rmse_m=float(np.sqrt(np.mean(error_m**2))),
        mae_m=float(np.abs(error_m).mean()),
        bias_m=float(error_m.mean()),
        wrong=float((np.abs(error_m) > WRONG_M).mean()),
        coverage_90=float(inside.double().mean()),
        sky_right=looked.sky_right,
    )


def calibrate(network: LayerNetwork, courses: Sequence[Course], batch_size: int) -> Calibration:
    """Fits the temperature at which intervals cover what they claim, and the width up to which a height is good."""
    looked = _look(network, courses, batch_size)
    temperature = min(TEMPERATURES, key=lambda each: abs(_coverage(looked, each) - COVERAGE_AIM))
    low_m, high_m = heights_at(looked.mixing / temperature, INTERVAL_LEVELS).unbind(dim=1)
    median_m = heights_at(looked.mixing, (0.5,))[:, 0]
    is_wrong = (median_m - looked.height_m).abs() > WRONG_M
    for width_m in WIDTHS_M:
        is_good = (high_m - low_m) <= torch.clamp(WIDTH_RATIO * median_m, min=width_m)
        if float(is_wrong[is_good].double().mean()) <= GOOD_WRONG_MAX:
            break
    return Calibration(temperature, width_m, WIDTH_RATIO)


def _coverage(looked: _Looked, temperature: float) -> float:
    low_m, high_m = heights_at(looked.mixing / temperature, INTERVAL_LEVELS).unbind(dim=1)
    return float(((low_m <= looked.height_m) & (looked.height_m <= high_m)).double().mean())


def _look(network: LayerNetwork, courses: Sequence[Course], batch_size: int) -> _Looked:
    was_training = network.training
    network.eval()
    device = network.position.device
    mixing, height_m, right, known = [], [], 0, 0
    with torch.inference_mode():
        for first in range(0, len(courses), batch_size):
            some = courses[first : first + batch_size]
            random = [np.random.default_rng([first, place]) for place in range(len(some))]
            batch = make_batch(some, random, is_varied=False)
            inputs = [each.to(device) for each in (batch.step_looks, batch.step_facts, batch.looks, batch.facts)]
            answers = network.follow(*inputs)
            there = batch.is_there.flatten()
            true_m, sky = batch.mixing_height_m.flatten(), batch.sky.flatten()
            has_height, has_sky = there & torch.isfinite(true_m), there & (sky != UNKNOWN)
            mixing.append(answers.mixing.cpu()[has_height])
            height_m.append(true_m[has_height])
            right += int((answers.sky.cpu().argmax(dim=1) == sky)[has_sky].sum())
            known += int(has_sky.sum())
    network.train(was_training)
    return _Looked(torch.cat(mixing), torch.cat(height_m).double(), right / max(known, 1))
