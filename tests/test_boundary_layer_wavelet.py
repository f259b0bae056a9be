"""The wavelet transform: equal to its definition, honest about noise, and right about where edges are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.wavelet import transform_by_loop
from server.analyses.boundary_layer.classical.wavelet import Edges, HaarTransform, find_edges, half_widths

GATE_M = 10.0
HEIGHT_M = torch.arange(400, dtype=torch.float64) * GATE_M + GATE_M / 2
BOUNDARY_M = torch.arange(401, dtype=torch.float64) * GATE_M
QUIET = torch.full((1,), 1e-17)


def edges_of(beta: torch.Tensor, noise: torch.Tensor = QUIET, min_significance: float = 4.0) -> Edges:
    transformed = HaarTransform(HEIGHT_M)(beta, noise.expand(len(beta)))
    return find_edges(transformed, BOUNDARY_M, min_significance=min_significance, floor_m=60, separation_m=150, count=5)


def layer(top_m: float, width_m: float = 40.0) -> torch.Tensor:
    """Backscatter of one aerosol layer with an erf-shaped top: (1, gates)."""
    return (2e-7 + 8e-7 * torch.special.erfc((HEIGHT_M - top_m) / (2**0.5 * width_m)) / 2)[None].float()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), gate_count=st.integers(2, 120), masked=st.floats(0, 0.6))
def test_the_cumulative_sums_give_what_the_definition_says(seed: int, gate_count: int, masked: float) -> None:
    random = np.random.default_rng(seed)
    beta = random.normal(1e-6, 1e-6, (2, gate_count)).astype(np.float32)
    beta[random.random(beta.shape) < masked] = np.nan
    transform = HaarTransform(torch.arange(gate_count, dtype=torch.float64) * GATE_M + 5)
    mean = transform(torch.from_numpy(beta), torch.ones(2)).mean.numpy()
    np.testing.assert_allclose(mean, transform_by_loop(beta, transform.half_widths), rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize(
    ("gate_m", "expected"),
    [(10.0, (3, 5, 8, 10, 15, 20)), (4.8, (6, 10, 16, 21, 31, 42)), (30.0, (1, 2, 3, 5, 7)), (500.0, (1,))],
)
def test_dilations_are_adapted_to_the_gates(gate_m: float, expected: tuple[int, ...]) -> None:
    assert half_widths(gate_m) == expected


def test_nothing_is_defined_within_the_narrowest_window_of_either_end() -> None:
    mean = HaarTransform(HEIGHT_M)(layer(1000), QUIET).mean[0]
    assert torch.isnan(mean[:3]).all() and torch.isnan(mean[-3:]).all()
    assert torch.isfinite(mean[3:-3]).all()


def test_a_bright_cloud_below_does_not_swallow_the_faint_edge_above() -> None:
    clean = layer(3000) * 1e-2
    with_cloud = clean.clone()
    with_cloud[:, 20:40] += 1e-2
    transform = HaarTransform(HEIGHT_M)
    difference = transform(with_cloud, QUIET).mean - transform(clean, QUIET).mean
    far = slice(100, None)
    assert difference[0, far].nan_to_num().abs().max() < 1e-3 * transform(clean, QUIET).mean[0, far].nan_to_num().max()


@pytest.mark.parametrize("masked_above_gate", [400, 180])
def test_the_predicted_noise_is_the_noise(masked_above_gate: int) -> None:
    generator = torch.Generator().manual_seed(1)
    signal_noise = 3e-14
    beta = signal_noise * torch.randn(4000, 400, generator=generator, dtype=torch.float64) * HEIGHT_M**2
    beta[:, masked_above_gate:] = torch.nan
    transformed = HaarTransform(HEIGHT_M)(beta.float(), torch.full((4000,), signal_noise))
    for boundary in (4, 10, 60, 150, 175, 300, 390):
        observed, predicted = transformed.mean[:, boundary], transformed.noise[0, boundary]
        if boundary < masked_above_gate:
            assert observed.std() == pytest.approx(float(predicted), rel=0.05)
        else:
            assert torch.isnan(predicted)


@settings(max_examples=40, deadline=None)
@given(top_m=st.floats(150, 3500), width_m=st.floats(5, 80))
def test_the_top_of_a_layer_is_found_within_a_fraction_of_a_gate(top_m: float, width_m: float) -> None:
    width_m = min(width_m, top_m / 6)  # a softer edge so near the ground is hardly the top of a layer
    edges = edges_of(layer(top_m, width_m))
    strongest = edges.strength[0].nan_to_num().argmax()
    # near the ground the mean gains a dilation at each half-width, which draws soft edges towards that height
    assert abs(float(edges.height_m[0, strongest]) - top_m) < (3 if top_m > 400 else 25)


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(-40, 150))
def test_moving_the_air_moves_the_edge_by_as_much(shift: int) -> None:
    reference = edges_of(layer(1000)).height_m[0, 0]
    moved = edges_of(layer(1000 + shift * GATE_M)).height_m[0, 0]
    assert float(moved - reference) == pytest.approx(shift * GATE_M, abs=0.5)


def test_two_layers_are_two_edges_the_lowest_first() -> None:
    edges = edges_of(layer(400) + layer(1600))
    assert edges.height_m[0, :2].tolist() == pytest.approx([400, 1600], abs=5)
    assert torch.isnan(edges.height_m[0, 2:]).all()


def test_pure_noise_has_an_edge_in_two_profiles_of_a_hundred_at_most() -> None:
    generator = torch.Generator().manual_seed(2)
    beta = 3e-14 * torch.randn(2000, 400, generator=generator, dtype=torch.float64) * HEIGHT_M**2
    edges = edges_of(beta.float(), torch.full((2000,), 3e-14))
    assert float(torch.isfinite(edges.height_m).any(dim=1).float().mean()) < 0.02


def test_each_profile_of_a_batch_is_judged_by_itself() -> None:
    batch = torch.cat([layer(500), layer(1500), torch.full((1, 400), torch.nan), layer(2500)])
    together = edges_of(batch).height_m
    assert torch.isnan(together[2]).all()
    for index in (0, 1, 3):
        torch.testing.assert_close(together[index], edges_of(batch[index : index + 1]).height_m[0], equal_nan=True)
