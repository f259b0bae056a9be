"""A batch on its way to heights: decoded, sorted by grid, masked at clouds, and answered in its order.

Shared by the versions that look at each profile alone, or begin so. Knows no method of retrieval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams import Profiles, estimate_noise
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable
from server.analyses.boundary_layer.classical.layers import Layers, Sky
from server.analyses.boundary_layer.classical.sky import below_cloud, judge_sky
from server.analyses.boundary_layer.decoding.decode import decode

CEILING_M = 4000.0
"""No higher is searched; over mid-latitudes the boundary layer hardly ever reaches this."""
FLOOR_M = 60.0
"""No lower is searched: there the overlap correction makes edges of its own."""
EDGE_ROOM_M = 200.0
"""Half the widest window that an edge is looked for with: so much is needed above the ceiling."""
FLAG_MEANINGS = ("none", "low", "good")

Decoded: TypeAlias = Profiles | InvalidObservationError
"""An observation, or why it is none."""
Grid: TypeAlias = tuple[int, float, float]
"""What makes two grids the same: number of gates, first and last height."""


@dataclass(frozen=True, slots=True)
class Group:
    """The observations of a batch that share one grid.

    Attributes:
        grid: What makes grids the same.
        places: In the batch.
        members: The profiles of each.
        searched_m: (searched gates,): the heights that are looked at.
        clear: (profiles of all, searched gates), m-1 sr-1; NaN where missing or in and above a cloud.
        noise: (profiles of all,): standard deviation before range correction, m-3 sr-1.
        cloud_base_m: (profiles of all,); NaN where there is none.
        is_obscured: (profiles of all,): the instrument says that fog or precipitation hides the sky.
    """

    grid: Grid
    places: list[int]
    members: list[Profiles]
    searched_m: NDArray[np.float64]
    clear: NDArray[np.float32]
    noise: NDArray[np.float64]
    cloud_base_m: NDArray[np.float32]
    is_obscured: NDArray[np.bool_]

    @property
    def gate_m(self) -> float:
        """Width of a gate."""
        return float(self.searched_m[1] - self.searched_m[0])

    @property
    def unix_nanos(self) -> NDArray[np.int64]:
        """When each profile was measured: (profiles of all,)."""
        return np.concatenate([member.unix_nanos for member in self.members])

    def sky(self) -> Sky:
        """What is in the way of a retrieval."""
        return judge_sky(self.clear, self.searched_m, self.cloud_base_m, self.is_obscured)

    def screened(self) -> tuple[NDArray[np.float32], Sky]:
        """`clear` and sky(), with clouds that the instrument has not reported masked and told like those it has."""
        sky = self.sky()
        base_m = np.fmin(self.cloud_base_m, sky.droplets_m)
        return below_cloud(self.clear, self.searched_m, base_m), replace(sky, cloud_base_m=base_m)

    def results(self, layers: Layers) -> dict[int, AnalysisResult]:
        """What each member is answered, by its place in the batch; layers are those of all profiles."""
        ends = np.cumsum([len(member.unix_nanos) for member in self.members])[:-1]
        columns = (layers.height_m, layers.standard_error_m, layers.significance, layers.flag, self.cloud_base_m)
        parts = zip(*(np.split(column, ends) for column in columns), strict=True)
        return {
            place: to_result(member.unix_nanos, Layers(*part[:4]), part[4])
            for place, member, part in zip(self.places, self.members, parts, strict=True)
        }


def decode_each(batch: Sequence[AnalysisInput]) -> list[Decoded]:
    """Decodes a batch; what cannot be decoded has its error in its place."""
    return [_decode_or_say_why(observation) for observation in batch]


def group_by_grid(decoded: Sequence[Decoded]) -> list[Group]:
    """Sorts what could be decoded by its grid, masks it, and estimates its noise."""
    alike: dict[Grid, list[tuple[int, Profiles]]] = defaultdict(list)
    for place, profiles in enumerate(decoded):
        if isinstance(profiles, Profiles):
            alike[_grid(profiles)].append((place, profiles))
    return [_gather(grid, placed) for grid, placed in alike.items()]


def in_order(decoded: Sequence[Decoded], answers: Mapping[int, AnalysisResult]) -> list[AnalysisResult | Exception]:
    """The answers in the order of the batch; where there was nothing to answer, why."""
    return [answers[place] if isinstance(each, Profiles) else each for place, each in enumerate(decoded)]


def to_result(unix_nanos: NDArray[np.int64], layers: Layers, cloud_base_m: NDArray[np.float32]) -> AnalysisResult:
    """Layers by the names that every version uses; each array (profiles,)."""
    return AnalysisResult(
        sample_unix_nanos=unix_nanos,
        variables=(
            AnalysisVariable("atmosphere_boundary_layer_thickness", "m", layers.height_m),
            AnalysisVariable("atmosphere_boundary_layer_thickness_standard_error", "m", layers.standard_error_m),
            AnalysisVariable("cloud_base_height", "m", cloud_base_m),
            AnalysisVariable("quality_flag", "1", layers.flag, FLAG_MEANINGS),
            AnalysisVariable("significance", "1", layers.significance),
        ),
    )


def searched_heights(height_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """The heights that are looked at, of (gates,): up to the ceiling and the room that an edge needs above it."""
    return height_m[: max(2, int(np.searchsorted(height_m, CEILING_M + EDGE_ROOM_M)))]


def _decode_or_say_why(observation: AnalysisInput) -> Decoded:
    try:
        return decode(observation)
    except InvalidObservationError as error:
        return error


def _grid(profiles: Profiles) -> Grid:
    return len(profiles.height_m), float(profiles.height_m[0]), float(profiles.height_m[-1])


def _gather(grid: Grid, placed: list[tuple[int, Profiles]]) -> Group:
    members = [profiles for _, profiles in placed]
    height_m = members[0].height_m
    searched_m = searched_heights(height_m)
    beta = np.concatenate([member.beta for member in members])
    cloud_base_m = np.concatenate([member.lowest_cloud_base_m for member in members])
    return Group(
        grid=grid,
        places=[place for place, _ in placed],
        members=members,
        searched_m=searched_m,
        clear=below_cloud(beta[:, : len(searched_m)], searched_m, cloud_base_m),
        noise=estimate_noise(beta, height_m),
        cloud_base_m=cloud_base_m,
        is_obscured=np.concatenate([member.is_obscured for member in members]),
    )
