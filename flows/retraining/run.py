"""One retrain from its data to its verdict, step by step; each leaves a file, so that an ended run is taken up.

Ordinary functions; time is an argument; knows no analysis by name and no Prefect.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from fieldpost.errors import BrokenStateError
from flows.bags.provenance import SOFTWARE_VERSION
from flows.retraining.days import find_real_days, read_real_day
from flows.retraining.decision import Decision, decide
from flows.retraining.folder import make_file, make_json, read_json
from flows.retraining.parameters import RetrainParams
from flows.retraining.references import Reference, ReferenceDays
from flows.retraining.training import run_training
from server.analyses.retraining import DayScore, DayStatistics, Progress, Retraining, Version
from server.archive.shelf import Shelf
from server.models.files import ModelFiles
from server.storage.store import Store
from server.workers.jobs import ModelKey

OBSERVATIONS_A_DAY = 288
"""Of a real day, one in five minutes is described."""
USUAL_DAYS = 8
"""Simulated days of each instrument model that say what the training looked like, for those who watch for drift."""
WEIGHTS, METRICS, FIGURE = "weights.safetensors", "metrics.json", "figure.png"


@dataclass(frozen=True, slots=True)
class RetrainRun:
    """A retrain.

    Attributes:
        store: Where observations and versions are.
        files: Where weights are kept.
        shelf: Where the bags lie.
        folder: Of this run.
        hooks: The analysis' side.
        params: What was asked for.
        parent: The version that is active.
        parent_version: The same, as it is loaded.
        references: Heights that somebody knows; empty for none.
        seed: Decides which days are drawn.
        first_day: The first of the network's days that are looked at.
        last_day: The last one.
    """

    store: Store
    files: ModelFiles
    shelf: Shelf
    folder: Path
    hooks: Retraining
    params: RetrainParams
    parent: ModelKey
    parent_version: Version
    references: Sequence[Reference]
    seed: int
    first_day: date
    last_day: date

    @property
    def climate(self) -> Path:
        """The kind of days that it is trained on."""
        return self.folder / "climate.json"

    @property
    def training(self) -> Path:
        """The training's own folder."""
        return self.folder / "training"

    @property
    def weights(self) -> Path:
        """What was trained."""
        return self.training / WEIGHTS

    @property
    def candidate(self) -> Version:
        """The trained version, as it is loaded before it has a number."""
        return Version(0, self.weights.read_bytes())

    @property
    def instrument_models(self) -> list[str]:
        """Those of the network's days."""
        return sorted({each.instrument_model for each in self.describe_days()})

    def describe_days(self) -> list[DayStatistics]:
        """The network's days in numbers."""
        found = make_json(self.folder / "days.json", lambda: [asdict(each) for each in self._look_at_days()])
        return [DayStatistics(**each) for each in found]

    def _look_at_days(self) -> list[DayStatistics]:
        days = []
        for day in find_real_days(self.store, self.first_day, self.last_day):
            real = read_real_day(self.store, self.shelf, day, OBSERVATIONS_A_DAY)
            if real is not None:
                values = self.hooks.describe_inputs(real.observations, real.measure_unix_nanos)
                facts = (day.station, day.instrument, day.instrument_model, day.latitude_deg, day.longitude_deg)
                days.append(DayStatistics(*facts, day.day.isoformat(), dict(values)))
        return days

    def prepare(self) -> None:
        """Writes all that the training reads."""
        days = self.describe_days()
        make_file(self.climate, lambda part: self.hooks.write_climate(part, days))
        known = [each for each in self.references if not each.is_held_out]
        wanted = ReferenceDays(self.store, self.shelf, known)
        make_json(
            self.folder / "references.json",
            lambda: bool(known) and self.hooks.write_references(self.folder / "references.npz", wanted),
        )
        weights = self.hooks.find_weights(self.parent_version) if self.params.start_from == "active version" else b""
        if weights:
            make_file(self.folder / "parent.safetensors", lambda part: _write(part, weights))

    def train(self, on_line: Callable[[str], None]) -> None:
        """Trains, or goes on with it.

        Raises:
            BrokenStateError: The training failed.
        """
        if self._is_trained():
            return
        parent, has_references = self.folder / "parent.safetensors", read_json(self.folder / "references.json")
        arguments = self.hooks.train_arguments(
            self.training,
            self.climate,
            day_count=self.params.training_days,
            epoch_count=self.params.epochs,
            seed=self.seed,
            start_from=parent if parent.exists() else None,
            references=self.folder / "references.npz" if has_references else None,
            options=self.params.train_options,
        )
        run_training(arguments, processes=self.params.processes, threads=self.params.threads, on_line=on_line)
        if not self._is_trained():
            raise BrokenStateError(f"expected the training to write {WEIGHTS} and {METRICS} to {self.training}")

    def _is_trained(self) -> bool:
        return self.weights.exists() and (self.training / METRICS).exists()

    def evaluate(self, progress: Progress) -> list[DayScore]:
        """Both versions on held-out days."""

        def score() -> list[DayScore]:
            held_out = ReferenceDays(self.store, self.shelf, [each for each in self.references if each.is_held_out])
            return self.hooks.evaluate(
                self.parent_version,
                self.candidate,
                self.climate,
                self.instrument_models,
                held_out,
                day_count=self.params.held_out_days,
                seed=self.seed,
                progress=progress,
            )

        return [DayScore(*each) for each in make_json(self.folder / "scores.json", score)]

    def decide(self, scores: Sequence[DayScore]) -> Decision:
        """Whether the trained version is better beyond noise."""
        return decide(scores, self.hooks.MEASURES, self.seed)

    def describe_training(self) -> dict[str, Any]:
        """What is usual on the days that the version was trained for, and in its answers to them."""

        def describe() -> object:
            return self.hooks.describe_training(
                self.climate, self.instrument_models, self.candidate, day_count=USUAL_DAYS, seed=self.seed
            )

        return dict(make_json(self.folder / "usual.json", describe))

    def provenance(self, decision: Decision) -> dict[str, object]:
        """All that is to be known of the version, to be kept beside its weights."""
        days, held_out = self.describe_days(), [each for each in self.references if each.is_held_out]
        metrics = read_json(self.training / METRICS)
        return {
            "software": {"name": "fieldpost", "version": SOFTWARE_VERSION},
            "parent": str(self.parent),
            "parent_sha256": hashlib.sha256(self.parent_version.content).hexdigest()
            if self.parent_version.content
            else "",
            "parameters": self.params.model_dump(mode="json"),
            "seed": self.seed,
            "data": {
                "real_days": len(days),
                "first_day": self.first_day.isoformat(),
                "last_day": self.last_day.isoformat(),
                "days_sha256": _sha256(self.folder / "days.json"),
                "climate": read_json(self.climate),
                "references_trained_on": len(self.references) - len(held_out),
                "references_held_out": len(held_out),
            },
            "training": metrics,
            "usual": self.describe_training(),
            "decision": {
                "is_promoted": decision.is_promoted,
                "reasons": decision.reasons,
                "comparisons": [asdict(each) for each in decision.comparisons],
            },
        }

    def export_onnx(self) -> Path:
        """The network as ONNX."""
        return make_file(self.folder / "model.onnx", lambda part: self.hooks.export_onnx(self.weights, part))

    def draw(self) -> list[tuple[str, bytes]]:
        """Title and PNG of each picture."""

        def draw_comparison(part: Path) -> None:
            self.hooks.draw_comparison(part, self.parent_version, self.candidate, self.climate, seed=self.seed)

        comparison = make_file(self.folder / "comparison.png", draw_comparison)
        pictures = {"the training": self.training / FIGURE, "a held-out day": comparison}
        return [(title, path.read_bytes()) for title, path in pictures.items() if path.exists()]

    def clean(self) -> None:
        """Removes what only a training that goes on needs."""
        shutil.rmtree(self.training / "courses", ignore_errors=True)
        (self.training / "checkpoint.pt").unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
