"""What the learned retrieval's network reads: of a profile, of the mean over a step, and of the sun.

Training and retrieval both come through here, so that the network sees the same numbers in both. Knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fieldpost.sun import solar_elevation_deg, solar_hour_angle
from fieldpost.telegrams import Profiles, estimate_noise
from server.analyses.boundary_layer.learned.grid import CENTRES_M, EDGES_M, GATE_COUNT, WIDTHS_M

CHANNEL_COUNT = 4
LOOK_COUNT = 3
"""The latest profile, the mean of the step so far, and the mean of the last hour's steps, the older the less."""
FADING = math.exp(-5 / 40)
"""What a step counts less in that mean with each further one: 1/e after 40 minutes. A layer's top that no single
profile shows in sunlight stands out there, and so does how it fluctuates."""
FACT_COUNT = 7
BACKSCATTER_SCALE = 1e-7
"""m-1 sr-1: clean air. asinh(x) is x near nothing and a logarithm far from it."""
ASINH_DIVISOR = 4.0
NOISE_SCALE = 1e-13
"""m-3 sr-1 at a gate of 10 m: between a CL51 and a CL31."""
COUNT_MAX = 5.0
"""A mean over more profiles than this is told from one over this many by its noise alone."""
SIGMA_SHARE = 3.0
"""Where the mean is below so many standard deviations of noise, its relative fluctuation means nothing."""


class Sums(NamedTuple):
    """Sums over profiles of one instrument, so that a mean can grow profile by profile. All float64.

    Attributes:
        profile_count: (...,).
        total: (..., gates): backscatter, m-1 sr-1.
        squares: (..., gates): its square.
        clear: (..., gates): 1 below the lowest cloud that the instrument reports.
        noise: (...,): variance of the noise before range correction times the width of a gate, m-5 sr-2.
        obscured: (...,): 1 where the instrument says that fog or precipitation hides the sky.
    """

    profile_count: Tensor
    total: Tensor
    squares: Tensor
    clear: Tensor
    noise: Tensor
    obscured: Tensor


def noise_of(profiles: Profiles) -> NDArray[np.float64]:
    """The noise of each profile as Sums has it: (profiles,)."""
    gate_m = float(profiles.height_m[1] - profiles.height_m[0])
    variance: NDArray[np.float64] = estimate_noise(profiles.beta, profiles.height_m) ** 2 * gate_m
    return variance


def sums_of_each(
    beta: NDArray[np.float32],
    noise: NDArray[np.float64],
    cloud_base_m: NDArray[np.float32],
    is_obscured: NDArray[np.bool_],
) -> Sums:
    """Sums over each profile alone.

    Args:
        beta: (..., gates) on the grid, m-1 sr-1.
        noise: (...,): as in Sums.
        cloud_base_m: (...,); NaN where there is none.
        is_obscured: (...,).
    """
    total = torch.from_numpy(beta.astype(np.float64))
    top_m = np.nan_to_num(cloud_base_m, nan=np.inf)[..., None]
    return Sums(
        profile_count=torch.ones(beta.shape[:-1], dtype=torch.float64),
        total=total,
        squares=total.square(),
        clear=torch.from_numpy((EDGES_M[1:] <= top_m).astype(np.float64)),
        noise=torch.from_numpy(noise.astype(np.float64)),
        obscured=torch.from_numpy(is_obscured.astype(np.float64)),
    )


def to_channels(sums: Sums, in_reach: Tensor) -> Tensor:
    """The mean of some profiles as the network reads it; all 0 where there is no profile.

    Args:
        sums: Over profiles.
        in_reach: (..., gates): 1 where the instrument sees.

    Returns:
        (..., CHANNEL_COUNT, gates), float32: asinh(mean / BACKSCATTER_SCALE) / 4, asinh(mean / its noise) / 4,
        standard deviation of the profiles beyond their noise over the mean, and the share of them without a cloud.
    """
    count = sums.profile_count.clamp(min=1)[..., None]
    mean = sums.total / count
    noise = sums.noise[..., None] / count * _noise_gain()
    sigma = (noise / count).sqrt().clamp(min=1e-12)
    variance = (sums.squares / count - mean.square()).clamp(min=0) * (count / (count - 1).clamp(min=1))
    beyond = (variance - noise).clamp(min=0).sqrt()
    level = mean.abs() + SIGMA_SHARE * sigma + 0.1 * BACKSCATTER_SCALE
    channels = torch.stack(
        [
            torch.asinh(mean / BACKSCATTER_SCALE) / ASINH_DIVISOR,
            torch.asinh(mean / sigma) / ASINH_DIVISOR,
            (beyond / level).clamp(max=2.0),
            sums.clear / count,
        ],
        dim=-2,
    )
    is_there = (sums.profile_count > 0).to(channels.dtype)[..., None, None]
    return (channels * in_reach[..., None, :] * is_there).float()


def to_facts(sums: Sums, sun: Tensor) -> Tensor:
    """What is known beside the profile.

    Args:
        sums: Over profiles.
        sun: (..., 4), from sun_facts.

    Returns:
        (..., FACT_COUNT), float32.
    """
    count = sums.profile_count.clamp(min=1)
    others = torch.stack(
        [
            torch.asinh((sums.noise / count / 10.0).sqrt() / NOISE_SCALE) / 3.0,
            sums.obscured / count,
            sums.profile_count.clamp(max=COUNT_MAX) / COUNT_MAX,
        ],
        dim=-1,
    )
    return torch.cat([sun.to(others.dtype), others], dim=-1).float()


def sun_facts(
    unix_s: NDArray[np.float64], latitude_deg: float | None, longitude_deg: float | None
) -> NDArray[np.float32]:
    """The sun as the network reads it: (times, 4): sine of elevation, sine, cosine of hour angle, 1; 0 if unknown."""
    if latitude_deg is None or longitude_deg is None:
        return np.zeros((len(unix_s), 4), np.float32)
    elevation = np.radians(solar_elevation_deg(unix_s, latitude_deg, longitude_deg))
    hour_angle = solar_hour_angle(unix_s, longitude_deg)
    facts = [np.sin(elevation), np.sin(hour_angle), np.cos(hour_angle), np.ones(len(unix_s))]
    return np.stack(facts, axis=1).astype(np.float32)


def fade(before: Sums, steps: Sequence[Sums]) -> list[Sums]:
    """The faded sums after each step.

    Args:
        before: The faded sums before them.
        steps: The sums of each step.
    """
    faded = []
    for step in steps:
        before = Sums(*(FADING * old + new for old, new in zip(before, step, strict=True)))
        faded.append(before)
    return faded


def _noise_gain() -> Tensor:
    """From Sums.noise to the variance of one profile at each gate: noise grows with the square of the height."""
    return torch.from_numpy(CENTRES_M**4 / WIDTHS_M)


def no_sums() -> Sums:
    """Sums over nothing."""
    nothing, gates = torch.zeros((), dtype=torch.float64), torch.zeros(GATE_COUNT, dtype=torch.float64)
    return Sums(nothing, gates, gates, gates, nothing, nothing)


def no_looks() -> Tensor:
    """The looks of nothing."""
    return torch.zeros(0, LOOK_COUNT * CHANNEL_COUNT, GATE_COUNT)


def no_facts() -> Tensor:
    """The facts of nothing."""
    return torch.zeros(0, FACT_COUNT)
