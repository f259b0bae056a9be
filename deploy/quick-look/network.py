"""The quick look's network: one profile in, a height and three probabilities out. Knows no data and no training.

A small U-Net along the height, for it must see the whole profile to tell a layer from a stratum, and every gate to say
where the layer ends. Fixed batch of 1 when converted: LiteRT wants that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class NetworkConfig:
    """What shape the network has.

    Attributes:
        gate_count: Gates of the input; a multiple of 8.
        gate_m: Their width.
        channels: Channels of the input.
        widths: Channels at each level.
    """

    gate_count: int = 256
    gate_m: float = 20.0
    channels: int = 3
    widths: tuple[int, int, int, int] = (16, 24, 32, 40)


class QuickLookNetwork(nn.Module):
    """See the module.

    Args:
        config: Its shape.
    """

    position: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d = config.widths
        self.register_buffer("position", torch.linspace(-1, 1, config.gate_count)[None, None, :])
        self.down_1 = nn.Conv1d(config.channels + 1, a, 7, padding=3)
        self.down_2 = nn.Conv1d(a, b, 5, stride=2, padding=2)
        self.down_3 = nn.Conv1d(b, c, 5, stride=2, padding=2)
        self.down_4 = nn.Conv1d(c, d, 5, stride=2, padding=2)
        self.bottom = nn.Conv1d(d, d, 5, padding=4, dilation=2)
        self.context = nn.Linear(d, d)
        self.up_3 = nn.Conv1d(d + c, c, 3, padding=1)
        self.up_2 = nn.Conv1d(c + b, b, 3, padding=1)
        self.up_1 = nn.Conv1d(b + a, a, 3, padding=1)
        self.where = nn.Conv1d(a, 1, 1)
        self.quality_1 = nn.Linear(d + 3, 24)
        self.quality_2 = nn.Linear(24, 3)

    def forward(self, profile: Tensor) -> dict[str, Tensor]:
        """Looks at profiles.

        Args:
            profile: (batch, channels, gates).

        Returns:
            height_m (batch, 1) and quality (batch, 3): probabilities of good, doubtful, bad.
        """
        logits, summary = self.look(profile)
        height_m = self.height_m(logits)
        return {"height_m": height_m, "quality": F.softmax(self.judge(logits, height_m, summary), dim=1)}

    def look(self, profile: Tensor) -> tuple[Tensor, Tensor]:
        """Where the layer ends, as logits (batch, gates), and a summary of the profile (batch, widths[3])."""
        x = torch.cat([profile, self.position.expand(profile.shape[0], -1, -1)], dim=1)  # (B, C + 1, G)
        x1 = F.relu(self.down_1(x))  # (B, a, G)
        x2 = F.relu(self.down_2(x1))  # (B, b, G / 2)
        x3 = F.relu(self.down_3(x2))  # (B, c, G / 4)
        x4 = F.relu(self.down_4(x3))  # (B, d, G / 8)
        x4 = F.relu(self.bottom(x4)) + x4
        summary = F.relu(self.context(x4.mean(dim=2)))  # (B, d)
        y = x4 + summary[:, :, None]
        y = F.relu(self.up_3(torch.cat([_double(y), x3], dim=1)))
        y = F.relu(self.up_2(torch.cat([_double(y), x2], dim=1)))
        y = F.relu(self.up_1(torch.cat([_double(y), x1], dim=1)))
        return self.where(y)[:, 0], summary

    def height_m(self, logits: Tensor) -> Tensor:
        """The median of the distribution over the gates, (batch, 1): no other height has a smaller mean error."""
        share = F.softmax(logits, dim=1)
        below = torch.cumsum(share, dim=1) - share
        passed = ((0.5 - below) / (share + 1e-9)).clamp(0, 1)
        return passed.sum(dim=1, keepdim=True) * self.config.gate_m

    def judge(self, logits: Tensor, height_m: Tensor, summary: Tensor) -> Tensor:
        """Logits of good, doubtful, bad: from how sharp the distribution is, and from the whole profile."""
        share = F.softmax(logits, dim=1)
        centre_m = (self.position[:, 0] + 1) / 2 * (self.config.gate_count * self.config.gate_m)
        spread_km = (share * (centre_m - height_m).abs()).sum(dim=1, keepdim=True) / 1000
        peak = share.amax(dim=1, keepdim=True)
        facts = torch.cat([summary, spread_km, peak, height_m / 1000], dim=1)
        return self.quality_2(F.relu(self.quality_1(facts)))


def _double(x: Tensor) -> Tensor:
    """Each gate twice: (B, C, G) -> (B, C, 2 G)."""
    return torch.stack([x, x], dim=3).flatten(2)
