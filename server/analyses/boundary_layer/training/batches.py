"""Courses as the network reads them, many at once; each time in another way, so that it learns what may vary.

Knows no simulator and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.analyses.boundary_layer.clock import STEP_COUNT
from server.analyses.boundary_layer.learned.features import Sums, fade, sums_of_each, to_channels, to_facts
from server.analyses.boundary_layer.learned.grid import CENTRES_M, GATE_COUNT, WIDTHS_M
from server.analyses.boundary_layer.training.courses import PROFILE_COUNT, PROFILES_A_STEP, UNKNOWN, Course

CALIBRATION_SPREAD = 0.25
"""Standard deviation of the logarithm of a factor on everything, beside the climate's own."""
NO_POSITION_SHARE, LATE_START_SHARE, GAP_SHARE = 0.1, 0.2, 0.2
"""Of courses: the place is unknown; the instrument begins late; it is silent for up to six hours."""
GAP_MAX = 360
NOISY_SHARE, NOISE_FACTOR_MAX = 0.4, 2.5
"""Of courses, those seen by a noisier instrument, and how much noisier."""
SUN_SHIFT_SHARE, SUN_SHIFT_MAX = 0.5, 30
"""Of courses, those whose sun is ahead or behind, and by how many minutes: behind a mountain, or under a wrong clock.
Where the collapse of a layer cannot be seen, nobody knows it better than that."""
SUN_PLACE = 2
"""Of a step's profiles, the one whose sun stands for the step."""


class Batch(NamedTuple):
    """Courses as the network reads them, and the truth at each look.

    Attributes:
        step_looks: (courses, steps, channels of all looks, gates).
        step_facts: (courses, steps, facts).
        looks: As step_looks, of one profile of each step.
        facts: As step_facts.
        is_there: (courses, steps), bool: whether there is such a profile.
        mixing_height_m: (courses, steps): truth; NaN where there is none. So are the two that follow.
        residual_layer_height_m: (courses, steps).
        cloud_base_m: (courses, steps).
        sky: (courses, steps), int64; courses.UNKNOWN where only the mixing height is known.
        regime: (courses, steps), int64.
    """

    step_looks: Tensor
    step_facts: Tensor
    looks: Tensor
    facts: Tensor
    is_there: Tensor
    mixing_height_m: Tensor
    residual_layer_height_m: Tensor
    cloud_base_m: Tensor
    sky: Tensor
    regime: Tensor


def make_batch(courses: Sequence[Course], random: Sequence[np.random.Generator], *, is_varied: bool) -> Batch:
    """Puts courses together, with a profile of each step drawn at random.

    Args:
        courses: Some.
        random: For each course, draws the profiles and the variations.
        is_varied: Whether courses are varied: for training.
    """
    if is_varied:
        courses = [vary(course, each) for course, each in zip(courses, random, strict=True)]
    shape = (len(courses), STEP_COUNT, PROFILES_A_STEP)
    there = _stacked([each.is_there for each in courses], shape)
    alone = _masked(
        sums_of_each(
            np.stack([each.beta for each in courses]).reshape(*shape, GATE_COUNT),
            np.stack([each.noise for each in courses]).reshape(shape),
            np.stack([each.cloud_base_m for each in courses]).reshape(shape),
            np.stack([each.is_obscured for each in courses]).reshape(shape),
        ),
        there,
    )
    so_far = Sums(*(values.cumsum(dim=2) for values in alone))
    step = Sums(*(values[:, :, -1] for values in so_far))
    sun = torch.from_numpy(np.stack([each.sun for each in courses]).reshape(*shape, -1))
    place = _draw_places(there, random)
    in_reach = torch.from_numpy(np.stack([np.arange(GATE_COUNT) < each.reach for each in courses]).astype(np.float64))
    of_step = in_reach[:, None]

    nothing = Sums(*(torch.zeros_like(values[:, 0]) for values in step))
    steps = [Sums(*values) for values in zip(*(each.unbind(dim=1) for each in step), strict=True)]
    faded = [nothing, *fade(nothing, steps[:-1])]
    recent = to_channels(Sums(*(torch.stack(values, dim=1) for values in zip(*faded, strict=True))), of_step)
    step_channels = to_channels(step, of_step)
    latest = to_channels(_at(alone, place), of_step)
    mean_so_far = _at(so_far, place)
    return Batch(
        step_looks=torch.cat([step_channels, step_channels, recent], dim=2),
        step_facts=to_facts(step, sun[:, :, SUN_PLACE]),
        looks=torch.cat([latest, to_channels(mean_so_far, of_step), recent], dim=2),
        facts=to_facts(mean_so_far, _pick(sun, place)),
        is_there=_pick(there, place),
        mixing_height_m=_pick(_stacked([each.mixing_height_m for each in courses], shape), place),
        residual_layer_height_m=_pick(_stacked([each.residual_layer_height_m for each in courses], shape), place),
        cloud_base_m=_pick(_stacked([each.true_cloud_base_m for each in courses], shape), place),
        sky=_pick(_stacked([each.sky for each in courses], shape), place).long(),
        regime=_pick(_stacked([each.regime for each in courses], shape), place).long(),
    )


