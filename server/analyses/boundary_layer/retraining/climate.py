"""A climate that looks like a network: the shipped training's, moved by how the network's days differ from its days.

What the network tells surely (where it is, how noisy its instruments are, how they are calibrated against each other)
is taken over. Its weather is met halfway: some weeks are not a climate, and a retrieval that has never seen rain would
not know it. What no ceilometer tells without truth (when layers grow and collapse, what lies above) stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fieldpost.simulation.climates import TRAINING, Climate
from server.analyses.boundary_layer.retraining.statistics import STATISTICS
from server.analyses.retraining import DayStatistics

QUANTILES = (0.05, 0.95)
LATITUDE_MARGIN_DEG, LONGITUDE_MARGIN_DEG = 2.0, 5.0
NOISE_FACTOR_BOUNDS = (0.2, 5.0)
SHARE_RATIO_BOUNDS = (0.5, 2.0)
SHARE_MAX = 0.9
SHARE_FLOOR = 0.02
"""Added to both shares before they are divided: a rainless month does not mean that it never rains."""
INSTRUMENTS_MIN, DAYS_MIN = 3, 5

Usual = Mapping[str, Mapping[str, tuple[float, float]]]
"""By instrument model and statistic: mean and standard deviation of the training's days."""


def summarise(days: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation from day to day of each statistic, by instrument model."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for model, values in days.items():
        columns = {name: np.array([each.get(name, np.nan) for each in values]) for name in STATISTICS}
        finite = {name: column[np.isfinite(column)] for name, column in columns.items()}
        found[model] = {name: (float(c.mean()), float(c.std())) for name, c in finite.items() if len(c)}
    return found


def make_climate(days: Sequence[DayStatistics], usual: Usual) -> Climate:
    """The network's climate.

    Args:
        days: Of the network.
        usual: What days of TRAINING look like, of instrument models that are simulated.
    """
    days = [each for each in days if each.instrument_model in usual]
    if len(days) < DAYS_MIN:
        return TRAINING
    changed: dict[str, Any] = {**_sites(days), **_instruments(days, usual), **_weather(days, usual)}
    return replace(TRAINING, **changed)


def _sites(days: Sequence[DayStatistics]) -> dict[str, object]:
    known = [(each.latitude_deg, each.longitude_deg) for each in days if each.latitude_deg is not None]
    latitudes = np.array([latitude for latitude, _ in known], np.float64)
    longitudes = np.array([longitude for _, longitude in known if longitude is not None], np.float64)
    if not len(latitudes) or not len(longitudes):
        return {}
    size_deg = np.abs(latitudes)
    low, high = size_deg.min() - LATITUDE_MARGIN_DEG, size_deg.max() + LATITUDE_MARGIN_DEG
    west, east = longitudes.min() - LONGITUDE_MARGIN_DEG, longitudes.max() + LONGITUDE_MARGIN_DEG
    return {
        "latitude_deg": (float(max(low, 0.0)), float(min(high, 89.0))),
        "longitude_deg": (float(max(west, -180.0)), float(min(east, 180.0))),
        "southern_share": float((latitudes < 0).mean()),
    }


def _instruments(days: Sequence[DayStatistics], usual: Usual) -> dict[str, object]:
    changed: dict[str, object] = {}
    beyond = _differences(days, usual, "noise_low")
    if len(beyond):
        factor = np.exp(np.mean(np.log(TRAINING.noise_factor))) * 10 ** np.quantile(beyond, QUANTILES)
        low, high = np.clip(factor * (0.9, 1.1), *NOISE_FACTOR_BOUNDS)  # so that it is a range at one instrument, too
        changed["noise_factor"] = (float(low), float(high))
    spread = _calibration_spread(days)
    if np.isfinite(spread):
        changed["calibration_log_spread"] = float(np.clip(spread, 0.05, 0.6))
    gaps, lost = (_finite([each.values.get(name, np.nan) for each in days]) for name in ("has_gap", "lost_share"))
    if len(gaps) and len(lost):
        changed["dropout_share"] = float(np.clip(gaps.mean(), 0.02, 0.5))
        changed["lost_share"] = float(np.clip(np.median(lost), 0.0, 0.2))
    return changed


def _calibration_spread(days: Sequence[DayStatistics]) -> float:
    """Standard deviation of the logarithm of instruments' median haze: an upper bound, since hazes differ, too."""
    hazes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in days:
        hazes[each.station, each.instrument].append(each.values["haze"])
    finite = (_finite(values) for values in hazes.values())
    medians = [np.median(values) * np.log(10) for values in finite if len(values) >= DAYS_MIN]
    return float(np.std(medians, ddof=1)) if len(medians) >= INSTRUMENTS_MIN else float("nan")


def _weather(days: Sequence[DayStatistics], usual: Usual) -> dict[str, object]:
    changed: dict[str, object] = {}
    hazier = _differences(days, usual, "haze")
    if len(hazier):
        factor = 10 ** (np.median(hazier) / 2)
        low, high = TRAINING.mixed_backscatter
        changed["mixed_backscatter"] = (float(low * min(factor, 1.0)), float(high * max(factor, 1.0)))
    shares = {
        "low_cloud_share": ("cumulus_share", "deck_share"),
        "cloud_share": ("middle_share", "cirrus_share"),
        "hidden_share": ("rain_share", "fog_share"),
    }
    for statistic, names in shares.items():
        ratio = np.sqrt(_share_ratio(days, usual, statistic))
        changed |= {name: float(min(getattr(TRAINING, name) * ratio, SHARE_MAX)) for name in names}
    return changed


def _share_ratio(days: Sequence[DayStatistics], usual: Usual, statistic: str) -> float:
    pairs = [
        (each.values[statistic], usual[each.instrument_model][statistic][0])
        for each in days
        if np.isfinite(each.values[statistic]) and statistic in usual[each.instrument_model]
    ]
    if not pairs:
        return 1.0
    network, simulated = np.mean(pairs, axis=0) + SHARE_FLOOR
    return float(np.clip(network / simulated, *SHARE_RATIO_BOUNDS))


def _differences(days: Sequence[DayStatistics], usual: Usual, statistic: str) -> np.ndarray:
    """Of each day, how far a statistic lies from what is usual with its instrument model."""
    return _finite(
        [
            each.values[statistic] - usual[each.instrument_model][statistic][0]
            for each in days
            if statistic in usual[each.instrument_model]
        ]
    )


def _finite(values: Sequence[float]) -> np.ndarray:
    column = np.array(values, np.float64)
    return column[np.isfinite(column)]
