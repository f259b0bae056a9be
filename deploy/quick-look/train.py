"""Trains the quick look's network on simulated profiles, and writes its weights. Step 1 of 3; see README.md.

    python deploy/quick-look/train.py build/quick-look [--epochs 14]

First the place of the layer's top is learnt. Then, on days that the first step has not seen, how far that place can be
trusted: a network that judged itself on what it has learnt by heart would think too well of itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from network import NetworkConfig, QuickLookNetwork
from scenes import Scenes, make_scenes
from torch.nn import functional as F

from edge_agent.quick_look.profile_input import InputGrid

BACKSCATTER_SCALE = 1e-7
# Seeds of simulated days. 1 to 999 are left to whoever scores: none of them is trained on.
TRAIN_SEEDS = range(100_000, 101_400)
JUDGE_SEEDS = range(200_000, 200_350)
CHECK_SEEDS = range(300_000, 300_120)
TIMES_A_SEED = 100
BATCH = 256
LEARNING_RATE = 2e-3
TARGET_WIDTH_M, TARGET_WIDTH_SHARE = 20.0, 0.02
GOOD_ERROR_M, GOOD_ERROR_SHARE = 80.0, 0.1
"""A height this near the truth (whichever allows more) is called good."""
GOOD, DOUBTFUL, BAD = 0, 1, 2


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where weights.pt and config.json go")
    parser.add_argument("--epochs", type=int, default=14)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    config = NetworkConfig()
    grid = InputGrid(config.gate_count, config.gate_m, BACKSCATTER_SCALE)
    train, judge, check = (make_scenes(seeds, TIMES_A_SEED, grid) for seeds in (TRAIN_SEEDS, JUDGE_SEEDS, CHECK_SEEDS))
    network = QuickLookNetwork(config)
    say(f"{sum(p.numel() for p in network.parameters())} weights, {len(train.height_m)} profiles")
    learn_heights(network, train, check, options.epochs)
    learn_quality(network, judge)
    network.eval()
    report(network, check)
    torch.save(network.state_dict(), options.folder / "weights.pt")
    settings = {"network": asdict(config), "backscatter_scale_per_m_sr": BACKSCATTER_SCALE, "torch": torch.__version__}
    (options.folder / "config.json").write_text(json.dumps(settings, indent=2))


def learn_heights(network: QuickLookNetwork, train: Scenes, check: Scenes, epochs: int) -> None:
    """Step one: cross-entropy against a narrow bell about the true height. Bad skies have no height to learn."""
    profile, height_m = (torch.from_numpy(values) for values in (train.profile, train.height_m))
    known = torch.isfinite(height_m).nonzero()[:, 0]
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    steps = epochs * (len(known) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for epoch in range(epochs):
        start_s, losses = time.monotonic(), []
        order = known[torch.randperm(len(known))]
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            logits, _ = network.look(profile[batch])
            loss = F.cross_entropy(logits, bell(network.config, height_m[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        error_m = heights_of(network, check) - check.height_m
        mean_error_m = np.nanmean(np.abs(error_m))
        say(
            f"epoch {epoch}: loss {np.mean(losses):.3f}, check {mean_error_m:.0f} m, {time.monotonic() - start_s:.0f} s"
        )


def learn_quality(network: QuickLookNetwork, judge: Scenes) -> None:
    """Step two: the last layers alone learn whether step one was right."""
    with torch.inference_mode():
        looked = [network.look(part) for part in torch.from_numpy(judge.profile).split(1024)]
        logits, summary = (torch.cat(parts).clone() for parts in zip(*looked, strict=True))
        found_m = network.height_m(logits).clone()
    logits, summary, found_m = (values.detach().clone() for values in (logits, summary, found_m))
    labels = torch.from_numpy(quality_labels(found_m[:, 0].numpy(), judge.height_m))
    layers = [*network.quality_1.parameters(), *network.quality_2.parameters()]
    optimiser = torch.optim.AdamW(layers, lr=3e-3, weight_decay=1e-3)
    for _ in range(12):
        for batch in torch.randperm(len(labels)).split(BATCH):
            answer = network.judge(logits[batch], found_m[batch], summary[batch])
            loss = F.cross_entropy(answer, labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def quality_labels(found_m: np.ndarray, true_m: np.ndarray) -> np.ndarray:
    """Good, doubtful or bad for each height found: (profiles,), int64."""
    is_near = np.abs(found_m - true_m) <= np.maximum(GOOD_ERROR_M, GOOD_ERROR_SHARE * true_m)
    return np.select([np.isnan(true_m), is_near], [BAD, GOOD], DOUBTFUL).astype(np.int64)


def bell(config: NetworkConfig, height_m: torch.Tensor) -> torch.Tensor:
    """Targets (profiles, gates): a bell about each height that sums to 1."""
    centres_m = (torch.arange(config.gate_count) + 0.5) * config.gate_m
    width_m = (TARGET_WIDTH_SHARE * height_m).clamp(min=TARGET_WIDTH_M)[:, None]
    return F.softmax(-0.5 * ((centres_m - height_m[:, None]) / width_m) ** 2, dim=1)


def heights_of(network: QuickLookNetwork, scenes: Scenes) -> np.ndarray:
    """The heights that the network finds, (profiles,)."""
    with torch.inference_mode():
        parts = torch.from_numpy(scenes.profile).split(1024)
        return torch.cat([network.height_m(network.look(part)[0])[:, 0] for part in parts]).numpy()


def report(network: QuickLookNetwork, check: Scenes) -> None:
    """Says how the whole network does on days that it has not seen."""
    with torch.inference_mode():
        answers = [network(part) for part in torch.from_numpy(check.profile).split(1024)]
    found_m = torch.cat([answer["height_m"][:, 0] for answer in answers]).numpy()
    verdict = torch.cat([answer["quality"] for answer in answers]).argmax(dim=1).numpy()
    labels = quality_labels(found_m, check.height_m)
    table = np.array([[np.sum((labels == a) & (verdict == b)) for b in range(3)] for a in range(3)])
    say(f"rows: is good, doubtful, bad; columns: called so\n{table}")


def say(text: str) -> None:
    """One line for whoever waits."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
