"""A day of a ceilometer in numbers that need no truth: noise, haze, clouds, rain and gaps. Knows no retrieval.

Days of the network and simulated days are described by the same function, so that they can be held against each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams import Profiles, estimate_noise
from server.analyses import AnalysisInput, AnalysisResult
from server.analyses.boundary_layer.classical.layers import FLAG_GOOD
from server.analyses.boundary_layer.classical.sky import below_cloud, judge_sky
from server.analyses.boundary_layer.decoding.decode import decode

LOW_M = (100.0, 400.0)
"""Where the haze of the mixing layer is measured: above most overlap errors, below most tops."""
GAP_S = 3600.0
HOURS_MIN = 18
"""A day with observations in fewer hours is no day: its night or its noon is missing."""
INPUT_STATISTICS = ("noise_low", "noise_high", "haze", "cloud_share", "low_cloud_share", "hidden_share")
"""What is held against the training's. noise_low and noise_high: the 20 % and 90 % quantiles of the noise before range
correction, decadic logarithm of m-3 sr-1: night and noon. haze: median backscatter of LOW_M, decadic logarithm of
m-1 sr-1. Shares of the profiles with a reported cloud, with one below LOW_CLOUD_M, and in rain or fog."""
LOW_CLOUD_M = 2500.0
STATISTICS = (*INPUT_STATISTICS, "low_quality_share")
"""Beside these the share of profiles with a height of low quality, or with none."""
_NANOS, _NANOS_PER_HOUR = 1e9, 3600 * 10**9


def describe_profiles(decoded: Sequence[Profiles]) -> dict[str, float]:
    """INPUT_STATISTICS of a day's profiles, and what the instrument's grid is."""
    if not decoded:
        return dict.fromkeys(INPUT_STATISTICS, float("nan"))
    noise, haze, cloud_m, hidden = [], [], [], []
    for profiles in decoded:
        lowest_m = profiles.lowest_cloud_base_m
        low = slice(*np.searchsorted(profiles.height_m, LOW_M))
        reach = slice(0, max(2, int(np.searchsorted(profiles.height_m, LOW_CLOUD_M))))
        clear = below_cloud(profiles.beta[:, reach], profiles.height_m[reach], lowest_m)
        sky = judge_sky(clear, profiles.height_m[reach], lowest_m, profiles.is_obscured)
        with np.errstate(invalid="ignore"):
            level = profiles.beta[:, low].mean(axis=1, dtype=np.float64)
        is_hazy = ~sky.is_hidden & ~(lowest_m < LOW_M[1] + 200) & (level > 0)
        noise.append(estimate_noise(profiles.beta, profiles.height_m))
        haze.append(level[is_hazy])
        cloud_m.append(lowest_m)
        hidden.append(sky.is_hidden)
    all_noise, all_haze = np.concatenate(noise), np.concatenate(haze)
    all_cloud_m = np.concatenate(cloud_m)
    low_log10, high_log10 = np.log10(np.quantile(all_noise, [0.2, 0.9]))
    return {
        "noise_low": float(low_log10),
        "noise_high": float(high_log10),
        "haze": float(np.log10(np.median(all_haze))) if len(all_haze) else float("nan"),
        "cloud_share": float(np.isfinite(all_cloud_m).mean()),
        "low_cloud_share": float((all_cloud_m < LOW_CLOUD_M).mean()),
        "hidden_share": float(np.concatenate(hidden).mean()),
        "gate_m": float(decoded[0].height_m[1] - decoded[0].height_m[0]),
        "gate_count": float(len(decoded[0].height_m)),
    }


def describe_answers(answers: Sequence[AnalysisResult | None]) -> dict[str, float]:
    """How many of a day's answers are of low quality; an observation without an answer is one."""
    is_low = [np.ones(1, np.bool_) if each is None else _flag(each) < FLAG_GOOD for each in answers]
    return {"low_quality_share": float(np.concatenate(is_low).mean()) if is_low else float("nan")}


def _flag(answer: AnalysisResult) -> NDArray[np.float32]:
    return next(each.values for each in answer.variables if each.name == "quality_flag")


def describe_inputs(observations: Sequence[AnalysisInput], measure_unix_nanos: NDArray[np.int64]) -> dict[str, float]:
    """The same from what the instrument wrote, with how regularly it did.

    Args:
        observations: Some of the day's, evenly spaced.
        measure_unix_nanos: (observations of the day,), ascending.
    """
    decoded = []
    for each in observations:
        try:
            decoded.append(decode(each))
        except InvalidObservationError:
            continue
    described = describe_profiles(decoded)
    if len(np.unique(measure_unix_nanos // _NANOS_PER_HOUR)) < HOURS_MIN:
        described |= dict.fromkeys(INPUT_STATISTICS, float("nan"))
    waits_s = np.diff(measure_unix_nanos) / _NANOS
    waits_s = waits_s[waits_s > 0]
    cadence_s = float(np.median(waits_s)) if len(waits_s) else float("nan")
    return {
        **described,
        "undecodable_share": 1 - len(decoded) / len(observations) if observations else float("nan"),
        "cadence_s": cadence_s,
        "lost_share": float(1 - len(waits_s) * cadence_s / waits_s.sum()) if len(waits_s) else float("nan"),
        "has_gap": float((waits_s > max(GAP_S, 3 * cadence_s)).any()) if len(waits_s) else float("nan"),
    }
