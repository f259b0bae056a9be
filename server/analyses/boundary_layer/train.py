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
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fieldpost
from fieldpost.simulation.climates import CALIBRATION, TRAINING, Climate
from server.analyses.boundary_layer.learned.network import LayerNetwork, NetworkConfig
from server.analyses.boundary_layer.learned.weights import Weights, count_parameters
from server.analyses.boundary_layer.training.batches import Batch, make_batch
from server.analyses.boundary_layer.training.calibrate import calibrate, measure
from server.analyses.boundary_layer.training.courses import (
    Course,
    climate_from_json,
    climate_to_json,
    gather_courses,
    hash_courses,
)
from server.analyses.boundary_layer.training.figure import draw_training
from server.analyses.boundary_layer.training.losses import loss_of
from server.analyses.boundary_layer.training.references import read_references

FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED, FIRST_CALIBRATION_SEED = 100_000, 300_000, 500_000
WARM_UP_SHARE = 0.05
GRADIENT_NORM_MAX = 1.0
PROCESS_GROUP_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class TrainingSettings:
    """What a run is told; with the code and the climate it decides the result, within noise."""

    days: int = 768
    epochs: int = 16
    batch: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    validation_days: int = 48
    calibration_days: int = 96
    seed: int = 1
    widths: tuple[int, int, int] = (16, 24, 32)
    memory: int = 24


class _Loss(nn.Module):
    """The network with its loss, since gradients are shared between processes for what forward computes."""

    def __init__(self, network: LayerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Tensor:
        return loss_of(self.network.follow(batch.step_looks, batch.step_facts, batch.looks, batch.facts), batch)


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
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else "cpu"
    began_s = time.monotonic()
    train_paths = _gather(courses, FIRST_TRAINING_SEED, settings.days, climate, rank, world)
    validation_paths = _gather(courses, FIRST_VALIDATION_SEED, settings.validation_days, climate, rank, world)
    training = [Course.load(path) for path in train_paths] + (read_references(references) if references else [])
    validation = [Course.load(path) for path in validation_paths]
    simulated_s = time.monotonic() - began_s

    torch.manual_seed(settings.seed)
    network = LayerNetwork(NetworkConfig(settings.widths, settings.memory))
    if start_from is not None:
        network = Weights.from_bytes(start_from.read_bytes()).network
    network.to(device).train()
    loss: nn.Module = _Loss(network)
    if world > 1:
        loss = DistributedDataParallel(loss)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps_an_epoch = len(training) // settings.batch
    if not steps_an_epoch:
        raise SystemExit(f"expected at least {settings.batch} courses, one batch, but got {len(training)}")

    checkpoint = out / "checkpoint.pt"
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved["settings"] != _plain(settings):
            raise SystemExit(f"expected {checkpoint} of a run with these settings; remove it, or choose another --out")
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
        _say(rank, f"going on after epoch {len(history)}")

    for epoch in range(len(history), settings.epochs):
        epoch_began_s = time.monotonic()
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(training))
        total = 0.0
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
            total += float(value.detach())
        score = measure(network, validation, settings.batch)
        history.append({"loss": total / steps_an_epoch, "epoch_s": time.monotonic() - epoch_began_s, **score.to_dict()})
        if rank == 0:
            _write_checkpoint(checkpoint, network, optimizer, settings, history)
            _write_json(out / "progress.json", {"epoch": epoch + 1, "epochs": settings.epochs, **history[-1]})
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
            "settings": _plain(settings),
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
            "code_version": code_version(),
            "climate_sha256": hashlib.sha256(climate_to_json(climate).encode()).hexdigest(),
            "start_from": hashlib.sha256(start_from.read_bytes()).hexdigest() if start_from else "",
            **{name: value for name, value in metrics.items() if name != "history"},
            "validation": history[-1] if history else {},
        }
        _write(out / "weights.safetensors", Weights(network, calibration, provenance).to_bytes())
        draw_training(out / "figure.png", history)
        _write_json(out / "metrics.json", {**metrics, "provenance": provenance})
        _say(rank, f"wrote {out / 'weights.safetensors'}")


def code_version() -> str:
    """The release, and a hash of the code that decides what is trained."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(here.rglob("*.py")), *sorted(Path(fieldpost.__file__).parent.glob("simulation/*.py"))]:
        digest.update(path.read_bytes())
    return f"{fieldpost.__version__}+{digest.hexdigest()[:12]}"


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


def _write_checkpoint(
    path: Path,
    network: LayerNetwork,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    history: list[dict[str, float]],
) -> None:
    partial = path.with_suffix(".part")
    content = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "settings": _plain(settings),
        "history": history,
    }
    torch.save(content, partial)
    partial.replace(path)


def _plain(settings: TrainingSettings) -> dict[str, Any]:
    return {**asdict(settings), "widths": list(settings.widths)}


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    partial.replace(path)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    _write(path, (json.dumps(values, indent=1) + "\n").encode())


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


@dataclass(frozen=True)
class TrainingRun:
    """What a command line asks for; the fields as the arguments of train."""

    settings: TrainingSettings
    climate: Climate
    out: Path
    courses: Path
    start_from: Path | None
    references: Path | None

    def __call__(self) -> None:
        """Trains, in each process of the group."""
        self.out.mkdir(parents=True, exist_ok=True)
        train(
            self.settings,
            self.climate,
            self.out,
            courses=self.courses,
            start_from=self.start_from,
            references=self.references,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    default = TrainingSettings()
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
    parser.add_argument("--widths", type=int, nargs=3, default=default.widths, help="channels at 128, 64, 32 heights")
    parser.add_argument("--memory", type=int, default=default.memory, help="channels of the memory (%(default)s)")
    parser.add_argument("--start-from", type=Path, help="weights to begin with")
    parser.add_argument("--references", type=Path, help="real courses with known heights, written by references.py")


def to_run(options: argparse.Namespace) -> TrainingRun:
    """What the options say."""
    first, second, third = options.widths
    settings = TrainingSettings(
        days=options.days,
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        validation_days=options.validation_days,
        calibration_days=options.calibration_days,
        seed=options.seed,
        widths=(first, second, third),
        memory=options.memory,
    )
    climate = TRAINING if options.climate == "training" else climate_from_json(Path(options.climate).read_text())
    out = options.out.absolute()
    courses = options.courses or out / "courses"
    return TrainingRun(settings, climate, out, courses.absolute(), options.start_from, options.references)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    run = to_run(parser.parse_args())
    with process_group():
        run()


if __name__ == "__main__":
    main()
