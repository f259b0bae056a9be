"""What the network is trained to say. Knows no data and no optimiser."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from server.analyses.boundary_layer.learned.grid import CENTRES_M, EDGES_M, GATE_COUNT, WIDTHS_M
from server.analyses.boundary_layer.learned.network import Answers
from server.analyses.boundary_layer.training.batches import Batch, is_known

NEIGHBOUR_SHARE = 0.2
"""Of the truth that is given to each neighbour of its gate: to be one gate off is nearly right."""
RANKED_WEIGHT, RESIDUAL_WEIGHT, CLOUD_WEIGHT, SKY_WEIGHT = 1.0, 0.25, 0.15, 0.3
RANKED_SCALE_M = 100.0


def count_looks(batch: Batch) -> Tensor:
    """How many looks of a batch have a height, and of how many the rest is known: (2,), float32."""
    return torch.stack([mask.sum() for mask in _masks(batch)]).float()


def loss_of(answers: Answers, batch: Batch, counts: Tensor | None = None) -> Tensor:
    """The mean loss of the looks of a batch; every part of the network has its share in it.

    Args:
        answers: Of the network.
        batch: What it was asked.
        counts: What sums are divided by, as count_looks has it, where the batch is one of several that are averaged:
            the mean of their counts, so that the average is the mean over all looks; the batch's own where None.
    """
    has_height, known = _masks(batch)
    height_count, known_count = (count_looks(batch) if counts is None else counts).clamp(min=1).unbind()
    mixing_m = batch.mixing_height_m.flatten()
    loss: Tensor = _sum(_cross_entropy(answers.mixing, mixing_m, has_none=False), has_height) / height_count
    ranked_m = _sum(ranked_probability_score_m(answers.mixing, mixing_m), has_height) / height_count
    loss = loss + RANKED_WEIGHT * ranked_m / RANKED_SCALE_M
    for weight, logits, height_m in (
        (RESIDUAL_WEIGHT, answers.residual, batch.residual_layer_height_m),
        (CLOUD_WEIGHT, answers.cloud, batch.cloud_base_m),
    ):
        loss = loss + weight * _sum(_cross_entropy(logits, height_m.flatten(), has_none=True), known) / known_count
    sky = F.cross_entropy(answers.sky, batch.sky.flatten().clamp(min=0), reduction="none")
    return loss + SKY_WEIGHT * _sum(sky, known) / known_count


def ranked_probability_score_m(logits: Tensor, height_m: Tensor) -> Tensor:
    """The continuous ranked probability score (Matheson and Winkler 1976): (looks,), m.

    Args:
        logits: (looks, gates).
        height_m: (looks,): the truth.
    """
    edges_m, widths_m = torch.from_numpy(EDGES_M).to(logits), torch.from_numpy(WIDTHS_M).to(logits)
    below = F.softmax(logits, dim=1).cumsum(dim=1)  # the probability of no more than each gate's upper edge
    is_below = (edges_m[1:] >= height_m[:, None]).to(logits.dtype)
    return ((below - is_below).square() * widths_m).sum(dim=1)


def _cross_entropy(logits: Tensor, height_m: Tensor, *, has_none: bool) -> Tensor:
    """Cross entropy, the truth spread over its gate and those beside it; `has_none`: the last place is for NaN."""
    centres_m = torch.from_numpy(CENTRES_M).to(logits)
    place_m = torch.nan_to_num(height_m).to(logits).contiguous()  # a NaN would spoil the gradients of all
    gate = torch.searchsorted(centres_m, place_m).clamp(1, GATE_COUNT - 1)
    upper = ((place_m - centres_m[gate - 1]) / (centres_m[gate] - centres_m[gate - 1])).clamp(0, 1)
    log_share = F.log_softmax(logits, dim=1)
    around = -torch.stack(
        [log_share.gather(1, (gate + shift).clamp(0, GATE_COUNT - 1)[:, None])[:, 0] for shift in (-2, -1, 0, 1)]
    )
    n = NEIGHBOUR_SHARE
    lower = 1 - upper
    weights = torch.stack([n * lower, (1 - 2 * n) * lower + n * upper, (1 - 2 * n) * upper + n * lower, n * upper])
    entropy = (around * weights).sum(dim=0)
    return torch.where(torch.isnan(height_m), -log_share[:, -1], entropy) if has_none else entropy


def _masks(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which looks have a height, and of which the rest is known: (looks,) each."""
    there = batch.is_there.flatten()
    return there & torch.isfinite(batch.mixing_height_m.flatten()), there & is_known(batch).flatten()


def _sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum where the mask says so; 0, and still part of the graph, where it says so nowhere."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()
