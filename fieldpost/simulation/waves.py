"""Smooth fluctuations that are the same at any time and in any order of asking: sums of sines. Knows no weather."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

WAVE_COUNT = 5
"""Sines in one wave; five with unrelated periods do not repeat within a month."""


class Waves:
    """Reproducible fluctuations: each is a sum of sines with unrelated periods and phases drawn once.

    Args:
        seed: The same seed gives the same waves.
        periods_s: (waves,): the typical period of each wave; its sines have 0.6 to 1.7 times that.
        stream: Which waves of that seed.
    """

    def __init__(self, seed: int, periods_s: tuple[float, ...], stream: int = 0) -> None:
        random = np.random.default_rng([seed, stream])
        shape = (len(periods_s), WAVE_COUNT)
        periods = np.array(periods_s)[:, None] * np.exp(random.uniform(-0.5, 0.5, shape))
        self._omega = 2 * np.pi / periods
        self._phase = random.uniform(0, 2 * np.pi, shape)
        self._amplitude = np.sqrt(2 / WAVE_COUNT)

    def __call__(self, unix_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The waves at these times: (waves, times), each with mean 0 and standard deviation 1."""
        angle = self._omega[:, :, None] * unix_s + self._phase[:, :, None]
        result: NDArray[np.float64] = self._amplitude * np.sin(angle).sum(axis=1)
        return result


class Texture:
    """Fluctuations over time and height: a sum of plane waves, each sin(w t + k z + phase).

    As sin(a + b) = sin(a) cos(b) + cos(a) sin(b), the whole field is one product of two matrices.

    Args:
        seed: Two whole numbers; the same give the same texture.
        count: Plane waves.
        periods_s: Shortest and longest period.
        lengths_m: Shortest and longest wavelength along the height.
    """

    def __init__(
        self, seed: tuple[int, int], count: int, periods_s: tuple[float, float], lengths_m: tuple[float, float]
    ) -> None:
        random = np.random.default_rng(seed)
        periods, lengths = (
            np.exp(random.uniform(math.log(low), math.log(high), count)) for low, high in (periods_s, lengths_m)
        )
        self._omega = 2 * np.pi / periods
        self._wavenumber = 2 * np.pi / lengths * random.choice([-1, 1], count)
        self._phase = random.uniform(0, 2 * np.pi, count)
        self._amplitude = np.sqrt(2 / count)
        self._grid: NDArray[np.float32] = np.empty(0, np.float32)
        self._in_height: NDArray[np.float32] = np.empty((2 * count, 0), np.float32)

    def in_time(self, unix_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """The left factor: (times, 2 * count)."""
        angle = unix_s[:, None] * self._omega + self._phase
        factor: NDArray[np.float64] = self._amplitude * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        return factor.astype(np.float32)

    def in_height(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """The right factor: (2 * count, gates); the last grid's is kept, since single profiles are asked for too."""
        if not np.array_equal(z, self._grid):
            angle = self._wavenumber[:, None] * z.astype(np.float64)
            self._in_height = np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)
            self._grid = z.copy()
        return self._in_height
