"""The analysis, version 5: the learned retrieval. Decodes, follows each instrument with its memory, reads the answers.

What it says of a profile depends on that profile and on those before it in its course; of the future it knows nothing,
so there is no lag but the profile's own. Knows no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams import Profiles
from server.analyses import AnalysisInput, AnalysisResult, Followed, Stretch
from server.analyses.boundary_layer import INSTRUMENT_MODELS, NAME
from server.analyses.boundary_layer.decoding.decode import decode
from server.analyses.boundary_layer.learned.answers import read_answers
from server.analyses.boundary_layer.learned.memory import Memory, Plan, plan_stretch
from server.analyses.boundary_layer.learned.network import Answers
from server.analyses.boundary_layer.learned.weights import Weights

MAX_BATCH = 64
PROFILES_MAX = 512
"""Profiles that the network looks at together; more would only take memory."""


class LearnedHeight:
    """A learned version: see the module.

    Args:
        weights: What was trained.
        version: Which version they are.
    """

    name = NAME
    instrument_models = INSTRUMENT_MODELS
    max_batch = MAX_BATCH

    def __init__(self, weights: Weights, version: int) -> None:
        self.version = version
        self._network = weights.network.eval()
        self._calibration = weights.calibration
        self._device = torch.device("cpu")

    def to(self, device: str) -> None:
        """Lets the network run on another device; before the first batch."""
        self._device = torch.device(device)
        self._network.to(self._device)

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation as if it were the first of its course."""
        return [followed.results[0] for followed in self.follow([Stretch(b"", [each]) for each in batch])]

    def follow(self, stretches: Sequence[Stretch]) -> list[Followed]:
        """Answers for stretches of several instruments, in order; see FollowingAnalysis.

        Raises:
            BrokenStateError: A state is not one of this network's.
        """
        decoded = [[_decode(each) for each in stretch.observations] for stretch in stretches]
        followed = self.follow_profiles(
            [
                (
                    stretch.state,
                    [each for each in some if isinstance(each, Profiles)],
                    *_position(stretch.observations),
                )
                for stretch, some in zip(stretches, decoded, strict=True)
            ]
        )
        found = []
        for some, (answers, state) in zip(decoded, followed, strict=True):
            remaining = iter(answers)
            found.append(Followed([next(remaining) if isinstance(each, Profiles) else each for each in some], state))
        return found

    def follow_profiles(
        self, stretches: Sequence[tuple[bytes, Sequence[Profiles], float | None, float | None]]
    ) -> list[tuple[list[AnalysisResult], bytes]]:
        """The same for what is decoded: each with its state, observations, latitude and longitude in degrees."""
        memories = [Memory.from_bytes(state, self._network.config) for state, _, _, _ in stretches]
        plans = {
            place: plan_stretch(memory, list(some), latitude_deg, longitude_deg)
            for place, (memory, (_, some, latitude_deg, longitude_deg)) in enumerate(
                zip(memories, stretches, strict=True)
            )
            if some
        }
        answers, layers = self._run([memories[place].layers for place in plans], list(plans.values()))
        found: list[tuple[list[AnalysisResult], bytes]] = [([], state) for state, _, _, _ in stretches]
        first = 0
        for (place, plan), after in zip(plans.items(), layers, strict=True):
            observations, count = stretches[place][1], len(plan.closed)
            mine = Answers(*(each[first : first + count] for each in answers))
            instants = [each.unix_nanos for each in observations]
            found[place] = (
                read_answers(mine, self._calibration, instants),
                replace(plan.after, layers=after).to_bytes(),
            )
            first += count
        return found

    def _run(self, layers: Sequence[Tensor], plans: Sequence[Plan]) -> tuple[Answers, list[Tensor]]:
        """Closes the steps of all stretches, each in turn, and looks at all profiles with the memory before them."""
        if not plans:
            return Answers(*(torch.zeros(0, 1) for _ in Answers._fields)), []
        with torch.inference_mode():
            history = self._close_steps(torch.stack(list(layers)).to(self._device), plans)
            counts = [len(plan.closed) for plan in plans]
            place = np.repeat(np.arange(len(plans)), counts)
            closed = np.concatenate([plan.closed for plan in plans])
            looks, facts = torch.cat([plan.looks for plan in plans]), torch.cat([plan.facts for plan in plans])
            parts = []
            for start in range(0, len(looks), PROFILES_MAX):
                some = slice(start, start + PROFILES_MAX)
                memory = history[closed[some], place[some]]
                answer, _ = self._network(looks[some].to(self._device), facts[some].to(self._device), memory)
                parts.append(Answers(*(each.cpu() for each in answer)))
            answers = Answers(*(torch.cat(each) for each in zip(*parts, strict=True)))
            after = [history[len(plan.step_looks), place].cpu() for place, plan in enumerate(plans)]
        return answers, after

    def _close_steps(self, layers: Tensor, plans: Sequence[Plan]) -> Tensor:
        """The memories of all stretches after 0, 1, 2 … of their steps: (steps + 1, stretches, memory, gates / 4)."""
        counts: NDArray[np.int64] = np.array([len(plan.step_looks) for plan in plans])
        history = layers.expand(int(counts.max()) + 1, *layers.shape).clone()
        if not counts.any():
            return history
        looks, facts = torch.cat([plan.step_looks for plan in plans]), torch.cat([plan.step_facts for plan in plans])
        gates = torch.cat(
            [
                self._network.gates_in(
                    self._network.encode(
                        looks[start : start + PROFILES_MAX].to(self._device),
                        facts[start : start + PROFILES_MAX].to(self._device),
                    ).coarse
                )
                for start in range(0, len(looks), PROFILES_MAX)
            ]
        )
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        for step in range(int(counts.max())):
            going = np.flatnonzero(counts > step)
            history[step + 1 :, going] = self._network.remember(gates[first[going] + step], history[step, going])
        return history


def _decode(observation: AnalysisInput) -> Profiles | InvalidObservationError:
    try:
        return decode(observation)
    except InvalidObservationError as error:
        return error


def _position(observations: Sequence[AnalysisInput]) -> tuple[float | None, float | None]:
    """Of the instrument; all observations of a stretch are of one."""
    if not observations:
        return None, None
    return observations[0].latitude_deg, observations[0].longitude_deg
