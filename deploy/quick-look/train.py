"""Trains the quick look's network on simulated profiles, and writes its weights. Step 1 of 3; see README.md.

    python deploy/quick-look/train.py build/quick-look [--days 3500] [--epochs 12]

First it is learnt where the layer's top is, and whether there is one at all. Then, on sites and instruments a little
beyond those of the first step, how far that can be trusted: a network that judged itself on what it has learnt by heart
would think too well of itself. Last, on others of those, how sure it has to be before it says *good*.
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
from scenes import LEARNED_FROM, Scenes, make_scenes
from torch.nn import functional as F

from edge_agent.quick_look.profile_input import InputGrid
from fieldpost.simulation import CALIBRATION

BACKSCATTER_SCALE = 1e-7
TRAIN_SEED, JUDGE_SEED, CHECK_SEED = 100_000, 200_000, 300_000
"""The first seeds of days to learn from, to learn trust from, and to set the threshold on."""
JUDGE_SHARE, CHECK_SHARE = 2 / 7, 1 / 7
"""So many of them, for each day to learn from."""
TIMES_A_SEED = 40
BATCH = 256
LEARNING_RATE = 2e-3
BAD_WEIGHT = 0.5
"""Of whether there is a height to find, beside where it is."""
TARGET_WIDTH_M, TARGET_WIDTH_SHARE = 20.0, 0.02
GOOD_ERROR_M, GOOD_ERROR_SHARE = 80.0, 0.1
"""A height this near the truth (whichever allows more) is called good."""
GOOD_ARE_NEAR = 0.9
"""Of the heights that are called good so many are to be near the truth."""
GOOD, DOUBTFUL, BAD = 0, 1, 2


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where weights.pt and config.json go")
    parser.add_argument("--days", type=int, default=3500, help="simulated days to learn from, each of another site")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    config = NetworkConfig()
    grid = InputGrid(config.gate_count, config.gate_m, BACKSCATTER_SCALE)
    judge_days, check_days = round(JUDGE_SHARE * options.days), round(CHECK_SHARE * options.days)
    train = make_scenes(range(TRAIN_SEED, TRAIN_SEED + options.days), TIMES_A_SEED, LEARNED_FROM, grid)
    judge = make_scenes(range(JUDGE_SEED, JUDGE_SEED + judge_days), TIMES_A_SEED, CALIBRATION, grid)
    check = make_scenes(range(CHECK_SEED, CHECK_SEED + check_days), TIMES_A_SEED, CALIBRATION, grid)
    network = QuickLookNetwork(config)
    say(f"{sum(p.numel() for p in network.parameters())} weights, {len(train.height_m)} profiles")
    learn_to_look(network, train, check, options.epochs)
    learn_quality(network, judge)
    network.eval()
    labels, quality = judged(network, check)
    good_at_least = threshold(quality[:, GOOD], labels == GOOD)
    report(labels, quality, good_at_least)
    torch.save(network.state_dict(), options.folder / "weights.pt")
    settings = {
        "network": asdict(config),
        "backscatter_scale_per_m_sr": BACKSCATTER_SCALE,
        "good_at_least": good_at_least,
        "learned_from": {"days": options.days, "epochs": options.epochs},
        "torch": torch.__version__,
    }
    (options.folder / "config.json").write_text(json.dumps(settings, indent=2))


def learn_to_look(network: QuickLookNetwork, train: Scenes, check: Scenes, epochs: int) -> None:
    """Step one: cross-entropy against a narrow bell about the true height, and of whether there is one to be found.

    The second is learnt here too, and not only in step two, since otherwise nothing of the network but its last layers
    would ever have seen rain or fog.
    """
    profile, height_m = (torch.from_numpy(values) for values in (train.profile, train.height_m))
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    steps = epochs * (len(height_m) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for epoch in range(epochs):
        start_s, losses = time.monotonic(), []
        order = torch.randperm(len(height_m))
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            true_m = height_m[batch]
            is_known = torch.isfinite(true_m)
            logits, summary = network.look(profile[batch])
            answer = network.judge(logits, network.height_m(logits), summary)
            loss = F.cross_entropy(logits[is_known], bell(network.config, true_m[is_known]))
            loss = loss + BAD_WEIGHT * bad_loss(answer, ~is_known)
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


def bad_loss(answer: torch.Tensor, is_bad: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of bad against good and doubtful together."""
    bad = answer[:, BAD] - torch.logsumexp(answer[:, :BAD], dim=1)
    return F.binary_cross_entropy_with_logits(bad, is_bad.float())


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


def judged(network: QuickLookNetwork, scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """What each height found is, (profiles,), and the network's own probabilities of that, (profiles, 3)."""
    with torch.inference_mode():
        answers = [network(part) for part in torch.from_numpy(scenes.profile).split(1024)]
    found_m = torch.cat([answer["height_m"][:, 0] for answer in answers]).numpy()
    return quality_labels(found_m, scenes.height_m), torch.cat([answer["quality"] for answer in answers]).numpy()


def threshold(probability: np.ndarray, is_near: np.ndarray) -> float:
    """The least probability, in hundredths, from which on GOOD_ARE_NEAR of the heights are near the truth."""
    for hundredths in range(34, 100):
        called = probability >= hundredths / 100
        if called.any() and is_near[called].mean() >= GOOD_ARE_NEAR:
            return hundredths / 100
    return 0.99


def report(labels: np.ndarray, quality: np.ndarray, good_at_least: float) -> None:
    """Says how the whole network does on days that it has not seen."""
    table = np.array([[np.sum((labels == a) & (quality.argmax(axis=1) == b)) for b in range(3)] for a in range(3)])
    is_called = quality[:, GOOD] >= good_at_least
    share, right = is_called.mean(), (labels == GOOD)[is_called].mean()
    say(f"rows: is good, doubtful, bad; columns: most probably so\n{table}")
    say(f"good from {good_at_least} on: {share:.3f} of all, {right:.3f} of them rightly")


def say(text: str) -> None:
    """One line for whoever waits."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
