"""Reads what the network says of profiles as heights, with their uncertainty and quality. Knows no instrument."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from server.analyses import AnalysisResult, AnalysisVariable
from server.analyses.boundary_layer.classical.layers import FLAG_GOOD, FLAG_LOW, FLAG_NONE
from server.analyses.boundary_layer.learned.distribution import heights_at
from server.analyses.boundary_layer.learned.network import SKIES, Answers
from server.analyses.boundary_layer.learned.weights import Calibration

THICKNESS = "atmosphere_boundary_layer_thickness"
LEVELS = (0.05, 0.16, 0.84, 0.95)
"""Of the central 90 % interval, and of one standard error to either side."""
CLEAR_OR_CLOUD = 2
"""Of the skies, so many first ones leave a height defined."""
NO_HEIGHT_PROBABILITY = 0.5
"""Where rain and fog together are more probable than this, no height is given."""
NO_HEIGHT_WIDTH_M = 660.0
"""Where the central 90 % interval is wider than this, no height is given, only the interval: the profile does not tell.
It is what a standard deviation of 200 m makes, beyond which a network drops a retrieval (rule of the Unified Ceilometer
Network). On courses of the climate CALIBRATION that takes 5 % of the heights away, and seven tenths of the mean square
error."""
QUALITY_MEANINGS = ("none", "low", "good")


def read_answers(
    answers: Answers, calibration: Calibration, instants: Sequence[NDArray[np.int64]]
) -> list[AnalysisResult]:
    """The results of observations.

    Args:
        answers: Of the profiles of all.
        calibration: Of the version.
        instants: Of the profiles of each observation, nanoseconds since 1970.
    """
    sky = torch.softmax(answers.sky.double(), dim=1)
    is_hidden = (sky[:, CLEAR_OR_CLOUD:].sum(dim=1) > NO_HEIGHT_PROBABILITY).numpy()
    height_m = heights_at(answers.mixing, (0.5,))[:, 0].numpy()
    lower_m, low_m, high_m, upper_m = heights_at(answers.mixing / calibration.interval_temperature, LEVELS).numpy().T
    lower_m, upper_m = np.minimum(lower_m, height_m), np.maximum(upper_m, height_m)
    is_untold = is_hidden | (upper_m - lower_m > NO_HEIGHT_WIDTH_M)
    good_width_m = np.maximum(calibration.good_width_m, calibration.good_width_ratio * height_m)
    flag = np.where(upper_m - lower_m <= good_width_m, FLAG_GOOD, FLAG_LOW)
    columns = [
        (THICKNESS, "m", _hide(height_m, is_untold), ()),
        (f"{THICKNESS}_standard_error", "m", _hide((high_m - low_m) / 2, is_untold), ()),
        (f"{THICKNESS}_lower", "m", _hide(lower_m, is_hidden), ()),
        (f"{THICKNESS}_upper", "m", _hide(upper_m, is_hidden), ()),
        ("residual_layer_height", "m", _hide(_where_any(answers.residual), is_hidden), ()),
        ("cloud_base_height", "m", _where_any(answers.cloud), ()),
        ("sky_condition", "1", sky.argmax(dim=1).numpy(), SKIES),
        ("quality_flag", "1", np.where(is_untold, FLAG_NONE, flag), QUALITY_MEANINGS),
    ]
    results, first = [], 0
    for each in instants:
        mine = slice(first, first + len(each))
        variables = [AnalysisVariable(n, unit, v[mine].astype(np.float32), means) for n, unit, v, means in columns]
        results.append(AnalysisResult(each, tuple(variables)))
        first += len(each)
    return results


def _where_any(logits: torch.Tensor) -> NDArray[np.float64]:
    """The median height of what may be there, (looks,), m; NaN where it is more probable that it is not."""
    is_none = torch.softmax(logits.double(), dim=1)[:, -1] > 0.5
    height_m = heights_at(logits[:, :-1], (0.5,))[:, 0]
    return torch.where(is_none, torch.nan, height_m).numpy()


def _hide(values: NDArray[np.floating], is_hidden: NDArray[np.bool_]) -> NDArray[np.floating]:
    return np.where(is_hidden, np.nan, values)
