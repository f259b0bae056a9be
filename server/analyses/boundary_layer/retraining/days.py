"""Days with known heights to compare versions on: simulated ones, and real ones with reference heights.

Knows no version, no score and no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError
from fieldpost.simulation import REGIMES, SKIES, Climate
from fieldpost.telegrams import Profiles
from server.analyses import AnalysisInput
from server.analyses.boundary_layer.clock import NANOS, course_start_unix_s
from server.analyses.boundary_layer.decoding.decode import decode
from server.analyses.boundary_layer.scoring.simulated_courses import simulate_course
from server.analyses.boundary_layer.simulated import split
from server.analyses.retraining import ReferenceDay

PROFILE_S = 60.0
REFERENCE_S = 300.0
"""A reference height is that of the nearest profile, if none is nearer and it is no further away."""
_NAMES_RAIN_OR_FOG = ("rain", "fog")


@dataclass(frozen=True, slots=True)
class KnownDay:
    """A course of one instrument, observation by observation.

    Attributes:
        observations: One profile each, by time.
        latitude_deg: None where it is unknown.
        longitude_deg: None where it is unknown.
        true_m: (times,), float64: mixing height; NaN where there is none or nobody knows it.
        is_undefined: (times,): where no height is defined: in rain and fog.
        groups: By name, which of the instants, (times,), belong to it.
        references: Instants, seconds since 1970, and heights, m, of a real day; empty for a simulated one.
    """

    observations: Sequence[Profiles]
    latitude_deg: float | None
    longitude_deg: float | None
    true_m: NDArray[np.float64]
    is_undefined: NDArray[np.bool_]
    groups: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    references: tuple[NDArray[np.float64], NDArray[np.float64]] = (np.empty(0), np.empty(0))

    @property
    def unix_s(self) -> NDArray[np.float64]:
        """When each was measured: (times,)."""
        return np.array([each.unix_nanos[0] for each in self.observations]) / NANOS


def simulate_day(seed: int, climate: Climate, model: str, stride: int = 1) -> KnownDay:
    """The course of a seed as an instrument records it: one profile a minute.

    Args:
        seed: Decides day, site, weather and what is wrong with the instrument.
        climate: What they are drawn from.
        model: Of the instrument, for example "cl51".
        stride: Only one of so many profiles.
    """
    course = simulate_course(seed, climate, model=model, step_s=PROFILE_S * stride)
    truth, (latitude_deg, longitude_deg) = course.truth, course.site
    is_cloudy = truth.sky == SKIES.index("cloud")
    regimes = {name: (truth.regime == place) & ~is_cloudy for place, name in enumerate(REGIMES)}
    return KnownDay(
        observations=course.observations,
        latitude_deg=latitude_deg,
        longitude_deg=longitude_deg,
        true_m=truth.mixing_height_m,
        is_undefined=np.isin(truth.sky, [SKIES.index(name) for name in _NAMES_RAIN_OR_FOG]),
        groups={**regimes, "cloudy": is_cloudy, model: np.ones(len(course.unix_s), np.bool_)},
    )


def to_known_days(real: ReferenceDay) -> Iterator[KnownDay]:
    """The courses of a real day that have references; what cannot be decoded is left out."""
    profiles = [each for observation in real.observations for each in _decode(observation)]
    if not profiles:
        return
    first = real.observations[0]
    starts = [course_start_unix_s(each.unix_nanos[0] / NANOS, first.longitude_deg) for each in profiles]
    wanted = np.array([course_start_unix_s(unix_s, first.longitude_deg) for unix_s in real.unix_s])
    for start_s in sorted(set(wanted.tolist())):
        mine = [each for each, start in zip(profiles, starts, strict=True) if start == start_s]
        if mine:
            here = wanted == start_s
            true_m = _at_nearest(mine, real.unix_s[here], real.height_m[here])
            references = (real.unix_s[here], real.height_m[here])
            nowhere = np.zeros(len(mine), np.bool_)
            yield KnownDay(mine, first.latitude_deg, first.longitude_deg, true_m, nowhere, references=references)


def join(some: Sequence[Profiles]) -> Profiles:
    """Profiles of one grid as one; those of another grid than the first has are left out."""
    height_m = some[0].height_m
    some = [each for each in some if np.array_equal(each.height_m, height_m)]
    layers = max(each.cloud_base_m.shape[1] for each in some)
    clouds = [np.pad(each.cloud_base_m, _room(each, layers), constant_values=np.nan) for each in some]
    return Profiles(
        np.concatenate([each.unix_nanos for each in some]),
        height_m,
        np.concatenate([each.beta for each in some]),
        np.concatenate(clouds),
        np.concatenate([each.is_obscured for each in some]),
    )


def _room(profiles: Profiles, layers: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, 0), (0, layers - profiles.cloud_base_m.shape[1])


def _decode(observation: AnalysisInput) -> Iterator[Profiles]:
    try:
        yield from split(decode(observation))
    except InvalidObservationError:
        return


def _at_nearest(
    profiles: Sequence[Profiles], unix_s: NDArray[np.float64], height_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each profile the reference height that it is the nearest to: (profiles,); NaN for the others."""
    measured_s = np.array([each.unix_nanos[0] for each in profiles]) / NANOS
    found = np.full(len(profiles), np.nan)
    for reference_s, height in zip(unix_s, height_m, strict=True):
        nearest = int(np.abs(measured_s - reference_s).argmin())
        if abs(measured_s[nearest] - reference_s) <= REFERENCE_S:
            found[nearest] = height
    return found
