"""The profiles that the quick look's network learns from: the CT25K and the spoilt skies that the simulator lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge_agent.quick_look.manifest import InputGrid
from fieldpost.simulation import HELD_OUT

ROOT = Path(__file__).resolve().parent.parent
GRID = InputGrid(gate_count=256, gate_m=20.0, backscatter_scale=1e-7)
SEEDS, TIMES_A_SEED = range(800_000, 800_020), 20


@pytest.fixture(scope="module")
def scenes() -> Iterator[ModuleType]:
    """The recipe's own file, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "deploy" / "quick-look"))
        import scenes

        yield scenes
        patch.delitem(sys.modules, "scenes")


@pytest.fixture(scope="module")
def seen(scenes: ModuleType) -> list[Any]:
    """What the instruments of some seeds see."""
    return list(scenes.views(SEEDS, TIMES_A_SEED, HELD_OUT))


def test_the_same_seeds_give_the_same_scenes_and_others_others(scenes: ModuleType) -> None:
    first, again, other = (scenes.make_scenes(range(n, n + 2), 5, HELD_OUT, GRID) for n in (1, 1, 2))
    np.testing.assert_array_equal(first.profile, again.profile)
    np.testing.assert_array_equal(first.height_m, again.height_m)
    assert first.profile.shape != other.profile.shape or not np.array_equal(first.profile, other.profile)
    assert first.profile.dtype == first.height_m.dtype == np.float32


def test_every_instrument_is_drawn_and_a_ct25k_writes_whole_steps_whose_noise_does_not_grow(
    seen: list[Any],
) -> None:
    assert {view.instrument for view in seen} == {"cl31", "cl51", "ct25k"}
    for view in (v for v in seen if v.instrument == "ct25k"):
        profiles = view.profiles
        assert profiles.beta.shape == (TIMES_A_SEED, 256)
        steps = profiles.beta.astype(np.float64) / 1e-7
        np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-6, atol=1e-4)
        clear = steps[view.sky == "clear"]
        if len(clear) > 5:  # far above any aerosol, lower and higher
            lower, higher = clear[:, 170:210].std(), clear[:, 215:].std()
            assert 0.3 < higher < 2
            assert higher / lower < 1.5, "noise that grows as the square of the range would have grown by 1.6"


def test_a_sky_that_shows_no_height_has_none_and_hidden_skies_are_left_out(scenes: ModuleType, seen: list[Any]) -> None:
    sky, height_m = (np.concatenate([getattr(v, name) for v in seen]) for name in ("sky", "height_m"))
    is_hidden = np.concatenate([v.profiles.is_obscured for v in seen])
    has_none = np.isin(sky, ("rain", "fog", "blocked", "blind"))
    np.testing.assert_array_equal(np.isnan(height_m), has_none)
    assert {"blocked", "blind", "clear", "cloud"} <= set(sky)
    made = scenes.make_scenes(SEEDS, TIMES_A_SEED, HELD_OUT, GRID)
    assert 0 < is_hidden.sum() == len(sky) - len(made.height_m)


def test_behind_a_blocked_window_there_is_next_to_no_signal(seen: list[Any]) -> None:
    def signal(view: Any, name: str) -> np.ndarray:
        beta = view.profiles.beta[view.sky == name]
        near = (view.profiles.height_m > 150) & (view.profiles.height_m < 400)
        return beta[:, near].mean(axis=1)

    blocked, clear = (np.concatenate([signal(v, name) for v in seen]) for name in ("blocked", "clear"))
    assert len(blocked) > 5
    assert np.median(np.abs(blocked)) < 0.1 * np.median(clear)
