"""Scores the converted model on days that it has never seen, and writes the package. Step 3 of 3; see README.md.

    python deploy/quick-look/pack.py build/quick-look edge_agent/quick_look/boundary-layer.fpmodel

Runs the model exactly as a station does: telegram in, LiteRT, estimate out; and the server's version 1 (wavelets) on
the same telegrams beside it. Chooses nothing by what it finds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenes import make_scenes

from edge_agent.quick_look.estimator import Estimator, decode_telegram
from edge_agent.quick_look.manifest import InputGrid, Manifest
from edge_agent.quick_look.package import Package, read_package, write_package
from edge_agent.quick_look.profile_input import to_input
from fieldpost.simulation import SimulatedCl51
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable, load_analysis
from server.analyses.boundary_layer import NAME
from server.analyses.boundary_layer.layers import FLAG_GOOD, FLAG_LOW, FLAG_NONE
from server.analyses.boundary_layer.score import Score, score_simulated_days

SCORED_SEEDS = range(201, 221)
SCORED_STEP_S = 300.0
SKY_SEEDS = range(400_000, 400_060)
SAMPLE_UNIX_S = tuple(1_750_032_000.0 + 7200 * index for index in range(12))
GOOD_AT_LEAST, BAD_AT_LEAST = 0.85, 0.5
SURE_AT_LEAST = 0.9
TOLERANCE_M, TOLERANCE = 20.0, 0.08
"""Weights of 8 bits are multiplied otherwise on arm64; between 8 bits and float the same sample differs by less."""
FLAGS = {"good": FLAG_GOOD, "doubtful": FLAG_LOW, "bad": FLAG_NONE}


class QuickLookAnalysis:
    """The quick look in the clothes of an analysis, so that what scores those scores it."""

    name = "quick-look"
    version = 1
    instrument_models = frozenset({"cl51"})
    max_batch = 64

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """See Analysis."""
        return [self._predict(observation) for observation in batch]

    def _predict(self, observation: AnalysisInput) -> AnalysisResult:
        estimate = self._estimator.estimate(observation.payload)
        height_m = np.nan if estimate.height_m is None else estimate.height_m
        values = {
            "atmosphere_boundary_layer_thickness": height_m,
            "atmosphere_boundary_layer_thickness_standard_error": np.nan,
            "quality_flag": FLAGS[estimate.quality],
        }
        return AnalysisResult(
            sample_unix_nanos=np.array([observation.measure_unix_nanos], np.int64),
            variables=tuple(AnalysisVariable(n, "", np.array([v], np.float32)) for n, v in values.items()),
        )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where convert.py wrote model.tflite")
    parser.add_argument("package", type=Path, help="what to write; its name without .fpmodel is the model's")
    options = parser.parse_args()
    settings = json.loads((options.folder / "config.json").read_text())
    network = settings["network"]
    manifest = Manifest(
        name=options.package.stem,
        grid=InputGrid(network["gate_count"], network["gate_m"], settings["backscatter_scale_per_m_sr"]),
        good_at_least=GOOD_AT_LEAST,
        bad_at_least=BAD_AT_LEAST,
        height_tolerance_m=TOLERANCE_M,
        quality_tolerance=TOLERANCE,
        made_with={"fieldpost": version("fieldpost"), **settings["converter"]},
        metrics={},
    )
    model = (options.folder / "model.tflite").read_bytes()
    # without samples there is no package, and without a model no samples
    estimator = Estimator(Package(hashlib.sha256(model).hexdigest(), manifest, model, {}))
    manifest = replace(manifest, metrics=measure(estimator))
    content = write_package(manifest, model, make_samples(estimator))
    read_package(content)
    options.package.write_bytes(content)
    sys.stdout.write(json.dumps(manifest.metrics, indent=2) + f"\n{options.package}: {len(content)} bytes\n")


def measure(estimator: Estimator) -> dict[str, Any]:
    """What the manifest says of the model: by regime on simulated days, and on skies with nothing to see."""
    scores = score_simulated_days(QuickLookAnalysis(estimator), SCORED_SEEDS, SCORED_STEP_S)
    wavelet = score_simulated_days(load_analysis(NAME, 1), SCORED_SEEDS, SCORED_STEP_S)
    good_share = scores["flag good"].sample_count / scores["all"].sample_count
    return {
        "scored_on": f"simulated CL51, seeds {SCORED_SEEDS[0]} to {SCORED_SEEDS[-1]}, every {SCORED_STEP_S:.0f} s",
        "share_called_good": round(good_share, 3),
        "quick_look": {name: _facts(score) for name, score in scores.items()},
        "wavelet_version_1": {name: _facts(score) for name, score in wavelet.items()},
        "other_skies_and_instruments": measure_skies(estimator),
    }


def measure_skies(estimator: Estimator) -> dict[str, Any]:
    """Whether bad skies are called so: on the training's kind of profiles, of seeds that were not trained on."""
    scenes = make_scenes(SKY_SEEDS, 50, estimator.manifest.grid)
    answers = [estimator.run(profile[None]) for profile in scenes.profile]
    quality = np.array([estimator.manifest.quality(probabilities) for _, probabilities in answers])
    error_m = np.abs(np.array([height_m for height_m, _ in answers]) - scenes.height_m)
    is_bad = np.isnan(scenes.height_m)
    is_good = quality == "good"
    return {
        "seeds": f"{SKY_SEEDS[0]} to {SKY_SEEDS[-1]}",
        "profiles": len(quality),
        "bad_skies_called_bad": _share(quality[is_bad] == "bad"),
        "bad_skies_called_good": _share(is_good[is_bad]),
        "other_skies_called_bad": _share(quality[~is_bad] == "bad"),
        "other_skies_called_good": _share(is_good[~is_bad]),
        "mean_absolute_error_m": round(float(error_m[~is_bad].mean()), 1),
        "mean_absolute_error_m_called_good": round(float(error_m[~is_bad & is_good].mean()), 1),
    }


def make_samples(estimator: Estimator) -> dict[str, bytes]:
    """The sample that every station runs before it takes the model: a simulated day, by the hour."""
    instrument = SimulatedCl51(seed=1)
    telegrams = [instrument.telegram(unix_s) for unix_s in SAMPLE_UNIX_S]
    profile = np.concatenate([to_input(decode_telegram(t), estimator.manifest.grid) for t in telegrams])
    # what the model itself is not sure of would say more about the processor's rounding than about the model
    profile = profile[[max(estimator.run(row[None])[1]) >= SURE_AT_LEAST for row in profile]]
    answers = [estimator.run(row[None]) for row in profile]
    arrays: dict[str, NDArray[np.float32]] = {
        "profile": profile,
        "height_m": np.array([height_m for height_m, _ in answers], np.float32),
        "quality": np.array([quality for _, quality in answers], np.float32),
    }
    return {name: _npy(array) for name, array in arrays.items()}


def _facts(score: Score) -> dict[str, float]:
    return {
        "samples": score.sample_count,
        "with_height": round(score.available, 3),
        "mean_absolute_error_m": round(score.mean_absolute_error_m, 1),
        "bias_m": round(score.bias_m, 1),
        "within_100_m": round(score.within_100_m, 3),
        "beyond_300_m": round(score.wrong_layer, 3),
    }


def _share(flags: NDArray[np.bool_]) -> float:
    return round(float(flags.mean()), 3)


def _npy(array: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


if __name__ == "__main__":
    main()
