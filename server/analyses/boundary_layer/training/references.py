"""Real courses with heights that somebody knows: from radiosondes, or from experts who drew lines.

They are trained on beside simulated ones: only the mixing height counts in them, and only where it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from fieldpost.telegrams import Profiles
from server.analyses.boundary_layer.clock import NANOS, course_start_unix_s
from server.analyses.boundary_layer.learned.features import sun_facts
from server.analyses.boundary_layer.training.courses import PROFILE_COUNT, PROFILE_S, UNKNOWN, Course, make_course

REFERENCE_MINUTES = 30.0
"""A reference height stands for the profiles up to so long before and after it."""


def make_reference_course(
    profiles: Profiles,
    reference_unix_s: Sequence[float],
    reference_height_m: Sequence[float],
    latitude_deg: float | None,
    longitude_deg: float | None,
) -> Course:
    """A course of real profiles: of each minute the first, with the reference heights nearest in time.

    Args:
        profiles: Of one instrument within one course, by time.
        reference_unix_s: When heights are known, seconds since 1970-01-01 UTC.
        reference_height_m: The heights above the instrument.
        latitude_deg: None where it is unknown.
        longitude_deg: None where it is unknown.
    """
    start_s = course_start_unix_s(float(profiles.unix_nanos[0]) / NANOS, longitude_deg)
    minute = ((profiles.unix_nanos / NANOS - start_s) // PROFILE_S).astype(np.int64)
    minute, first = np.unique(np.clip(minute, 0, PROFILE_COUNT - 1), return_index=True)
    unix_s = start_s + PROFILE_S * np.arange(PROFILE_COUNT, dtype=np.float64)
    place = np.zeros(PROFILE_COUNT, np.int64)
    place[minute] = first
    is_there = np.zeros(PROFILE_COUNT, np.bool_)
    is_there[minute] = True
    height_m = np.full(PROFILE_COUNT, np.nan, np.float32)
    if len(reference_unix_s):
        distance_s = np.abs(unix_s[:, None] - np.asarray(reference_unix_s, np.float64))
        nearest = distance_s.argmin(axis=1)
        is_near = distance_s.min(axis=1) <= 60 * REFERENCE_MINUTES
        height_m = np.where(is_near, np.asarray(reference_height_m, np.float32)[nearest], np.float32(np.nan))
    nowhere = np.full(PROFILE_COUNT, np.nan, np.float32)
    unknown = np.full(PROFILE_COUNT, UNKNOWN, np.int8)
    return make_course(
        Profiles(
            unix_nanos=profiles.unix_nanos[place],
            height_m=profiles.height_m,
            beta=profiles.beta[place],
            cloud_base_m=profiles.cloud_base_m[place],
            is_obscured=profiles.is_obscured[place],
        ),
        is_there=is_there,
        sun=sun_facts(unix_s, latitude_deg, longitude_deg),
        mixing_height_m=height_m,
        residual_layer_height_m=nowhere,
        true_cloud_base_m=nowhere,
        sky=unknown,
        regime=unknown,
    )


def write_references(path: Path, courses: Sequence[Course]) -> None:
    """Writes courses as one file."""
    with path.open("wb") as file:
        stacked: dict[str, Any] = {
            each.name: np.stack([getattr(course, each.name) for course in courses]) for each in fields(Course)
        }
        np.savez(file, **stacked)


def read_references(path: Path) -> list[Course]:
    """The opposite."""
    with np.load(path) as file:
        stacked = {each.name: file[each.name] for each in fields(Course)}
    count = len(stacked["beta"])
    return [Course(**{name: values[index] for name, values in stacked.items()}) for index in range(count)]
