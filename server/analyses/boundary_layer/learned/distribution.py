"""Heights from the network's distribution over gates. Knows no network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from server.analyses.boundary_layer.learned.grid import EDGES_M, GATE_COUNT


def heights_at(logits: Tensor, levels: tuple[float, ...]) -> Tensor:
    """The heights below which the layer ends with these probabilities: (looks, levels), m.

    Args:
        logits: (looks, gates).
        levels: Between 0 and 1.
    """
    edges_m = torch.from_numpy(EDGES_M).to(logits.device)
    below = F.pad(F.softmax(logits.double(), dim=1).cumsum(dim=1), (1, 0))
    level = torch.tensor(levels, dtype=below.dtype, device=below.device).expand(len(below), -1).contiguous()
    gate = (torch.searchsorted(below[:, 1:].contiguous(), level)).clamp(max=GATE_COUNT - 1)
    start, end = below.gather(1, gate), below.gather(1, gate + 1)
    share = ((level - start) / (end - start).clamp(min=1e-12)).clamp(0, 1)
    return edges_m[gate] + share * (edges_m[gate + 1] - edges_m[gate])
