"""What the learned retrieval remembers of an instrument, and how profiles are laid out for the network to follow.

The memory is the state that goes from stretch to stretch: the network's own, and the sums of the step that is still
open. Profiles are added to the sums one by one, so that it makes no difference where stretches are cut. Knows the
network's shape, and does not run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fieldpost.errors import BrokenStateError
from fieldpost.telegrams import Profiles
from server.analyses.boundary_layer.clock import NANOS, STEP_COUNT, STEP_S
from server.analyses.boundary_layer.learned.features import (
    Sums,
    fade,
    no_facts,
    no_looks,
    no_sums,
    noise_of,
    sums_of_each,
    sun_facts,
    to_channels,
    to_facts,
)
from server.analyses.boundary_layer.learned.grid import GATE_COUNT, reach, to_grid
from server.analyses.boundary_layer.learned.network import NetworkConfig

LAYOUT = 1
"""Of the bytes; another one means that they were written by another release."""
HEAD_BYTES = 16
SUMS_COUNT = 3 + 3 * GATE_COUNT
"""Numbers in Sums."""
SUN_SHIFT_S = 2 * STEP_S / 5
"""The sun of a step is that of its third fifth, as in training."""


@dataclass(frozen=True)
class Memory:
    """What is remembered of an instrument.

    Attributes:
        step: The step that is open, in steps since 1970; -1 before the first profile.
        layers: (memory channels, gates / 4), float32: the network's own.
        recent: Over the profiles of the steps before the open one, the older the less.
        open_sums: Over the profiles of the open step.
    """

    step: int
    layers: Tensor
    recent: Sums
    open_sums: Sums

    @classmethod
    def nothing(cls, config: NetworkConfig) -> Memory:
        """At the start of a course."""
        return cls(-1, torch.zeros(config.memory, GATE_COUNT // 4), no_sums(), no_sums())

    def to_bytes(self) -> bytes:
        """For the store."""
        head = np.array([LAYOUT, self.step], "<i8")
        sums = [each.reshape(-1).numpy().astype("<f8") for each in (*self.recent, *self.open_sums)]
        return b"".join(part.tobytes() for part in (head, self.layers.numpy().astype("<f4"), *sums))

    @classmethod
    def from_bytes(cls, state: bytes, config: NetworkConfig) -> Memory:
        """The opposite; empty bytes are the start of a course.

        Raises:
            BrokenStateError: They are not the memory of such a network.
        """
        if not state:
            return cls.nothing(config)
        shape = (config.memory, GATE_COUNT // 4)
        layers_end = HEAD_BYTES + 4 * shape[0] * shape[1]
        expected = layers_end + 2 * 8 * SUMS_COUNT
        if len(state) != expected or int(np.frombuffer(state, "<i8", 1)[0]) != LAYOUT:
            raise BrokenStateError(
                f"expected {expected} bytes of layout {LAYOUT} as an instrument's memory, but got {len(state)}",
                hint="take the state away: it is made again from the start of the course",
            )
        step = int(np.frombuffer(state, "<i8", 2)[1])
        layers = np.frombuffer(state[HEAD_BYTES:layers_end], "<f4").reshape(shape).astype(np.float32)
        sums = torch.from_numpy(np.frombuffer(state[layers_end:], "<f8").astype(np.float64))
        recent, open_sums = _to_sums(sums[:SUMS_COUNT]), _to_sums(sums[SUMS_COUNT:])
        return cls(step, torch.from_numpy(layers), recent, open_sums)


@dataclass(frozen=True)
class Plan:
    """A stretch as the network will follow it.

    Attributes:
        step_looks: (steps to be closed, channels of all looks, gates).
        step_facts: (steps to be closed, facts).
        looks: (profiles, channels of all looks, gates).
        facts: (profiles, facts).
        closed: (profiles,), int64: how many of the steps are closed before each profile.
        after: The memory afterwards, but for the network's own, which is that after all steps are closed.
    """

    step_looks: Tensor
    step_facts: Tensor
    looks: Tensor
    facts: Tensor
    closed: NDArray[np.int64]
    after: Memory


def plan_stretch(
    memory: Memory, observations: list[Profiles], latitude_deg: float | None, longitude_deg: float | None
) -> Plan:
    """Lays out the profiles of successive observations of one instrument.

    Args:
        memory: What is remembered of what came before.
        observations: Decoded, at least one, by time. A profile that belongs before the open step is counted to that.
        latitude_deg: Of the instrument; None where it is unknown.
        longitude_deg: The same.
    """
    unix_s = np.concatenate([each.unix_nanos for each in observations]) / NANOS
    alone = sums_of_each(
        np.concatenate([to_grid(each.beta, each.height_m) for each in observations]),
        np.concatenate([noise_of(each) for each in observations]),
        np.concatenate([each.lowest_cloud_base_m for each in observations]),
        np.concatenate([each.is_obscured for each in observations]),
    )
    seen = torch.arange(GATE_COUNT) < reach(observations[-1].height_m)
    in_reach = seen.double()[None]
    steps = np.maximum.accumulate(np.maximum((unix_s // STEP_S).astype(np.int64), memory.step))

    now, step = memory.open_sums, memory.step if memory.step >= 0 else int(steps[0])
    so_far: list[Sums] = []
    closing: list[Sums] = []
    closed = np.zeros(len(steps), np.int64)
    first_step, starts = step, np.flatnonzero(np.diff(steps, prepend=steps[0] - 1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        if steps[start] != step:
            closing += [now, *[no_sums()] * (min(int(steps[start]) - step, STEP_COUNT) - 1)]
            now, step = no_sums(), int(steps[start])
        grown = _grow(now, Sums(*(values[start:end] for values in alone)))
        so_far.append(grown)
        closed[start:end] = len(closing)
        now = Sums(*(values[-1] for values in grown))

    faded = [memory.recent, *fade(memory.recent, closing)]
    recent = to_channels(_stack(faded), in_reach)
    step_looks, step_facts = no_looks(), no_facts()
    if closing:
        step_sums = _stack(closing)
        step_s = (first_step + np.arange(len(closing), dtype=np.float64)) * STEP_S + SUN_SHIFT_S
        channels = to_channels(step_sums, in_reach)
        step_looks = torch.cat([channels, channels, recent[:-1]], dim=1)
        step_facts = to_facts(step_sums, torch.from_numpy(sun_facts(step_s, latitude_deg, longitude_deg)))
    sums = Sums(*(torch.cat(values) for values in zip(*so_far, strict=True)))
    sun = torch.from_numpy(sun_facts(unix_s, latitude_deg, longitude_deg))
    return Plan(
        step_looks=step_looks,
        step_facts=step_facts,
        looks=torch.cat([to_channels(alone, in_reach), to_channels(sums, in_reach), recent[closed]], dim=1),
        facts=to_facts(sums, sun),
        closed=closed,
        after=Memory(step, memory.layers, faded[-1], now),
    )


def _grow(now: Sums, alone: Sums) -> Sums:
    """The sums after each profile; added one by one."""
    return Sums(
        *(torch.cumsum(torch.cat([start[None], each]), dim=0)[1:] for start, each in zip(now, alone, strict=True))
    )


def _stack(sums: Sequence[Sums]) -> Sums:
    return Sums(*(torch.stack(values) for values in zip(*sums, strict=True)))


def _to_sums(values: Tensor) -> Sums:
    """From SUMS_COUNT numbers, in the order of Sums."""
    total, squares, clear = values[1:-2].reshape(3, GATE_COUNT)
    return Sums(values[0], total, squares, clear, values[-2], values[-1])
