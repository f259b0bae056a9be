"""The learned retrieval's network: an edge detector over time and height, and a memory that goes along with the layers.

Convolutions along the height look at the latest profile, the mean of the step so far and that of the last hour;
a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) whose products are convolutions along the height (as Ballas
et al. 2016, arXiv:1511.06432, along an image) remembers where layers were; a decoder says where they are. Knows no
data, no instrument and no training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from server.analyses.boundary_layer.learned.features import CHANNEL_COUNT, FACT_COUNT, LOOK_COUNT
from server.analyses.boundary_layer.learned.grid import GATE_COUNT

SKIES = ("clear", "cloud", "rain", "fog")
SLOPE = 0.1
"""Of the rectifiers below 0."""


@dataclass(frozen=True)
class NetworkConfig:
    """What shape the network has.

    Attributes:
        widths: Channels at 128, 64 and 32 heights.
        memory: Channels of the memory, at 32 heights.
    """

    widths: tuple[int, int, int] = (16, 24, 32)
    memory: int = 24

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The opposite of dataclasses.asdict after a passage through JSON."""
        first, second, third = values["widths"]
        return cls((int(first), int(second), int(third)), int(values["memory"]))

    def to_dict(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)


class Encoded(NamedTuple):
    """What the edge detector found, at three resolutions: (batch, channels, 128), (…, 64) and (…, 32)."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor


class Answers(NamedTuple):
    """What the network says, all as logits.

    Attributes:
        mixing: (batch, 128): at which gate the layer in contact with the ground ends.
        residual: (batch, 129): the same of the residual layer; the last place means that there is none.
        cloud: (batch, 129): the same of the lowest cloud's base.
        sky: (batch, 4): see SKIES.
    """

    mixing: Tensor
    residual: Tensor
    cloud: Tensor
    sky: Tensor


class LayerNetwork(nn.Module):
    """See the module.

    Args:
        config: Its shape.
    """

    position: Tensor

    def __init__(self, config: NetworkConfig = NetworkConfig()) -> None:
        super().__init__()
        self.config = config
        (a, b, c), m = config.widths, config.memory
        place = torch.linspace(-1, 1, GATE_COUNT)
        self.register_buffer("position", torch.stack([place, place.square()])[None], persistent=False)
        self.look_1 = nn.Conv1d(LOOK_COUNT * CHANNEL_COUNT + 2, a, 7, padding=3)
        self.look_2 = nn.Conv1d(a, b, 5, stride=2, padding=2)
        self.look_3 = nn.Conv1d(b, c, 5, stride=2, padding=2)
        self.look_4 = nn.Conv1d(c, c, 5, padding=4, dilation=2)
        self.facts_1 = nn.Linear(FACT_COUNT, 32)
        self.facts_2 = nn.Linear(32, a + c)
        self.whole = nn.Linear(2 * c, c)
        self.gates_in = nn.Conv1d(c, 3 * m, 3, padding=1)
        self.gates_kept = nn.Conv1d(m, 2 * m, 3, padding=1, bias=False)
        self.candidate_kept = nn.Conv1d(m, m, 3, padding=1, bias=False)
        self.tell_4 = nn.Conv1d(c + m, c, 5, padding=2)
        self.tell_whole = nn.Linear(2 * c, c)
        self.tell_3 = nn.Conv1d(c, c, 5, padding=4, dilation=2)
        self.tell_2 = nn.Conv1d(c + b, b, 3, padding=1)
        self.tell_1 = nn.Conv1d(b + a, a, 5, padding=2)
        self.where = nn.Conv1d(a, 3, 1)
        self.sky_1 = nn.Linear(c, 32)
        self.sky_2 = nn.Linear(32, len(SKIES) + 2)
        for part in self.modules():
            if isinstance(part, nn.Conv1d | nn.Linear) and part not in (self.where, self.sky_2):
                nn.init.kaiming_normal_(part.weight, a=SLOPE, nonlinearity="leaky_relu")
        for kept in (self.gates_kept, self.candidate_kept, self.gates_in):
            nn.init.xavier_normal_(kept.weight)

    def encode(self, looks: Tensor, facts: Tensor) -> Encoded:
        """Finds edges.

        Args:
            looks: (batch, LOOK_COUNT * CHANNEL_COUNT, 128).
            facts: (batch, FACT_COUNT).
        """
        first, last = self.facts_2(_bend(self.facts_1(facts))).split(list(self.config.widths[::2]), dim=1)
        x = torch.cat([looks, self.position.expand(looks.shape[0], -1, -1)], dim=1)
        fine = _bend(self.look_1(x) + first[:, :, None])
        middle = _bend(self.look_2(fine))
        coarse = _bend(self.look_3(middle) + last[:, :, None])
        coarse = coarse + _bend(self.look_4(coarse) + self.whole(_pool(coarse))[:, :, None])
        return Encoded(fine, middle, coarse)

    def first_memory(self, batch: int) -> Tensor:
        """What is remembered at the start of a course: nothing. (batch, memory, 32)."""
        return self.position.new_zeros(batch, self.config.memory, GATE_COUNT // 4)

    def remember(self, gates: Tensor, memory: Tensor) -> Tensor:
        """The memory a step later.

        Args:
            gates: (batch, 3 * memory, 32): gates_in(Encoded.coarse).
            memory: (batch, memory, 32).
        """
        m = self.config.memory
        kept = self.gates_kept(memory)
        reset = torch.sigmoid(gates[:, :m] + kept[:, :m])
        update = torch.sigmoid(gates[:, m : 2 * m] + kept[:, m:])
        candidate = torch.tanh(gates[:, 2 * m :] + self.candidate_kept(reset * memory))
        return memory + update * (candidate - memory)

    def tell(self, seen: Encoded, memory: Tensor) -> Answers:
        """Where the layers are.

        Args:
            seen: The present.
            memory: (batch, memory, 32): with the present in it.
        """
        y = _bend(self.tell_4(torch.cat([seen.coarse, memory], dim=1)))
        summary = _bend(self.tell_whole(_pool(y)))
        y = y + _bend(self.tell_3(y + summary[:, :, None]))
        y = _bend(self.tell_2(torch.cat([_double(y), seen.middle], dim=1)))
        y = _bend(self.tell_1(torch.cat([_double(y), seen.fine], dim=1)))
        mixing, residual, cloud = self.where(y).unbind(dim=1)
        rest = self.sky_2(_bend(self.sky_1(summary)))
        return Answers(
            mixing,
            torch.cat([residual, rest[:, -2:-1]], dim=1),
            torch.cat([cloud, rest[:, -1:]], dim=1),
            rest[:, : len(SKIES)],
        )

    def forward(self, looks: Tensor, facts: Tensor, memory: Tensor) -> tuple[Answers, Tensor]:
        """One look: what there is, and what is remembered if it ends a step."""
        seen = self.encode(looks, facts)
        after = self.remember(self.gates_in(seen.coarse), memory)
        return self.tell(seen, after), after

    def follow(
        self, step_looks: Tensor, step_facts: Tensor, looks: Tensor, facts: Tensor, memory: Tensor | None = None
    ) -> Answers:
        """Whole courses at once, for training: at each step one look, with the memory of the steps before it.

        Args:
            step_looks: (batch, steps, LOOK_COUNT * CHANNEL_COUNT, 128): what each step leaves in the memory.
            step_facts: (batch, steps, FACT_COUNT).
            looks: The same of the profile that is asked about.
            facts: The same.
            memory: (batch, memory, 32) before the first step; None for none.

        Returns:
            Answers with (batch * steps, …).
        """
        batch, steps = step_looks.shape[:2]
        kept = self.gates_in(self.encode(step_looks.flatten(0, 1), step_facts.flatten(0, 1)).coarse)
        now = self.first_memory(batch) if memory is None else memory
        before = []
        for gates in kept.unflatten(0, (batch, steps)).unbind(dim=1):  # a slice's gradient would be as large as all
            before.append(now)
            now = self.remember(gates, now)
        seen = self.encode(looks.flatten(0, 1), facts.flatten(0, 1))
        at_look = self.remember(self.gates_in(seen.coarse), torch.stack(before, dim=1).flatten(0, 1))
        return self.tell(seen, at_look)


def _bend(x: Tensor) -> Tensor:
    """A rectifier that lets a little through below 0: with none, whole parts of the network died in training."""
    return F.leaky_relu(x, SLOPE)


def _pool(x: Tensor) -> Tensor:
    """Mean and maximum over the heights: (batch, channels, gates) -> (batch, 2 * channels)."""
    return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)


def _double(x: Tensor) -> Tensor:
    """Each gate twice: (batch, channels, gates) -> (batch, channels, 2 * gates)."""
    return torch.stack([x, x], dim=3).flatten(2)
