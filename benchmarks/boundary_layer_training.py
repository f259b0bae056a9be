"""What training with several processes gains in time, and what it costs in score.

    python -m benchmarks.boundary_layer_training [--json] [--days 96] [--epochs 6] [--batch 8]

The same training, with the same seed on the same courses, once with one process and once with two; each process has one
thread. Courses are simulated before the clock starts. `seconds_1` and `seconds_2` are until the score that the
worse of both ends with is reached for the first time, the beginning of processes left out; `total_seconds_*` until the
last epoch is over. `rmse_*_m` is the last epoch's, on courses that were not trained on; `score_drop_m` is what two
processes lose, above 0 where they are worse. What noise is, `rmse_other_seed_m` tells: one process with other first
weights, only with `--other-seed 1`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import parse_options, print_report
from fieldpost.errors import BrokenStateError

VALIDATION_DAYS, CALIBRATION_DAYS = 24, 2


def main() -> None:
    """Runs the command line."""
    options = parse_options(__doc__, days=96, epochs=6, batch=8, seed=1, other_seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = ["--days", str(options.days), "--batch", str(options.batch), "--courses", str(folder / "courses")]
        size += ["--validation-days", str(VALIDATION_DAYS), "--calibration-days", str(CALIBRATION_DAYS)]
        _train(folder / "simulating", [*size, "--epochs", "1", "--widths", "4", "4", "4", "--memory", "4"], 1)
        size += ["--epochs", str(options.epochs)]
        runs = {count: _train(folder / str(count), [*size, "--seed", str(options.seed)], count) for count in (1, 2)}
        result = compare(runs[1], runs[2])
        if options.other_seed:
            other = _train(folder / "other", [*size, "--seed", str(options.seed + options.other_seed)], 1)
            result["rmse_other_seed_m"] = other[-1]["rmse_m"]
    size_facts = {"days": options.days, "epochs": options.epochs, "batch": options.batch, "cores": os.cpu_count()}
    print_report({"benchmark": "boundary_layer_training", **size_facts, **result}, as_json=options.json)


def compare(one: Sequence[Mapping[str, float]], two: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Both trainings, from their histories, epoch by epoch."""
    fixed_m = max(one[-1]["rmse_m"], two[-1]["rmse_m"])
    return {
        "fixed_rmse_m": fixed_m,
        "seconds_1": seconds_to(one, fixed_m),
        "seconds_2": seconds_to(two, fixed_m),
        "total_seconds_1": sum(each["epoch_s"] for each in one),
        "total_seconds_2": sum(each["epoch_s"] for each in two),
        "rmse_1_m": one[-1]["rmse_m"],
        "rmse_2_m": two[-1]["rmse_m"],
        "score_drop_m": two[-1]["rmse_m"] - one[-1]["rmse_m"],
    }


def seconds_to(history: Sequence[Mapping[str, float]], rmse_m: float) -> float:
    """Until the end of the first epoch with a score at least as good; the whole training where there is none."""
    taken_s = 0.0
    for epoch in history:
        taken_s += epoch["epoch_s"]
        if epoch["rmse_m"] <= rmse_m:
            break
    return taken_s


def _train(out: Path, arguments: Sequence[str], processes: int) -> list[dict[str, float]]:
    """The history of a training."""
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    training = ["-m", "server.analyses.boundary_layer.train", "--out", str(out), *arguments]
    command = [sys.executable, *(together if processes > 1 else []), *training]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BrokenStateError(f"expected a training with {processes} processes to succeed, but got: {done.stderr}")
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return list(metrics["history"])


if __name__ == "__main__":
    main()
