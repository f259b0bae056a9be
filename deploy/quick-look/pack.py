"""Scores the converted model on days that it has never seen, and writes the package. Step 3 of 3; see README.md.

    python deploy/quick-look/pack.py build/quick-look edge_agent/quick_look/boundary-layer.fpmodel

Chooses nothing by what it finds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scores import SCORED_ON, ask, measure

from edge_agent.quick_look.estimator import Estimator, decode_telegram
from edge_agent.quick_look.manifest import InputGrid, Manifest
from edge_agent.quick_look.package import Package, read_package, write_package
from edge_agent.quick_look.profile_input import to_input
from fieldpost.simulation import REGIMES, SimulatedCl51

SAMPLE_UNIX_S = tuple(1_750_032_000.0 + 1800 * index for index in range(48))
SAMPLE_BLOCK, SURE_AT_LEAST = 4, 0.95
BAD_AT_LEAST = 0.5
"""Where it is more likely than not that there is nothing to see. From where on a height is good, train.py says."""
TOLERANCE_M, TOLERANCE = 20.0, 0.08
"""Weights of 8 bits are multiplied otherwise on arm64; between 8 bits and float the same sample differs by less."""


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
        good_at_least=settings["good_at_least"],
        bad_at_least=BAD_AT_LEAST,
        height_tolerance_m=TOLERANCE_M,
        quality_tolerance=TOLERANCE,
        made_with={"fieldpost": version("fieldpost"), **settings["converter"]},
        metrics={},
    )
    model = (options.folder / "model.tflite").read_bytes()
    # without samples there is no package, and without a model no samples
    estimator = Estimator(Package(hashlib.sha256(model).hexdigest(), manifest, model, {}))
    rows = measure({"quick_look": partial(ask, estimator)})["quick_look"]
    metrics = {
        "learned_from": settings["learned_from"],
        "scored_on": SCORED_ON,
        "quick_look": {name: rows.pop(name) for name in ("all", *REGIMES, "flag good")},
        "by_instrument_and_sky": rows,
    }
    manifest = replace(manifest, metrics=metrics)
    content = write_package(manifest, model, make_samples(estimator))
    read_package(content)
    options.package.write_bytes(content)
    sys.stdout.write(json.dumps(manifest.metrics, indent=2) + f"\n{options.package}: {len(content)} bytes\n")


def make_samples(estimator: Estimator) -> dict[str, bytes]:
    """The sample that every station runs before it takes the model: the surest of every two hours of a day."""
    instrument = SimulatedCl51(seed=1)
    telegrams = [instrument.telegram(unix_s) for unix_s in SAMPLE_UNIX_S]
    profile = np.concatenate([to_input(decode_telegram(t), estimator.manifest.grid) for t in telegrams])
    # what the model itself is not sure of would say more about the processor's rounding than about the model
    sureness = np.array([max(estimator.run(row[None])[1]) for row in profile]).reshape(-1, SAMPLE_BLOCK)
    surest = np.arange(0, len(profile), SAMPLE_BLOCK) + sureness.argmax(axis=1)
    profile = profile[surest[sureness.max(axis=1) >= SURE_AT_LEAST]]
    answers = [estimator.run(row[None]) for row in profile]
    arrays: dict[str, NDArray[np.float32]] = {
        "profile": profile,
        "height_m": np.array([height_m for height_m, _ in answers], np.float32),
        "quality": np.array([quality for _, quality in answers], np.float32),
    }
    return {name: _npy(array) for name, array in arrays.items()}


def _npy(array: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


if __name__ == "__main__":
    main()
