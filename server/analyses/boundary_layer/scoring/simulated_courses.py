"""Simulated courses at an instrument's own gates, and what a version says of them, beside the truth.

A version gets what a worker would give it: stretches of a course where it remembers, else batches. Profiles are handed
over decoded, since to write and read 1440 telegrams a day would cost more than any retrieval; a version that takes none
is asked by telegrams. Knows no score.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation import REGIMES, SKIES, Climate, SimulatedCeilometer, Truth
from fieldpost.sun import DAY_S
from fieldpost.telegrams import Profiles
from server.analyses import Analysis, AnalysisInput, AnalysisResult, FollowingAnalysis, Stretch
from server.analyses.boundary_layer.scoring.metrics import NORMAL_90, Compared
from server.analyses.boundary_layer.simulated import draw_course, split

STRETCH = 64
THICKNESS = "atmosphere_boundary_layer_thickness"
Answers = Sequence[AnalysisResult | Exception]


@runtime_checkable
class PredictsProfiles(Protocol):
    """A version that looks at each profile alone and takes decoded ones."""

    @property
    def max_batch(self) -> int:
        """No more observations at once."""
        ...

    def predict_profiles(
        self, decoded: Sequence[Profiles], latitude_deg: float | None, longitude_deg: float | None
    ) -> Answers:
        """Answers for each observation, in order."""
        ...


@runtime_checkable
class FollowsProfiles(Protocol):
    """A version that remembers and takes decoded profiles."""

    def follow_profiles(
        self, stretches: Sequence[tuple[bytes, Sequence[Profiles], float | None, float | None]]
    ) -> Sequence[tuple[Answers, bytes]]:
        """Answers for stretches: each its state, observations, latitude and longitude in degrees."""
        ...


@dataclass(frozen=True, slots=True)
class Heights:
    """What a version says of some profiles; each attribute (profiles,), float64; NaN where it says nothing.

    Attributes:
        height_m: The mixing height.
        lower_m: Lower end of its central 90 % interval; from the standard error where a version gives no ends.
        upper_m: Upper end.
        flag: Its quality.
    """

    height_m: NDArray[np.float64]
    lower_m: NDArray[np.float64]
    upper_m: NDArray[np.float64]
    flag: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SimulatedCourse:
    """A day of one instrument from noon to noon.

    Attributes:
        seed: Which.
        instrument: What looked.
        unix_s: (profiles,): the instants at which it recorded.
        truth: At these.
        observations: One profile each.
    """

    seed: int
    instrument: SimulatedCeilometer
    unix_s: NDArray[np.float64]
    truth: Truth
    observations: tuple[Profiles, ...]

    @property
    def site(self) -> tuple[float, float]:
        """Latitude and longitude, degrees."""
        return self.instrument.atmosphere.latitude_deg, self.instrument.atmosphere.longitude_deg


def simulate_course(seed: int, climate: Climate, *, model: str | None = None, step_s: float = 60.0) -> SimulatedCourse:
    """The course of a seed: its day, site and weather; the model too, where none is asked for."""
    instrument, start_s = draw_course(seed, climate, model)
    unix_s = start_s + np.arange(0, DAY_S, step_s)
    unix_s = unix_s[instrument.is_recording(unix_s)]
    truth, profiles = instrument.profiles(unix_s)
    return SimulatedCourse(seed, instrument, unix_s, truth, tuple(split(profiles)))


def retrieve(analysis: Analysis, course: SimulatedCourse) -> tuple[list[AnalysisResult], float]:
    """What a version says of each observation, and the seconds of processor time that it took.

    Raises:
        Exception: What the version says instead of a result.
    """
    if not isinstance(analysis, FollowsProfiles | PredictsProfiles):
        return retrieve_telegrams(analysis, course)
    before_s = time.process_time()
    answers = ask(analysis, course.observations, *course.site)
    taken_s = time.process_time() - before_s
    return [_result_or_raise(answer) for answer in answers], taken_s


def ask(
    analysis: FollowsProfiles | PredictsProfiles,
    observations: Sequence[Profiles],
    latitude_deg: float | None,
    longitude_deg: float | None,
) -> Answers:
    """What a version says of the decoded observations of one course, in order of time."""
    answers: list[AnalysisResult | Exception] = []
    if isinstance(analysis, FollowsProfiles):
        state = b""
        for first in range(0, len(observations), STRETCH):
            stretch = (state, observations[first : first + STRETCH], latitude_deg, longitude_deg)
            [(some, state)] = analysis.follow_profiles([stretch])
            answers += some
        return answers
    for first in range(0, len(observations), analysis.max_batch):
        batch = observations[first : first + analysis.max_batch]
        answers += analysis.predict_profiles(batch, latitude_deg, longitude_deg)
    return answers


def retrieve_telegrams(analysis: Analysis, course: SimulatedCourse) -> tuple[list[AnalysisResult], float]:
    """The same by real telegrams, as a worker is asked; of a CL31 or CL51. The time is with decoding."""
    model = course.instrument.model
    inputs = [
        AnalysisInput(course.instrument.telegram(unix_s), model, round(unix_s * 1e9), None, *course.site)
        for unix_s in course.unix_s.tolist()
    ]
    before_s = time.process_time()
    answers: list[AnalysisResult | Exception] = []
    state = b""
    for first in range(0, len(inputs), STRETCH):
        some = inputs[first : first + STRETCH]
        if isinstance(analysis, FollowingAnalysis):
            [followed] = analysis.follow([Stretch(state, some)])
            answers, state = answers + followed.results, followed.state
        else:
            answers += analysis.predict(some)
    taken_s = time.process_time() - before_s
    return [_result_or_raise(answer) for answer in answers], taken_s


def compare(course: SimulatedCourse, results: Sequence[AnalysisResult]) -> Compared:
    """Heights beside the truth."""
    heights = read_heights(results)
    return beside_truth(course, heights.height_m, heights.lower_m, heights.upper_m, heights.flag)


def read_heights(answers: Answers) -> Heights:
    """The heights in answers about one profile each."""
    named = [
        {each.name: float(each.values[0]) for each in answer.variables} if isinstance(answer, AnalysisResult) else {}
        for answer in answers
    ]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([values.get(name, np.nan) for values in named], np.float64)

    height_m = column(THICKNESS)
    reach_m = NORMAL_90 * column(f"{THICKNESS}_standard_error")
    lower_m, upper_m = column(f"{THICKNESS}_lower"), column(f"{THICKNESS}_upper")
    return Heights(
        height_m,
        np.where(np.isfinite(lower_m), lower_m, height_m - reach_m),
        np.where(np.isfinite(upper_m), upper_m, height_m + reach_m),
        column("quality_flag"),
    )


def beside_truth(
    course: SimulatedCourse,
    found_m: NDArray[np.float64],
    lower_m: NDArray[np.float64],
    upper_m: NDArray[np.float64],
    flag: NDArray[np.float64],
) -> Compared:
    """Heights of each observation beside the truth; see Compared."""
    truth, count = course.truth, len(course.unix_s)
    return Compared(
        course=np.full(count, course.seed, np.int64),
        unix_s=course.unix_s,
        instrument=np.full(count, course.instrument.model),
        regime=np.array(REGIMES)[truth.regime],
        sky=np.array(SKIES)[truth.sky],
        true_m=truth.mixing_height_m,
        others_m=np.stack([truth.residual_layer_height_m, truth.cloud_base_m], axis=1),
        found_m=found_m,
        lower_m=lower_m,
        upper_m=upper_m,
        flag=flag,
    )


def _result_or_raise(answer: AnalysisResult | Exception) -> AnalysisResult:
    if isinstance(answer, AnalysisResult):
        return answer
    raise answer
