"""Writes the learned network for other runtimes: one look as ONNX, its memory going in and coming out.

Who follows an instrument calls it once for each profile with the memory of the steps before, and once for each step
that ends, to have the next memory (features.py says what goes in). Knows no training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from server.analyses.boundary_layer.learned.features import CHANNEL_COUNT, FACT_COUNT, LOOK_COUNT
from server.analyses.boundary_layer.learned.grid import GATE_COUNT
from server.analyses.boundary_layer.learned.network import LayerNetwork

INPUTS = ("looks", "facts", "memory")
OUTPUTS = ("mixing", "residual", "cloud", "sky", "memory_after")
SAMPLE_BATCH = 4
"""More than one, or the exporter takes the batch for a constant."""


class _OneLook(nn.Module):
    """The network with its answers as a plain tuple."""

    def __init__(self, network: LayerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, looks: Tensor, facts: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        answers, after = self.network(looks, facts, memory)
        return (*answers, after)


def sample_inputs(network: LayerNetwork, batch: int = SAMPLE_BATCH) -> tuple[Tensor, Tensor, Tensor]:
    """Looks, facts and memory of a drawn batch, in their shapes."""
    random = torch.Generator().manual_seed(0)
    return (
        torch.rand(batch, LOOK_COUNT * CHANNEL_COUNT, GATE_COUNT, generator=random),
        torch.rand(batch, FACT_COUNT, generator=random),
        torch.rand(batch, network.config.memory, GATE_COUNT // 4, generator=random),
    )


def export_onnx(network: LayerNetwork, path: Path) -> None:
    """Writes the network as an ONNX file with a dynamic batch.

    Args:
        network: In any state; it is exported as it answers, not as it trains.
        path: Where to write it.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        _OneLook(network.cpu()).eval(),
        sample_inputs(network),
        dynamo=True,
        external_data=False,
        dynamic_shapes=tuple({0: batch} for _ in INPUTS),
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert program is not None
    program.save(path)
