"""Simulated profiles to train on, with known truth: many instruments, and skies in which there is nothing to find.

The atmosphere is that of fieldpost.simulation. What is added here is what a station meets beside fair weather: other
gates, other noise, other calibrations, unreported clouds, stratus, and fog, rain, a blocked window. Knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.quick_look.profile_input import InputGrid, to_input
from fieldpost.simulation import Atmosphere
from fieldpost.simulation.profile import CLOUD_LIDAR_RATIO_SR, CLOUD_MULTIPLE_SCATTERING
from fieldpost.telegrams import Profiles

INSTRUMENTS = (
    (10.0, 1540, 1e-8, 0.40),  # CL51
    (20.0, 385, 1e-8, 0.15),  # CL31
    (10.0, 770, 1e-8, 0.20),  # CL31
    (5.0, 1500, 1e-8, 0.15),  # CL31
    (30.0, 256, 1e-7, 0.10),  # CT25K
)
"""Gate width in m, gates, one step of the telegram in m-1 sr-1, and how often it is drawn."""
NOISE_OF_10_M = (1.5e-14, 4e-13)
"""Of one gate of 10 m before range correction, m-3 sr-1: real CL51 have 3e-14 to 7e-14, real CL31 9e-14 to 3.6e-13."""
NEIGHBOUR_WEIGHT = 0.4
CLOUD_BACKSCATTER = 4e-4
"""Of stratus, m-1 sr-1: what the shipped network was trained with."""
CALIBRATION_SPREAD = 0.5
"""Standard deviation of the logarithm of a factor: of what an uncalibrated instrument says, and of air that is cleaner
or hazier than the simulator's. With 0.7 the model was worse everywhere else, and real clear air no better."""
BAD_SHARE, STRATUS_SHARE, STRETCHED_SHARE = 0.18, 0.08, 0.4
UNREPORTED_CLOUD_SHARE = 0.15
DROPLET_EXTINCTION_SR = CLOUD_LIDAR_RATIO_SR * CLOUD_MULTIPLE_SCATTERING
DAY_S = 86400.0


@dataclass(frozen=True)
class Scenes:
    """Profiles as the network sees them.

    Attributes:
        profile: (profiles, channels, gates), float32.
        height_m: (profiles,), float32: the truth; NaN where the sky is bad.
    """

    profile: NDArray[np.float32]
    height_m: NDArray[np.float32]


def make_scenes(seeds: range, times_a_seed: int, grid: InputGrid) -> Scenes:
    """For each seed one day of one instrument, at random instants; the same for the same seeds."""
    parts = [_one_day(seed, times_a_seed, grid) for seed in seeds]
    return Scenes(np.concatenate([p for p, _ in parts]), np.concatenate([h for _, h in parts]))


