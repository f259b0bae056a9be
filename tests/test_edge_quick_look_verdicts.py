"""What the shipped quick look says of skies that it has never seen: heights beside the truth, and its own verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fieldpost.simulation import HELD_OUT, SKIES, Atmosphere, SimulatedCeilometer

pytest.importorskip("ai_edge_litert", reason="the quick look needs pip install 'fieldpost[quick-look]'")

from edge_agent.framing import Framed, frame
from edge_agent.quick_look.estimator import Estimate, Estimator, decode_telegram
from edge_agent.quick_look.package import SHIPPED, read_package

SEEDS = range(700_000, 700_060)
TIMES_A_SEED = 8
DAY_S = 86400.0


class Seen(NamedTuple):
    """One telegram's estimate beside the truth."""

    model: str
    sky: str
    true_m: float
    found: Estimate


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    return Estimator(read_package(SHIPPED.read_bytes()))


@pytest.fixture(scope="module")
def seen(estimator: Estimator) -> list[Seen]:
    """Telegrams of many sites, days and instruments, none of which was trained on."""
    return [answer for seed in SEEDS for answer in look(estimator, seed)]


def look(estimator: Estimator, seed: int) -> Iterator[Seen]:
    model = ("cl31", "cl51")[seed % 2]
    instrument = SimulatedCeilometer(model, seed, Atmosphere(seed, HELD_OUT), HELD_OUT)
    unix_s = (19_000 + np.random.default_rng(seed).random(TIMES_A_SEED)) * DAY_S
    truth = instrument.atmosphere.truth(unix_s)
    for at, sky, true_m in zip(unix_s.tolist(), truth.sky, truth.mixing_height_m, strict=True):
        yield Seen(model, SKIES[sky], float(true_m), estimator.estimate(instrument.telegram(at)))


def errors_m(seen: list[Seen]) -> np.ndarray:
    """Of the heights that were given where the truth has one."""
    return np.array([s.found.height_m - s.true_m for s in seen if s.found.height_m is not None and s.true_m > 0])


@pytest.mark.parametrize("model", ["cl31", "cl51"])
def test_heights_on_unknown_skies_are_mostly_near_the_truth(seen: list[Seen], model: str) -> None:
    found = np.abs(errors_m([s for s in seen if s.model == model]))
    assert len(found) > 100
    assert np.median(found) < 60
    assert np.mean(found > 300) < 0.25


def test_what_it_calls_good_is_nearer_than_what_it_calls_doubtful(seen: list[Seen]) -> None:
    good, doubtful = (np.abs(errors_m([s for s in seen if s.found.quality == q])) for q in ("good", "doubtful"))
    assert len(good) > 100 and len(doubtful) > 30
    assert np.mean(good <= 150) > 0.85
    assert np.mean(good) < 0.5 * np.mean(doubtful)


def test_rain_and_fog_are_seldom_called_good(seen: list[Seen]) -> None:
    hidden = [s for s in seen if s.sky in ("rain", "fog")]
    assert len(hidden) > 20
    assert np.mean([s.found.quality == "bad" for s in hidden]) > 0.5
    assert np.mean([s.found.quality == "good" for s in hidden]) < 0.15


def test_a_real_cl31_in_clean_air_gets_the_height_that_can_be_seen(shared_data: Path, estimator: Estimator) -> None:
    content = (shared_data / "ceilometer" / "vaisala" / "cl31.DAT").read_bytes()
    telegrams = [part.raw for part in frame("vaisala-cl", content) if isinstance(part, Framed)]
    estimates = [estimator.estimate(telegram) for telegram in telegrams]
    assert all(e.quality != "bad" for e in estimates)
    assert all(e.height_m is not None and 150 < e.height_m < 300 for e in estimates)


def test_a_real_ct25k_under_cloud_is_decoded_as_one(shared_data: Path, estimator: Estimator) -> None:
    content = (shared_data / "ceilometer" / "vaisala" / "ct25k.dat").read_bytes()
    telegrams = [part.raw for part in frame("vaisala-cl", content) if isinstance(part, Framed)]
    assert telegrams
    for telegram in telegrams:
        profiles = decode_telegram(telegram)
        estimate = estimator.estimate(telegram)
        cloud_m = float(profiles.lowest_cloud_base_m[0])
        assert estimate.height_m is not None and estimate.height_m < 1.15 * cloud_m
