"""Trains the learned retrieval on several machines: the same training, its processes started by Ray Train.

    python -m server.analyses.boundary_layer.train_ray --workers 4 --gpu --address auto --out /mnt/shared/run

The folder must be one that all machines see: there lie the courses, and the checkpoint from which the training goes
on when a process or a machine is lost. Needs the extra `ray-train`.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from fieldpost.errors import FieldpostError
from server.analyses.boundary_layer.train import run_training
from server.analyses.boundary_layer.training.options import TrainingRun, add_arguments, to_run

RESTARTS_MAX = 3


def train_on_ray(run: TrainingRun, *, workers: int, use_gpu: bool, address: str) -> None:
    """Runs the training in Ray's processes.

    Args:
        run: What to train; its folders are seen by all machines.
        workers: How many processes.
        use_gpu: Whether each has a GPU of its own.
        address: Of the cluster; "local" starts one here, "auto" finds the one that runs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=True)
    try:
        TorchTrainer(
            _train_here,
            train_loop_config={"run": run},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=run.out.name,
                storage_path=str(run.out / "ray"),
                failure_config=FailureConfig(max_failures=RESTARTS_MAX),
            ),
        ).fit()
    finally:
        ray.shutdown()


def _train_here(config: dict[str, Any]) -> None:
    """In each of Ray's processes: the process group is there already."""
    run_training(config["run"])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--gpu", action="store_true", help="give each process a GPU")
    parser.add_argument("--address", default="local", help='of the Ray cluster; "auto" for the one that runs here')
    options = parser.parse_args()
    try:
        train_on_ray(to_run(options), workers=options.workers, use_gpu=options.gpu, address=options.address)
    except FieldpostError as error:
        raise SystemExit(f"{error}\n{error.hint}" if error.hint else str(error)) from error


if __name__ == "__main__":
    main()