def vary(course: Course, random: np.random.Generator) -> Course:
    """The same weather, seen by an instrument that is otherwise calibrated, noisier, elsewhere or switched off."""
    factor = np.exp(random.normal(0, CALIBRATION_SPREAD))
    is_there, sun = course.is_there.copy(), course.sun
    beta, noise = course.beta * np.float32(factor), course.noise * factor**2
    if random.random() < NOISY_SHARE:
        gain = random.uniform(1, NOISE_FACTOR_MAX) ** 2
        added = np.sqrt((gain - 1) * noise)[:, None] * np.sqrt(CENTRES_M**4 / WIDTHS_M)
        beta = beta + (added * random.standard_normal(beta.shape, np.float32)).astype(np.float32)
        noise = noise * gain
    if random.random() < SUN_SHIFT_SHARE:
        shift = int(random.integers(-SUN_SHIFT_MAX, SUN_SHIFT_MAX + 1))
        sun = sun[np.clip(np.arange(PROFILE_COUNT) + shift, 0, PROFILE_COUNT - 1)]
    if random.random() < NO_POSITION_SHARE:
        sun = np.zeros_like(sun)
    if random.random() < LATE_START_SHARE:
        is_there[: random.integers(PROFILE_COUNT)] = False
    if random.random() < GAP_SHARE:
        start = random.integers(PROFILE_COUNT)
        is_there[start : start + random.integers(GAP_MAX)] = False
    return replace(
        course,
        beta=beta,
        noise=noise,
        is_there=is_there,
        sun=sun,
    )


def is_known(batch: Batch) -> Tensor:
    """Where more than the mixing height is known: (courses, steps)."""
    return batch.sky != UNKNOWN


def _draw_places(there: Tensor, random: Sequence[np.random.Generator]) -> Tensor:
    """One of the profiles of each step that are there: (courses, steps), int64; any where there is none."""
    score = torch.from_numpy(np.stack([each.random(there.shape[1:]) for each in random])) * there
    return score.argmax(dim=2)


def _masked(sums: Sums, there: Tensor) -> Sums:
    return Sums(*(values * (there[..., None] if values.dim() > there.dim() else there) for values in sums))


def _at(sums: Sums, place: Tensor) -> Sums:
    return Sums(*(_pick(values, place) for values in sums))


def _pick(values: Tensor, place: Tensor) -> Tensor:
    """One of each step's profiles: (courses, steps, profiles, ...) -> (courses, steps, ...)."""
    index = place.reshape(*place.shape, *[1] * (values.dim() - 2)).expand(*place.shape, 1, *values.shape[3:])
    return values.gather(2, index).squeeze(2)


def _stacked(values: Sequence[NDArray[np.generic]], shape: tuple[int, int, int]) -> Tensor:
    return torch.from_numpy(np.stack(values).reshape(shape))
