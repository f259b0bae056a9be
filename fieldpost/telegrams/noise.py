"""How noisy a profile is, from its highest gates, where there is no aerosol. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOP_SHARE = 0.1
NOISE_FLOOR = 5e-15
"""m-3 sr-1. Where a telegram has rounded the noise away (CT25K, or the far side of a thick cloud), the top of the
profile is nearly all zeros; no instrument here is better than this."""


def estimate_noise(beta: NDArray[np.float32], height_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of the signal before range correction, beta / z**2: (profiles,), m-3 sr-1.

    Neighbouring gates share noise, since the laser's pulse is longer than a gate. Averages over many gates are then
    noisier than white noise of the same standard deviation; what counts is the variance plus twice the covariance of
    neighbours, and the root of that is returned.

    Args:
        beta: (profiles, gates), m-1 sr-1; NaN where missing.
        height_m: (gates,).
    """
    top = slice(len(height_m) - max(2, round(TOP_SHARE * len(height_m))), None)
    signal = beta[:, top].astype(np.float64) / np.maximum(height_m[top], 1.0) ** 2
    missing = ~np.isfinite(signal)
    signal[missing] = 0
    count = np.maximum((~missing).sum(axis=1, keepdims=True), 1)
    centred = np.where(missing, 0, signal - signal.sum(axis=1, keepdims=True) / count)
    variance = (centred**2).sum(axis=1) / count[:, 0]
    covariance = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / count[:, 0]
    noise: NDArray[np.float64] = np.sqrt(np.maximum(variance + 2 * np.maximum(covariance, 0), NOISE_FLOOR**2))
    return noise
