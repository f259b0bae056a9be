"""A trained version as a file: the network's numbers as safetensors, and beside them all that is to be known of them.

Nothing in such a file is ever executed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch

from fieldpost.errors import InvalidRequestError
from server.analyses.boundary_layer.learned.network import LayerNetwork, NetworkConfig

METADATA_KEY = "fieldpost"


@dataclass(frozen=True)
class Calibration:
    """What was fitted after training, on another climate.

    Attributes:
        interval_temperature: The logits are divided by this before an interval is read from them; above 1 it is wider.
        good_width_m: A height whose central 90 % interval is no wider than this is of good quality …
        good_width_ratio: … or no wider than this share of it.
    """

    interval_temperature: float = 1.0
    good_width_m: float = 200.0
    good_width_ratio: float = 0.3


@dataclass(frozen=True)
class Weights:
    """A trained version.

    Attributes:
        network: With its numbers.
        calibration: See there.
        provenance: Data hash, code version, settings, metrics: plain values.
    """

    network: LayerNetwork
    calibration: Calibration = field(default_factory=Calibration)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        header = {
            "config": self.network.config.to_dict(),
            "calibration": asdict(self.calibration),
            "provenance": self.provenance,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(header)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Weights:
        """The opposite.

        Raises:
            InvalidRequestError: They are not the weights of such a network.
        """
        try:
            header = json.loads(_metadata(content)[METADATA_KEY])
            network = LayerNetwork(NetworkConfig.from_dict(header["config"]))
            network.load_state_dict(safetensors.torch.load(content))
            return cls(network.eval(), Calibration(**header["calibration"]), header["provenance"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InvalidRequestError(
                f"expected weights of the boundary-layer network, but got {len(content)} bytes that are none: {error}",
                hint="take the weights.safetensors that the training wrote",
            ) from error


def _metadata(content: bytes) -> dict[str, str]:
    """The header of a safetensors file: eight bytes tell its length, then comes JSON."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length:
        raise ValueError(f"a header of {length} bytes does not fit")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def count_parameters(network: torch.nn.Module) -> int:
    """How many numbers a network has."""
    return sum(each.numel() for each in network.parameters())