def _one_day(seed: int, count: int, grid: InputGrid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng([seed, 7])
    gate_m, gate_count, step, _ = INSTRUMENTS[random.choice(len(INSTRUMENTS), p=[i[3] for i in INSTRUMENTS])]
    height_m = (np.arange(gate_count) + 0.5) * gate_m
    # seen through a stretched ruler, the same atmosphere has other heights than the simulator draws
    stretch = np.exp(random.uniform(-0.5, 0.5)) if random.random() < STRETCHED_SHARE else 1.0
    unix_s = (20_000 + int(random.integers(3000)) + random.random(count)) * DAY_S
    truth, beta = Atmosphere(seed).scene(unix_s, height_m / stretch)
    top_m, cloud_m = truth.mixing_height_m * stretch, truth.cloud_base_m * stretch

    is_stratus = random.random(count) < STRATUS_SHARE
    cloud_m = np.where(is_stratus, top_m * random.uniform(0.93, 1.0, count), cloud_m)
    beta = np.where(is_stratus[:, None], _add_droplets(beta, height_m, cloud_m, cloud_m + 250, CLOUD_BACKSCATTER), beta)
    beta *= np.exp(random.normal(0, CALIBRATION_SPREAD)).astype(np.float32)
    beta *= 1 - random.uniform(-0.15, 0.35) * np.exp(-height_m / random.uniform(30, 120))  # what overlap leaves
    noise = np.exp(random.uniform(*np.log(NOISE_OF_10_M))) * np.sqrt(10 / gate_m)
    noise_factor = np.ones(count)
    is_bad = random.random(count) < BAD_SHARE
    for index in np.flatnonzero(is_bad):
        beta[index], cloud_m[index], noise_factor[index] = _spoil(beta[index], height_m, cloud_m[index], random)

    measured = beta + _noise(beta.shape, random) * (noise * noise_factor)[:, None] * np.square(height_m)
    measured = np.clip(np.rint(measured / step), -0x80000, 0x7FFFF) * step
    is_reported = random.random(count) >= UNREPORTED_CLOUD_SHARE
    reported_m = np.where(is_reported, cloud_m + random.normal(0, 20, count), np.nan)
    profiles = Profiles(
        unix_nanos=(unix_s * 1e9).astype(np.int64),
        height_m=height_m,
        beta=measured.astype(np.float32),
        cloud_base_m=reported_m[:, None].astype(np.float32),
        is_obscured=np.zeros(count, np.bool_),
    )
    return to_input(profiles, grid), np.where(is_bad, np.nan, top_m).astype(np.float32)


def _spoil(
    beta: NDArray[np.float32], height_m: NDArray[np.float64], cloud_m: float, random: np.random.Generator
) -> tuple[NDArray[np.float32], float, float]:
    """A sky that shows no layer: the profile, its cloud base, and a factor on the noise."""
    row = beta[None, :]
    kind = random.choice(["fog", "rain", "low cloud", "blocked", "noise"])
    if kind == "fog":
        strength = np.exp(random.uniform(np.log(5e-5), np.log(1e-3)))
        row = _add_droplets(row, height_m, np.array([-100.0]), np.array([random.uniform(20, 250)]), strength)
        return row[0], random.choice([np.nan, random.uniform(0, 80)]), 1.0
    if kind == "rain":
        top_m = random.uniform(600, 4000)
        strength = np.exp(random.uniform(np.log(8e-6), np.log(1.2e-4)))
        streaks = 1 + 0.4 * np.sin(height_m / random.uniform(60, 300) + random.uniform(0, 6))
        fall = np.where(height_m < top_m, strength * streaks, 0) * np.exp(-height_m / random.uniform(800, 4000))
        rain = (row + fall) * np.exp(-2 * 20 * np.cumsum(fall) * (height_m[1] - height_m[0]))
        has_cloud = random.random() < 0.6
        if has_cloud:
            rain = _add_droplets(rain, height_m, np.array([top_m]), np.array([top_m + 250]), CLOUD_BACKSCATTER)
        return rain[0].astype(np.float32), top_m if has_cloud else np.nan, 1.0
    if kind == "low cloud":
        base_m = random.uniform(40, 180)
        row = _add_droplets(row, height_m, np.array([base_m]), np.array([base_m + 200]), CLOUD_BACKSCATTER * 1.5)
        return row[0], base_m, 1.0
    if kind == "blocked":
        spike = random.choice([0.0, 1e-4]) * np.exp(-height_m / 20)
        return (row * random.uniform(0, 0.02) + spike)[0].astype(np.float32), np.nan, random.uniform(0.2, 2)
    return row[0], cloud_m, np.exp(random.uniform(np.log(30), np.log(300)))


def _add_droplets(
    beta: NDArray[np.float32],
    height_m: NDArray[np.float64],
    base_m: NDArray[np.float64],
    top_m: NDArray[np.float64],
    strength: float,
) -> NDArray[np.float32]:
    """The profiles with a cloud between base and top, which hides what is above it; none where base is NaN."""
    edge = 1 / (1 + np.exp(-np.clip((height_m - np.nan_to_num(base_m, nan=1e6)[:, None]) / 8, -50, 50)))
    below_top = 1 / (1 + np.exp(np.clip((height_m - np.nan_to_num(top_m, nan=1e6)[:, None]) / 8, -50, 50)))
    cloud = strength * edge * below_top
    depth = np.cumsum(cloud, axis=1) * (height_m[1] - height_m[0]) * DROPLET_EXTINCTION_SR
    clouded: NDArray[np.float32] = ((beta + cloud) * np.exp(-2 * depth)).astype(np.float32)
    return clouded


def _noise(shape: tuple[int, int], random: np.random.Generator) -> NDArray[np.float32]:
    """Noise of unit standard deviation, correlated between neighbouring gates."""
    white = random.standard_normal((shape[0], shape[1] + 1), dtype=np.float32)
    mixed: NDArray[np.float32] = white[:, :-1] + np.float32(NEIGHBOUR_WEIGHT) * white[:, 1:]
    return mixed / np.float32(np.sqrt(1 + NEIGHBOUR_WEIGHT**2))
