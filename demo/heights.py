"""How well the heights of each version agree with the simulated truth, in the numbers of the benchmark. Asks no one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fieldpost.simulation import REGIMES, SKIES, Atmosphere
from fieldpost.v1.prediction_pb2 import Prediction
from server.analyses.boundary_layer import LEARNED, NAME, WAVELET
from server.analyses.boundary_layer.products.retrievals import MIXING_HEIGHT, Retrievals, gather
from server.analyses.boundary_layer.scoring.metrics import NORMAL_90, Compared, score

ANALYSIS, COMPARED_VERSION = NAME, WAVELET
"""What is predicted here, and the version that predicts beside the active one."""
METHODS = {WAVELET: "wavelet", LEARNED: "learned"}


@dataclass(frozen=True, slots=True)
class HeightAccount:
    """The heights of one model version at one instrument. What needs a truth is None where there is none to tell.

    Attributes:
        model_version: Which.
        method: Its name, for people.
        predicted: Observations with a prediction.
        provisional: Of them, those that will be made again.
        availability_percent: Share of the instants at which a height is defined, for which one was given.
        bias_m: Mean error.
        mae_m: Mean absolute error.
        rmse_m: Root of the mean squared error.
        wrong_layer_percent: Share of heights that are another layer's.
    """

    model_version: int
    method: str
    predicted: int
    provisional: int
    availability_percent: float | None = None
    bias_m: float | None = None
    mae_m: float | None = None
    rmse_m: float | None = None
    wrong_layer_percent: float | None = None


def account_for_heights(
    version: int, predictions: Sequence[Prediction], atmosphere: Atmosphere | None
) -> HeightAccount:
    """The account of one version.

    Args:
        version: Which.
        predictions: Its predictions for one instrument; failures say nothing here.
        atmosphere: What was measured; None where nobody knows the truth.
    """
    answered = [each for each in predictions if not each.failure]
    account = HeightAccount(
        model_version=version,
        method=name_method(version),
        predicted=len(answered),
        provisional=sum(each.is_provisional for each in predictions),
    )
    if atmosphere is None or not answered:
        return account
    figures = score(_beside_truth(gather(answered), atmosphere))
    return replace(
        account,
        availability_percent=_number(figures.availability * 100),
        bias_m=_number(figures.bias_m),
        mae_m=_number(figures.mae_m),
        rmse_m=_number(figures.rmse_m),
        wrong_layer_percent=_number(figures.wrong_layer * 100),
    )


def name_method(version: int) -> str:
    """What people call a version."""
    return METHODS.get(version, f"version {version}")


def _beside_truth(found: Retrievals, atmosphere: Atmosphere) -> Compared:
    unix_s = found.unix_nanos / 1e9
    truth = atmosphere.truth(unix_s)
    height_m, reach_m = found.heights_m[MIXING_HEIGHT], NORMAL_90 * found.standard_error_m
    return Compared(
        course=np.zeros(len(found), np.int64),
        unix_s=unix_s,
        instrument=np.full(len(found), ""),
        regime=np.array(REGIMES)[truth.regime],
        sky=np.array(SKIES)[truth.sky],
        true_m=truth.mixing_height_m,
        others_m=np.stack([truth.residual_layer_height_m, truth.cloud_base_m], axis=1),
        found_m=height_m,
        lower_m=height_m - reach_m,
        upper_m=height_m + reach_m,
        flag=found.quality.astype(np.float64),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
