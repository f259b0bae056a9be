"""Profiles of a plain layer, and a network with drawn numbers: for tests that need no trained one."""

from __future__ import annotations

import numpy as np
import torch

from fieldpost.telegrams import Profiles
from server.analyses.boundary_layer.learned.network import LayerNetwork, NetworkConfig
from server.analyses.boundary_layer.learned.weights import Weights

HEIGHT_M = np.arange(770) * 10 + 5.0
START_NANOS = 1_700_000_100 * 10**9


def drawn_weights(seed: int = 0, config: NetworkConfig | None = None) -> Weights:
    """A network that was never trained: it says something of everything, and depends on everything."""
    torch.manual_seed(seed)
    return Weights(LayerNetwork(config or NetworkConfig()))


def make_profiles(unix_nanos: list[int], seed: int = 0, top_m: float = 900.0) -> Profiles:
    """Profiles with a layer up to top_m, and noise of their own at each instant."""
    rows = []
    for instant in unix_nanos:
        random = np.random.default_rng([seed, instant % (1 << 40)])
        clean = np.where(top_m > HEIGHT_M, 2e-6, 1e-7) * random.uniform(0.9, 1.1)
        rows.append(clean + 3e-14 * HEIGHT_M**2 * random.standard_normal(len(HEIGHT_M)))
    count = len(unix_nanos)
    return Profiles(
        unix_nanos=np.array(unix_nanos, np.int64),
        height_m=HEIGHT_M,
        beta=np.array(rows, np.float32),
        cloud_base_m=np.full((count, 3), np.nan, np.float32),
        is_obscured=np.zeros(count, np.bool_),
    )
