"""Writes a trained network as a program of torch.export, which the LiteRT converter reads without our code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from server.analyses.boundary_layer.learned.export import INPUTS, OUTPUTS, sample_inputs
from server.analyses.boundary_layer.learned.network import LayerNetwork
from server.analyses.boundary_layer.learned.weights import Weights


class _Named(nn.Module):
    """The network with its answers by name, which the converter takes into the signature."""

    def __init__(self, network: LayerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, looks: Tensor, facts: Tensor, memory: Tensor) -> dict[str, Tensor]:
        answers, after = self.network(looks, facts, memory)
        return dict(zip(OUTPUTS, (*answers, after), strict=True))


def write_program(weights: Path, path: Path) -> None:
    """Writes one look of one instrument; the batch is one, since a dynamic one does not convert."""
    network = Weights.from_bytes(weights.read_bytes()).network
    samples = dict(zip(INPUTS, sample_inputs(network, batch=1), strict=True))
    torch.export.save(torch.export.export(_Named(network).eval(), (), samples), path)
