"""Courses to train and test on: a day of one instrument from noon to noon, minute by minute, with what is true of it.

Simulated ones are drawn from a climate; each is made once and kept in a folder. Knows no network.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fieldpost.simulation
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.simulation.climates import Climate
from fieldpost.telegrams import Profiles
from server.analyses.boundary_layer import simulated
from server.analyses.boundary_layer.clock import STEP_COUNT, STEP_S
from server.analyses.boundary_layer.learned import grid
from server.analyses.boundary_layer.learned.features import noise_of, sun_facts
from server.analyses.boundary_layer.learned.grid import reach, to_grid
from server.analyses.boundary_layer.simulated import draw_course

PROFILES_A_STEP = 5
PROFILE_COUNT = STEP_COUNT * PROFILES_A_STEP
PROFILE_S = STEP_S / PROFILES_A_STEP
UNKNOWN = -1
"""Of sky and regime, where nobody knows."""


@dataclass(frozen=True, slots=True)
class Course:
    """Minute by minute, each attribute (PROFILE_COUNT,) where nothing else is said.

    Attributes:
        beta: (PROFILE_COUNT, gates), float32, m-1 sr-1, on the grid of grid.py.
        noise: float64: as features.Sums has it.
        cloud_base_m: float32: as the instrument reports it; NaN where it reports none.
        is_obscured: bool.
        is_there: bool: False where the instrument recorded nothing.
        sun: (PROFILE_COUNT, 4), float32: from features.sun_facts.
        mixing_height_m: float32: true; NaN where there is none or nobody knows.
        residual_layer_height_m: float32: true; NaN where there is none.
        true_cloud_base_m: float32: NaN where there is none.
        sky: int8: place in network.SKIES; UNKNOWN where only the mixing height is known.
        regime: int8: place in fieldpost.simulation.REGIMES.
        reach: (): how many gates the instrument sees.
    """

    beta: NDArray[np.float32]
    noise: NDArray[np.float64]
    cloud_base_m: NDArray[np.float32]
    is_obscured: NDArray[np.bool_]
    is_there: NDArray[np.bool_]
    sun: NDArray[np.float32]
    mixing_height_m: NDArray[np.float32]
    residual_layer_height_m: NDArray[np.float32]
    true_cloud_base_m: NDArray[np.float32]
    sky: NDArray[np.int8]
    regime: NDArray[np.int8]
    reach: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Writes it whole or not at all."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        with partial.open("wb") as file:
            np.savez(file, **{each.name: getattr(self, each.name) for each in fields(self)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Course:
        """The opposite.

        Raises:
            BrokenStateError: The file is damaged.
        """
        try:
            with np.load(path) as file:
                return cls(**{each.name: file[each.name] for each in fields(cls)})
        except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise BrokenStateError(
                f"expected a course in {path}, but got: {error}", hint="remove the file: it is simulated again"
            ) from error


def simulate_course(seed: int, climate: Climate) -> Course:
    """The course of a seed: its day, site, weather and instrument."""
    instrument, start_s = draw_course(seed, climate)
    unix_s = start_s + PROFILE_S * np.arange(PROFILE_COUNT, dtype=np.float64)
    truth, profiles = instrument.profiles(unix_s)
    return make_course(
        profiles,
        is_there=instrument.is_recording(unix_s),
        sun=sun_facts(unix_s, instrument.atmosphere.latitude_deg, instrument.atmosphere.longitude_deg),
        mixing_height_m=truth.mixing_height_m,
        residual_layer_height_m=truth.residual_layer_height_m,
        true_cloud_base_m=truth.cloud_base_m,
        sky=truth.sky,
        regime=truth.regime,
    )


def make_course(
    profiles: Profiles,
    *,
    is_there: NDArray[np.bool_],
    sun: NDArray[np.float32],
    mixing_height_m: NDArray[np.floating],
    residual_layer_height_m: NDArray[np.floating],
    true_cloud_base_m: NDArray[np.floating],
    sky: NDArray[np.int8],
    regime: NDArray[np.int8],
) -> Course:
    """A course from the profiles of an instrument; the arguments as the attributes of Course."""
    return Course(
        beta=to_grid(profiles.beta, profiles.height_m),
        noise=noise_of(profiles),
        cloud_base_m=profiles.lowest_cloud_base_m,
        is_obscured=profiles.is_obscured,
        is_there=is_there,
        sun=sun,
        mixing_height_m=mixing_height_m.astype(np.float32),
        residual_layer_height_m=residual_layer_height_m.astype(np.float32),
        true_cloud_base_m=true_cloud_base_m.astype(np.float32),
        sky=sky.astype(np.int8),
        regime=regime.astype(np.int8),
        reach=np.array(reach(profiles.height_m)),
    )


def gather_courses(
    folder: Path,
    seeds: Sequence[int],
    climate: Climate,
    *,
    processes: int = 1,
    on_done: Callable[[int, int], None] = lambda done, count: None,
) -> list[Path]:
    """Simulates the courses that the folder has not yet, or has cut short, and returns the files of all.

    Args:
        folder: Where courses are kept; made where it is missing.
        seeds: Which.
        climate: Whose.
        processes: How many work at once.
        on_done: Told how many of how many are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = _key(climate)
    paths = [folder / f"course-{key}-{seed}.npz" for seed in seeds]
    missing = [(seed, path) for seed, path in zip(seeds, paths, strict=True) if not zipfile.is_zipfile(path)]
    done = len(paths) - len(missing)
    on_done(done, len(paths))
    if processes == 1:
        for seed, path in missing:
            _simulate_to(seed, climate, path)
            done += 1
            on_done(done, len(paths))
        return paths
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_simulate_to, seed, climate, path) for seed, path in missing]):
            future.result()
            done += 1
            on_done(done, len(paths))
    return paths


def climate_to_json(climate: Climate) -> str:
    """A climate as a file that the training takes."""
    return json.dumps(asdict(climate), indent=1, sort_keys=True) + "\n"


def climate_from_json(text: str) -> Climate:
    """The opposite.

    Raises:
        InvalidRequestError: It is no climate.
    """
    try:
        values = json.loads(text)
        ranges: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return Climate(**ranges)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidRequestError(
            f"expected a climate as JSON, with the fields of fieldpost.simulation.climates.Climate, but got: {error}",
            hint="write one with climate_to_json",
        ) from error


def hash_courses(paths: Sequence[Path]) -> str:
    """SHA-256 over all courses, in order: what a version was trained on."""
    digest = hashlib.sha256()
    for path in paths:
        course = Course.load(path)
        for each in fields(course):
            digest.update(np.ascontiguousarray(getattr(course, each.name)).tobytes())
    return digest.hexdigest()


def _simulate_to(seed: int, climate: Climate, path: Path) -> None:
    simulate_course(seed, climate).save(path)


def _key(climate: Climate) -> str:
    """Another climate, another simulator or another grid makes other courses."""
    digest = hashlib.sha256(climate_to_json(climate).encode())
    simulation = sorted(Path(fieldpost.simulation.__file__).parent.glob("*.py"))
    for source in [*simulation, Path(grid.__file__), Path(simulated.__file__), Path(__file__)]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
