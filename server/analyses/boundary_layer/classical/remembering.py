"""What the classical versions that remember have in common: stretches in, answers and the next state out.

Such a version is a fold over profiles on one grid of levels. How those are made of observations, and results of its
layers, is here once. Knows no method of retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import BrokenStateError
from fieldpost.telegrams import Profiles
from server.analyses import AnalysisInput, AnalysisResult, Followed, Stretch
from server.analyses.boundary_layer import INSTRUMENT_MODELS, MAX_BATCH, NAME
from server.analyses.boundary_layer.classical.batch import Decoded, decode_each, group_by_grid, in_order, to_result
from server.analyses.boundary_layer.classical.coarse import CoarseProfiles, coarsen, join
from server.analyses.boundary_layer.classical.guides import Limits, limits
from server.analyses.boundary_layer.classical.layers import Layers


class RememberingHeight:
    """A version that folds profiles, each in the light of those of its course before it.

    A version of its own says in `fold` how, and has a number.
    """

    name = NAME
    version: int
    instrument_models = INSTRUMENT_MODELS
    max_batch = MAX_BATCH

    def fold(self, state: bytes, profiles: CoarseProfiles, within: Limits) -> tuple[Layers, bytes]:
        """The layers of each profile, and what is known after the last.

        Args:
            state: What was known before the first; empty at the start of a course.
            profiles: By measure time.
            within: Of each profile: no top is outside.
        """
        raise NotImplementedError

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation as the first of its course."""
        return [followed.results[0] for followed in self.follow([Stretch(b"", [each]) for each in batch])]

    def follow(self, stretches: Sequence[Stretch]) -> list[Followed]:
        """Answers for stretches of several instruments, in order; see FollowingAnalysis.

        Raises:
            BrokenStateError: A state is not one of this version's.
        """
        return self.follow_profiles(
            [(each.state, decode_each(each.observations), *_position(each.observations)) for each in stretches]
        )

    def follow_profiles(
        self, stretches: Sequence[tuple[bytes, Sequence[Decoded], float | None, float | None]]
    ) -> list[Followed]:
        """The same for what is decoded: each with its state, observations, latitude and longitude in degrees."""
        return [self._follow_one(*stretch) for stretch in stretches]

    def _follow_one(
        self, state: bytes, decoded: Sequence[Decoded], latitude_deg: float | None, longitude_deg: float | None
    ) -> Followed:
        groups = group_by_grid(decoded)
        if not groups:
            return Followed(in_order(decoded, {}), state)
        places = [np.repeat(group.places, [len(m.unix_nanos) for m in group.members]) for group in groups]
        order = np.argsort(np.concatenate(places), kind="stable")
        profiles = join([coarsen(group) for group in groups]).take(order)
        layers, state = self.fold(state, profiles, limits(profiles.unix_s, latitude_deg, longitude_deg))
        return Followed(in_order(decoded, _results(decoded, profiles, layers)), state)


def read_state(state: bytes, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """What was remembered as one record: (), to be changed.

    Raises:
        BrokenStateError: It is not what this version writes.
    """
    if len(state) != dtype.itemsize:
        raise BrokenStateError(
            f"expected a state of {dtype.itemsize} bytes, but got {len(state)}",
            hint="delete the state: it is made again from the course's start",
        )
    record: NDArray[np.void] = np.frombuffer(state, dtype).copy().reshape(())
    return record


def _results(decoded: Sequence[Decoded], profiles: CoarseProfiles, layers: Layers) -> dict[int, AnalysisResult]:
    results, first = {}, 0
    for place, member in enumerate(decoded):
        if isinstance(member, Profiles):
            part = slice(first, first + len(member.unix_nanos))
            columns = (layers.height_m, layers.standard_error_m, layers.significance, layers.flag)
            results[place] = to_result(
                member.unix_nanos, Layers(*(column[part] for column in columns)), profiles.sky.cloud_base_m[part]
            )
            first = part.stop
    return results


def _position(observations: Sequence[AnalysisInput]) -> tuple[float | None, float | None]:
    """Of the instrument; all observations of a stretch are of one."""
    if not observations:
        return None, None
    return observations[0].latitude_deg, observations[0].longitude_deg
