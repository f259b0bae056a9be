"""The options of a training on a command line, and what they ask for. Trains nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from fieldpost.simulation.climates import TRAINING, Climate
from server.analyses.boundary_layer.learned.network import NetworkConfig
from server.analyses.boundary_layer.learned.weights import Weights
from server.analyses.boundary_layer.training.checkpoint import read_input
from server.analyses.boundary_layer.training.courses import climate_from_json
from server.analyses.boundary_layer.training.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingRun:
    """What a command line asks for; the fields are the arguments of train."""

    settings: TrainingSettings
    climate: Climate
    out: Path
    courses: Path
    start_from: Path | None
    references: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    default = TrainingSettings()
    as_weights = "left out: as --start-from has them, else as the shipped network has"
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; to go on with it, name it again")
    parser.add_argument("--courses", type=Path, help="where simulated courses are kept (default: OUT/courses)")
    parser.add_argument("--climate", default="training", help='"training", or a JSON file (default: %(default)s)')
    parser.add_argument("--days", type=int, default=default.days, help="courses to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=default.epochs, help="(default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=default.batch, help="courses a step, of all processes together (%(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate, help="highest (%(default)s)")
    parser.add_argument("--validation-days", type=int, default=default.validation_days, help="(default: %(default)s)")
    parser.add_argument("--calibration-days", type=int, default=default.calibration_days, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of weights and order (default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs=3, help=f"channels at 128, 64, 32 heights; {as_weights}")
    parser.add_argument("--memory", type=int, help=f"channels of the memory; {as_weights}")
    parser.add_argument("--start-from", type=Path, help="weights to begin with")
    parser.add_argument("--references", type=Path, help="real courses with known heights, written by references.py")


def to_run(options: argparse.Namespace) -> TrainingRun:
    """What the options say.

    Raises:
        InvalidRequestError: A number makes no sense, or a file is not what it should be.
    """
    like = NetworkConfig()
    if options.start_from is not None:
        like = Weights.from_bytes(read_input(options.start_from, "weights to begin with")).network.config
    first, second, third = options.widths or like.widths
    settings = TrainingSettings(
        days=options.days,
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        validation_days=options.validation_days,
        calibration_days=options.calibration_days,
        seed=options.seed,
        widths=(first, second, third),
        memory=like.memory if options.memory is None else options.memory,
    )
    climate = TRAINING if options.climate == "training" else _read_climate(Path(options.climate))
    out = options.out.absolute()
    courses = options.courses or out / "courses"
    return TrainingRun(settings, climate, out, courses.absolute(), options.start_from, options.references)


def _read_climate(path: Path) -> Climate:
    return climate_from_json(read_input(path, 'a climate, "training" or a JSON file').decode(errors="replace"))
