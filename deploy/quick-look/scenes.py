"""Simulated profiles with known truth, of the instruments whose telegrams a station's quick look can read.

Sky, CL31 and CL51 are those of fieldpost.simulation, drawn from one of its climates. What that lacks is added here: the
CT25K, a blocked window, and an instrument that has gone blind. Knows no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.quick_look.profile_input import InputGrid, average_over, to_input
from fieldpost.simulation import REGIMES, SKIES, TRAINING, Atmosphere, Climate, SimulatedCeilometer
from fieldpost.telegrams import Profiles, estimate_noise

INSTRUMENTS = {"cl31": 0.4, "cl51": 0.4, "ct25k": 0.2}
"""And how often each is drawn."""
LEARNED_FROM = replace(TRAINING, mixed_backscatter=(1.2e-7, 3e-6))
"""Cleaner than TRAINING: under a clear sky the real CL31 of the tests show 1e-7 to 2e-7 m-1 sr-1 of aerosol."""
STEPS = {"cl31": 1e-8, "cl51": 1e-8, "ct25k": 1e-7}
"""One step of the telegram, m-1 sr-1."""
CT25K_GATE_M, CT25K_GATES = 30.0, 256
CT25K_NOISE_STEPS = (0.5, 1.5)
"""Standard deviation of a gate in steps of the telegram. In the real telegrams of the tests it is 0.9 at 7 km and no
less at 1.5 km: what the CT25K writes has no noise that grows as the square of the range."""
BLOCKED_SHARE, BLIND_SHARE = 0.04, 0.03
FIRST_DAY, DAY_SPAN = 18_262, 1826
DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class View:
    """What one instrument sees at some instants, and what is true then.

    Attributes:
        instrument: Its model.
        profiles: As decoded from its telegrams.
        sky: (profiles,): one of SKIES, or "blocked" or "blind".
        regime: (profiles,): one of REGIMES.
        height_m: (profiles,), float64: the mixing height; NaN where the sky shows none.
        others_m: (profiles, 2), float64: residual layer's top and cloud base; NaN where there is none.
    """

    instrument: str
    profiles: Profiles
    sky: NDArray[np.str_]
    regime: NDArray[np.str_]
    height_m: NDArray[np.float64]
    others_m: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenes:
    """Profiles as the network sees them.

    Attributes:
        profile: (profiles, channels, gates), float32.
        height_m: (profiles,), float32: the truth; NaN where the sky shows no height.
    """

    profile: NDArray[np.float32]
    height_m: NDArray[np.float32]


def make_scenes(seeds: range, times_a_seed: int, climate: Climate, grid: InputGrid) -> Scenes:
    """Profiles of many instruments, one a seed; the same for the same seeds.

    Where the instrument itself says that the sky is hidden, a station does not ask the network, so those are left out.
    """
    inputs, heights_m = [], []
    for view in views(seeds, times_a_seed, climate):
        is_asked = ~view.profiles.is_obscured
        inputs.append(to_input(view.profiles, grid)[is_asked])
        heights_m.append(view.height_m[is_asked].astype(np.float32))
    return Scenes(np.concatenate(inputs), np.concatenate(heights_m))


def views(seeds: range, times_a_seed: int, climate: Climate) -> Iterator[View]:
    """For each seed one day of one instrument, at random instants; the same for the same seeds."""
    for seed in seeds:
        random = np.random.default_rng([seed, 21])
        model = str(random.choice(list(INSTRUMENTS), p=list(INSTRUMENTS.values())))
        day = FIRST_DAY + int(random.integers(DAY_SPAN))
        yield _view(model, seed, (day + np.sort(random.random(times_a_seed))) * DAY_S, climate, random)


def _view(model: str, seed: int, unix_s: NDArray[np.float64], climate: Climate, random: np.random.Generator) -> View:
    atmosphere = Atmosphere(seed, climate)
    if model == "ct25k":
        # a CL31 is built alike: one lens for light that goes and comes
        noiseless = replace(climate, noise_factor=(0.0, 0.0))
        truth, profiles = SimulatedCeilometer("cl31", seed, atmosphere, noiseless).profiles(unix_s)
        profiles = _as_ct25k(profiles, random)
    else:
        truth, profiles = SimulatedCeilometer(model, seed, atmosphere, climate).profiles(unix_s)
    sky = np.array([*SKIES, "blocked", "blind"])[truth.sky]
    place = random.random(len(unix_s))
    sky[place < BLOCKED_SHARE + BLIND_SHARE] = "blind"
    sky[place < BLOCKED_SHARE] = "blocked"
    is_spoilt = np.isin(sky, ("blocked", "blind"))
    others_m = np.stack([truth.residual_layer_height_m, truth.cloud_base_m], axis=1)
    return View(
        instrument=model,
        profiles=_spoilt(profiles, STEPS[model], sky, random),
        sky=sky,
        regime=np.array(REGIMES)[truth.regime],
        height_m=np.where(is_spoilt, np.nan, truth.mixing_height_m),
        others_m=np.where(is_spoilt[:, None], np.nan, others_m),
    )


def _as_ct25k(profiles: Profiles, random: np.random.Generator) -> Profiles:
    """Noiseless profiles of finer gates as a CT25K would have measured and written them."""
    gate_m = float(profiles.height_m[1] - profiles.height_m[0])
    edges_m = np.arange(CT25K_GATES + 1) * CT25K_GATE_M
    beta = average_over(profiles.beta, float(profiles.height_m[0]) - gate_m / 2, gate_m, edges_m)
    steps = beta / STEPS["ct25k"] + random.uniform(*CT25K_NOISE_STEPS) * random.standard_normal(beta.shape)
    written = np.clip(np.rint(steps), -0x8000, 0x7FFF) * STEPS["ct25k"]
    return replace(profiles, height_m=edges_m[:-1] + CT25K_GATE_M / 2, beta=written.astype(np.float32))


def _spoilt(profiles: Profiles, step: float, sky: NDArray[np.str_], random: np.random.Generator) -> Profiles:
    """The profiles, with those that are "blocked" or "blind" made so."""
    beta, bases_m, is_obscured = profiles.beta.copy(), profiles.cloud_base_m.copy(), profiles.is_obscured.copy()
    height_m = profiles.height_m
    noise = estimate_noise(beta, height_m)[:, None] * np.square(height_m) * random.standard_normal(beta.shape)
    for index in np.flatnonzero(sky == "blocked"):
        echo = random.choice([0.0, 1e-4]) * np.exp(-height_m / 20)
        beta[index] = beta[index] * random.uniform(0, 0.02) + echo + noise[index] * random.uniform(0.2, 2)
        bases_m[index], is_obscured[index] = np.nan, False
    for index in np.flatnonzero(sky == "blind"):
        beta[index] += noise[index] * np.exp(random.uniform(np.log(30), np.log(300)))
    beta = (np.rint(beta / step) * step).astype(np.float32)
    return replace(profiles, beta=beta, cloud_base_m=bases_m, is_obscured=is_obscured)
