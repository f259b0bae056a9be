"""Trains the learned retrieval on simulated courses, and writes the weights with all that is to be known of them.

    torchrun --standalone --nproc-per-node 2 -m server.analyses.boundary_layer.train --out build/boundary-layer

One process or many give the same within noise: a step of the optimiser always sees the same courses, whoever computes
its share. Killed and called again with the same folder it goes on after the last whole epoch. On GPUs where there are
some (NCCL), else on CPUs (gloo).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fieldpost
from fieldpost.errors import FieldpostError, InvalidRequestError
from fieldpost.simulation.climates import CALIBRATION, Climate
from server.analyses.boundary_layer.learned.network import LayerNetwork, NetworkConfig
from server.analyses.boundary_layer.learned.weights import Weights, count_parameters
from server.analyses.boundary_layer.training.batches import Batch, make_batch
from server.analyses.boundary_layer.training.calibrate import calibrate, measure
from server.analyses.boundary_layer.training.checkpoint import (
    make_folder,
    read_checkpoint,
    read_input,
    write_checkpoint,
    write_file,
    write_json,
)
from server.analyses.boundary_layer.training.courses import (
    Course,
    climate_to_json,
    gather_courses,
    hash_courses,
)
from server.analyses.boundary_layer.training.figure import draw_training
from server.analyses.boundary_layer.training.losses import count_looks, loss_of
from server.analyses.boundary_layer.training.options import TrainingRun, add_arguments, to_run
from server.analyses.boundary_layer.training.references import read_references
from server.analyses.boundary_layer.training.settings import TrainingSettings

FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED, FIRST_CALIBRATION_SEED = 100_000, 300_000, 500_000
WARM_UP_SHARE = 0.05
GRADIENT_NORM_MAX = 1.0
PROCESS_GROUP_TIMEOUT = timedelta(minutes=10)


class _Loss(nn.Module):
    """The network with its loss, since gradients are shared between processes for what forward computes.

    Processes have unequal shares: other courses with other gaps, and one course more or less. So their sums are divided
    by the mean of their counts, and the mean of their gradients is that of one process with all courses.
    """

    def __init__(self, network: LayerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Tensor:
        counts = _mean_of_all(count_looks(batch))
        answers = self.network.follow(batch.step_looks, batch.step_facts, batch.looks, batch.facts)
        return loss_of(answers, batch, counts)


def train(
    settings: TrainingSettings,
    climate: Climate,
    out: Path,
    *,
    courses: Path,
    start_from: Path | None = None,
    references: Path | None = None,
) -> None:
    """Trains; called in every process of the group, or in one without a group.

    Args:
        settings: See there.
        climate: What the courses are drawn from.
        out: Where the run writes weights.safetensors, metrics.json, figure.png, progress.json and its checkpoint.
        courses: Where simulated courses are kept.
        start_from: Weights to begin with; a new network where None.
        references: Real courses with known heights, as references.py writes them; trained on beside the others.

    Raises:
        InvalidRequestError: What is asked for does not fit together, or the folder has another run's checkpoint.
    """
    code = code_version()  # of what runs, not of what lies there when it ends
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else "cpu"
    if settings.batch < world:
        raise InvalidRequestError(
            f"expected a batch of at least {world} courses, one a process, but got {settings.batch}"
        )
    config = NetworkConfig(settings.widths, settings.memory)
    network, parent_sha256 = _start(config, start_from, settings.seed)
    began_s = time.monotonic()
    train_paths = _gather(courses, FIRST_TRAINING_SEED, settings.days, climate, rank, world)
    validation_paths = _gather(courses, FIRST_VALIDATION_SEED, settings.validation_days, climate, rank, world)
    training = [Course.load(path) for path in train_paths] + (read_references(references) if references else [])
    validation = [Course.load(path) for path in validation_paths]
    simulated_s = time.monotonic() - began_s

    network.to(device).train()
    loss: nn.Module = _Loss(network)
    if world > 1:
        loss = DistributedDataParallel(loss)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps_an_epoch = len(training) // settings.batch
    if not steps_an_epoch:
        raise InvalidRequestError(f"expected at least {settings.batch} courses, one batch, but got {len(training)}")

    checkpoint = out / "checkpoint.pt"
    made_of = {
        "settings": settings.to_dict(),
        "climate_sha256": hashlib.sha256(climate_to_json(climate).encode()).hexdigest(),
        "start_from": parent_sha256,
        "references_sha256": hashlib.sha256(references.read_bytes()).hexdigest() if references else "",
    }
    history: list[dict[str, float]] = []
    saved = read_checkpoint(checkpoint, made_of, device)
    if saved is not None:
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
        _say(rank, f"going on after epoch {len(history)}")
    elif checkpoint.exists():
        _say(rank, f"{checkpoint} cannot be read: beginning anew")

    for epoch in range(len(history), settings.epochs):
        epoch_began_s = time.monotonic()
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(training))
        total = torch.zeros(())
        for step in range(steps_an_epoch):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _rate((epoch + step / steps_an_epoch) / settings.epochs)
            chosen = order[step * settings.batch : (step + 1) * settings.batch][rank::world]
            # by course, so that it does not matter which process has it
            random = [np.random.default_rng([settings.seed, epoch, int(index)]) for index in chosen]
            batch = _to(make_batch([training[index] for index in chosen], random, is_varied=True), device)
            optimizer.zero_grad(set_to_none=True)
            value = loss(batch)
            value.backward()
            nn.utils.clip_grad_norm_(loss.parameters(), GRADIENT_NORM_MAX)
            optimizer.step()
            total += value.detach().cpu()
        loss_mean = float(_mean_of_all(total.to(device))) / steps_an_epoch
        score = measure(network, validation, settings.batch)
        history.append({"loss": loss_mean, "epoch_s": time.monotonic() - epoch_began_s, **score.to_dict()})
        if rank == 0:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
            write_checkpoint(checkpoint, made_of, state)
            write_json(out / "progress.json", {"epoch": epoch + 1, "epochs": settings.epochs, **history[-1]})
        _say(
            rank,
            f"epoch {epoch + 1}/{settings.epochs}  loss {history[-1]['loss']:.3f}  validation RMSE {score.rmse_m:.0f} m"
            f"  MAE {score.mae_m:.0f} m  beyond 300 m {score.wrong:.1%}  sky right {score.sky_right:.1%}"
            f"  {history[-1]['epoch_s']:.0f} s",
        )

    calibration_paths = _gather(courses, FIRST_CALIBRATION_SEED, settings.calibration_days, CALIBRATION, rank, world)
    if rank == 0:
        network.eval()
        calibration = calibrate(network, [Course.load(path) for path in calibration_paths], settings.batch)
        metrics = {
            "settings": settings.to_dict(),
            "processes": world,
            "parameters": count_parameters(network),
            "courses": len(training),
            "simulation_s": simulated_s,
            "training_s": sum(each["epoch_s"] for each in history),
            "calibration": asdict(calibration),
            "history": history,
        }
        provenance = {
            "data_sha256": hash_courses(train_paths),
            "code_version": code,
            **made_of,
            **{name: value for name, value in metrics.items() if name != "history"},
            "validation": history[-1] if history else {},
        }
        write_file(out / "weights.safetensors", Weights(network, calibration, provenance).to_bytes())
        draw_training(out / "figure.png", history)
        write_json(out / "metrics.json", {**metrics, "provenance": provenance})
        _say(rank, f"wrote {out / 'weights.safetensors'}")


def code_version() -> str:
    """The release, and a hash of the code that decides what is trained."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(here.rglob("*.py")), *sorted(Path(fieldpost.__file__).parent.glob("simulation/*.py"))]:
        digest.update(path.read_bytes())
    return f"{fieldpost.__version__}+{digest.hexdigest()[:12]}"


def _start(config: NetworkConfig, start_from: Path | None, seed: int) -> tuple[LayerNetwork, str]:
    """The network to begin with, and the SHA-256 of the weights that it has; empty for a new one."""
    if start_from is None:
        torch.manual_seed(seed)
        return LayerNetwork(config), ""
    content = read_input(start_from, "weights to begin with")
    network = Weights.from_bytes(content).network
    if network.config != config:
        raise InvalidRequestError(
            f"expected weights of a network with {config.to_dict()}, but got {network.config.to_dict()} ({start_from})",
            hint="leave --widths and --memory out, and the network is as the weights are",
        )
    return network, hashlib.sha256(content).hexdigest()


def _mean_of_all(values: Tensor) -> Tensor:
    """The mean over the processes of the group."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _gather(folder: Path, first: int, count: int, climate: Climate, rank: int, world: int) -> list[Path]:
    """Each process simulates its share; all wait for all."""
    seeds = range(first, first + count)
    gather_courses(folder, seeds[rank::world], climate, on_done=_progress(rank))
    if world > 1:
        dist.barrier()
    return gather_courses(folder, seeds, climate)


def _progress(rank: int) -> Any:
    def tell(done: int, count: int) -> None:
        if rank == 0 and (done == count or done % 25 == 0):
            _say(rank, f"courses {done}/{count}")

    return tell


def _rate(share: float) -> float:
    """The learning rate's course: a short rise, then half a cosine down to nothing."""
    if share < WARM_UP_SHARE:
        return max(share / WARM_UP_SHARE, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))


def _to(batch: Batch, device: torch.device | str) -> Batch:
    return Batch(*(each.to(device, non_blocking=True) for each in batch))


def _say(rank: int, text: str) -> None:
    if rank == 0:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The group of this process, where torchrun or Ray started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PROCESS_GROUP_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_training(run: TrainingRun) -> None:
    """Trains what a command line asks for, in each process of the group."""
    make_folder(run.out)
    train(
        run.settings,
        run.climate,
        run.out,
        courses=run.courses,
        start_from=run.start_from,
        references=run.references,
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    options = parser.parse_args()
    try:
        run = to_run(options)
        with process_group():
            run_training(run)
    except FieldpostError as error:
        raise SystemExit(f"{error}\n{error.hint}" if error.hint else str(error)) from error


if __name__ == "__main__":
    main()
