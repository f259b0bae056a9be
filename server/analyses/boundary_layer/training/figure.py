"""Draws how a training went. Knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_training(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Draws loss and validation error over the epochs, as a PNG file."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    left = figure.add_subplot()
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [each["loss"] for each in history], color="tab:grey", label="loss (training)")
    left.set_xlabel("epoch")
    left.set_ylabel("loss")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(epochs, [each["rmse_m"] for each in history], color="tab:blue", label="RMSE (validation)")
    right.plot(epochs, [each["mae_m"] for each in history], color="tab:orange", label="MAE (validation)")
    right.set_ylabel("error of the mixing height, m")
    right.set_ylim(bottom=0)
    figure.legend(loc="upper right", bbox_to_anchor=(0.9, 0.95))
    figure.savefig(path, dpi=120)
