"""Finds edges in backscatter profiles: the Haar wavelet covariance transform at several dilations at once.

With the Haar function h and a profile B(z) of attenuated backscatter (Brooks 2003, JTECH 20, 1092; Gamage and Hagelberg
1993, J. Atmos. Sci. 50, 750),

    W(a, b) = 1/a * integral of B(z) h((z - b) / a) dz,    h = +1 on [b - a/2, b], -1 on (b, b + a/2], else 0,

which, where the gates are even and all valid, is half the mean of the n = a / (2 dz) gates below b minus half the mean
of the n gates above it: W > 0 where backscatter falls with height. Both means come from one cumulative sum, so that a
dilation costs the same for every a. Knows no instrument and does not choose between the edges.

Within n gates of either end a dilation is undefined and left out, never padded. So the mean over dilations is one over
fewer and fewer of them below 200 m, and a soft edge there may be displaced by up to 20 m towards the height at which
the next dilation joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DILATIONS_M = (60.0, 100.0, 150.0, 200.0, 300.0, 400.0)
MIN_VALID_SHARE = 0.5
"""A window with fewer valid gates than this says nothing."""


@dataclass(frozen=True, slots=True)
class Transform:
    """The transform at the boundaries between gates: boundary b lies below gate b, there is one more than gates.

    Attributes:
        mean: (profiles, boundaries), float32: mean of W over the dilations that are defined there; NaN where none is.
        noise: (profiles, boundaries), float32: standard deviation of `mean` that noise alone would give; NaN likewise.
        by_dilation: (profiles, dilations, boundaries), float32: W itself; NaN where undefined.
        level: (profiles, boundaries), float32: mean backscatter from the ground up to the boundary; NaN where all is
            masked.
    """

    mean: Tensor
    noise: Tensor
    by_dilation: Tensor
    level: Tensor


def half_widths(gate_m: float, dilations_m: Sequence[float] = DILATIONS_M) -> tuple[int, ...]:
    """The dilations as numbers of gates on either side, ascending, each once: n = a / (2 dz), at least 1."""
    return tuple(sorted({max(1, round(dilation_m / (2 * gate_m))) for dilation_m in dilations_m}))


class HaarTransform(torch.nn.Module):
    """The transform for one grid of gates.

    Sums are cumulated in float64: a profile that starts with a cloud of 1e-3 and ends with air of 1e-8 would lose the
    latter in float32 (2**-24 of the sum is 6e-11 a gate, times hundreds of gates). What follows is float32.

    Args:
        height_m: (gates,): centres of the gates, evenly spaced.
        dilations_m: a, in metres; adapted to the gates by half_widths.
    """

    gate_noise: Tensor

    def __init__(self, height_m: Tensor, dilations_m: Sequence[float] = DILATIONS_M) -> None:
        super().__init__()
        self.half_widths = half_widths(float(height_m[1] - height_m[0]), dilations_m)
        # noise is white before range correction, so its variance grows as z**4 after it
        self.register_buffer("gate_noise", height_m.to(torch.float64) ** 4)

    def forward(self, beta: Tensor, noise: Tensor) -> Transform:
        """Transforms a batch.

        The noise of the mean over dilations follows from the noise of the gates: with c_a valid gates in the window of
        dilation a, and windows that lie within each other, the covariance of the means of two windows a < a' is the
        sum of the variances in the smaller one / (c_a c_a'). Summed over all pairs,

            Var = 1 / (4 A**2) * sum over a of V_a / c_a * (1 / c_a + 2 * sum over a' > a of 1 / c_a'),

        for the windows below and above; V_a is the sum of the variances in window a, A the number of dilations.

        Args:
            beta: (profiles, gates): attenuated backscatter; NaN where masked.
            noise: (profiles,): standard deviation of the signal before range correction: beta / z**2.
        """
        valid = torch.isfinite(beta)
        sums = _cumulate(torch.where(valid, beta, 0.0))
        counts = _cumulate(valid)
        variances = _cumulate(torch.where(valid, self.gate_noise, 0.0))

        gate_count = beta.shape[1]
        shape = (beta.shape[0], len(self.half_widths), gate_count + 1)
        w = beta.new_full(shape, torch.nan, dtype=torch.float32)
        total = beta.new_zeros((shape[0], shape[2]), dtype=torch.float32)
        defined = torch.zeros_like(total)
        variance = torch.zeros_like(total)
        wider_below, wider_above = torch.zeros_like(total), torch.zeros_like(total)
        # from the widest to the narrowest, so that the sums over a' > a are at hand
        for index, n in reversed(list(enumerate(self.half_widths))):
            if gate_count < 2 * n:
                continue
            inside = slice(n, gate_count - n + 1)  # within n gates of either end the transform is undefined
            s, c, v = (_windows(cumulated, n) for cumulated in (sums, counts, variances))
            enough = c >= MIN_VALID_SHARE * n
            is_defined = enough[:, :-n] & enough[:, n:]
            per_gate = torch.where(enough, 1 / c.clamp(min=1), 0.0)
            mean = s * per_gate
            difference = 0.5 * (mean[:, :-n] - mean[:, n:])
            w[:, index, inside] = torch.where(is_defined, difference, torch.nan)
            total[:, inside] += torch.where(is_defined, difference, 0.0)
            defined[:, inside] += is_defined
            below, above = per_gate[:, :-n] * is_defined, per_gate[:, n:] * is_defined
            scaled = v * per_gate
            variance[:, inside] += scaled[:, :-n] * (below + 2 * wider_below[:, inside]) * is_defined
            variance[:, inside] += scaled[:, n:] * (above + 2 * wider_above[:, inside]) * is_defined
            wider_below[:, inside] += below
            wider_above[:, inside] += above
        count = torch.where(defined > 0, defined, torch.nan)
        sigma = noise.to(torch.float32)[:, None] * variance.sqrt() / (2 * count)
        level = torch.where(counts > 0, sums / counts, torch.nan).to(torch.float32)
        return Transform(mean=total / count, noise=sigma, by_dilation=w, level=level)


def _cumulate(values: Tensor) -> Tensor:
    """Cumulative sums with a leading zero: (profiles, gates) -> (profiles, gates + 1), float64."""
    sums = values.new_zeros((values.shape[0], values.shape[1] + 1), dtype=torch.float64)
    torch.cumsum(values, dim=1, dtype=torch.float64, out=sums[:, 1:])
    return sums


def _windows(cumulated: Tensor, n: int) -> Tensor:
    """Sums over n gates from each gate on: (profiles, gates - n + 1), float32."""
    return (cumulated[:, n:] - cumulated[:, :-n]).to(torch.float32)


@dataclass(frozen=True, slots=True)
class Edges:
    """The strongest edges of each profile, from the lowest to the highest; each attribute (profiles, edges), float32.

    Attributes:
        height_m: Refined between the boundaries; NaN where a profile has fewer edges.
        strength: W, m-1 sr-1.
        noise: Standard deviation of W that noise alone would give, m-1 sr-1.
        level: Mean backscatter from the ground to the edge, m-1 sr-1.
        dilation_spread_m: Standard deviation of the height of the peak among the dilations.
    """

    height_m: Tensor
    strength: Tensor
    noise: Tensor
    level: Tensor
    dilation_spread_m: Tensor


def find_edges(
    transform: Transform,
    boundary_m: Tensor,
    *,
    min_significance: float,
    floor_m: float,
    separation_m: float,
    count: int,
) -> Edges:
    """The `count` strongest local maxima of the mean transform that stand out of the noise.

    Args:
        transform: From HaarTransform.
        boundary_m: (boundaries,): heights of the boundaries.
        min_significance: Only edges with W / noise of at least this.
        floor_m: Only edges at or above this height.
        separation_m: Of two edges that are nearer than this, only the stronger is kept.
        count: How many at most.
    """
    gate_m = float(boundary_m[1] - boundary_m[0])
    mean = torch.nan_to_num(transform.mean, nan=-torch.inf)
    reach = max(1, round(separation_m / gate_m))
    around = torch.nn.functional.max_pool1d(mean[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]
    excess = transform.mean - min_significance * transform.noise
    is_edge = (mean == around) & (excess > 0) & (boundary_m >= floor_m)
    # a peak needs both neighbours
    is_edge[:, 0] = is_edge[:, -1] = False
    is_edge[:, 1:-1] &= torch.isfinite(mean[:, :-2]) & torch.isfinite(mean[:, 2:])

    count = min(count, mean.shape[1])
    # ranked by what is left after the noise, so that the noisy top of the profile does not crowd out the rest
    strongest = torch.where(is_edge, excess, -torch.inf).topk(count, dim=1)
    found = strongest.values > 0
    # the lowest first, those that are none last
    index, order = torch.where(found, strongest.indices, mean.shape[1]).sort(dim=1)
    found = found.gather(1, order)
    index = torch.where(found, index, 1)

    left, centre, right = (transform.mean.gather(1, index + step) for step in (-1, 0, 1))
    bend = left - 2 * centre + right
    offset = torch.where(bend < 0, 0.5 * (left - right) / bend, 0.0).clamp(-0.5, 0.5)
    missing = torch.where(found, 0.0, torch.nan)
    return Edges(
        height_m=(boundary_m[index] + offset * gate_m).to(torch.float32) + missing,
        strength=centre + missing,
        noise=transform.noise.gather(1, index) + missing,
        level=transform.level.gather(1, index) + missing,
        dilation_spread_m=_dilation_spread(transform.by_dilation, index, reach) * gate_m + missing,
    )


def _dilation_spread(by_dilation: Tensor, index: Tensor, reach: int) -> Tensor:
    """How far the dilations disagree about the place of each edge: standard deviation, in gates; (profiles, edges)."""
    boundary_count = by_dilation.shape[2]
    steps = torch.arange(-reach, reach + 1, device=index.device)
    near = (index[:, :, None] + steps).clamp(0, boundary_count - 1)  # (profiles, edges, steps)
    profile = torch.arange(index.shape[0], device=index.device)[:, None, None]
    # (profiles, edges, steps, dilations)
    around = torch.nan_to_num(by_dilation.transpose(1, 2)[profile, near], nan=-torch.inf)
    best = around.max(dim=2)
    place = steps[best.indices].to(torch.float32)
    place = torch.where(torch.isfinite(best.values), place, torch.nan)
    centred = place - place.nanmean(dim=2, keepdim=True)
    return centred.square().nanmean(dim=2).sqrt()
