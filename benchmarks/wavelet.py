"""How fast the wavelet transform is: cumulative sums over a batch against a loop over gates; and what batch pays.

    python -m benchmarks.wavelet [--json]

Both give the same numbers, which is asserted first. One thread, so that the ratio does not depend on the number of
cores. The last table is the whole analysis, telegram to heights, by size of batch: MAX_BATCH is chosen from it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fieldpost.simulation import SimulatedCl51
from server.analyses import AnalysisInput, load_analysis
from server.analyses.boundary_layer import NAME
from server.analyses.boundary_layer.classical.wavelet import MIN_VALID_SHARE, HaarTransform
from server.analyses.boundary_layer.decoding.decode import decode

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROFILE_COUNT = 512
GATE_COUNT = 420
LOOP_PROFILE_COUNT = 4
START_UNIX_S = 1_750_000_000.0
NOISE = 5e-14


def transform_by_loop(beta: NDArray[np.float32], half_widths: tuple[int, ...]) -> NDArray[np.float64]:
    """The mean over dilations, gate by gate, as the definition says: (profiles, gates + 1); NaN where undefined."""
    profile_count, gate_count = beta.shape
    mean = np.full((profile_count, gate_count + 1), np.nan)
    for profile in range(profile_count):
        for boundary in range(gate_count + 1):
            values = []
            for n in half_widths:
                if not n <= boundary <= gate_count - n:
                    continue
                below = beta[profile, boundary - n : boundary]
                above = beta[profile, boundary : boundary + n]
                below, above = below[np.isfinite(below)], above[np.isfinite(above)]
                if min(len(below), len(above)) >= MIN_VALID_SHARE * n:
                    values.append(0.5 * (below.mean(dtype=np.float64) - above.mean(dtype=np.float64)))
            if values:
                mean[profile, boundary] = np.mean(values)
    return mean


def best_seconds(call: Callable[[], object], at_least_s: float = 0.5) -> float:
    """The shortest of the calls that fit into some time; three at least."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least_s:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_transform(inputs: list[AnalysisInput]) -> dict[str, float]:
    """Profiles a second of both, and the ratio."""
    profiles = [decode(observation) for observation in inputs[:64]]
    height_m = profiles[0].height_m[:GATE_COUNT]
    beta = np.concatenate([part.beta[:, :GATE_COUNT] for part in profiles])
    beta[::3, 300:] = np.nan  # as a cloud masks them
    transform = HaarTransform(torch.tensor(height_m))
    batch, noise = torch.from_numpy(beta), torch.full((len(beta),), NOISE)
    few = beta[:LOOP_PROFILE_COUNT]
    with torch.inference_mode():
        ours = transform(batch, noise).mean.numpy()[:LOOP_PROFILE_COUNT]
        np.testing.assert_allclose(ours, transform_by_loop(few, transform.half_widths), rtol=2e-4, atol=1e-12)
        fast = len(beta) / best_seconds(lambda: transform(batch, noise))
    slow = len(few) / best_seconds(lambda: transform_by_loop(few, transform.half_widths))
    return {"transform_profiles_per_s": fast, "loop_profiles_per_s": slow, "ratio": fast / slow}


def measure_batches(inputs: list[AnalysisInput]) -> dict[int, float]:
    """Profiles a second of the whole analysis, by size of batch."""
    analysis = load_analysis(NAME, 1)
    rates = {}
    for size in BATCH_SIZES:
        batch = inputs[:size]
        rates[size] = size / best_seconds(lambda batch=batch: analysis.predict(batch))  # type: ignore[misc]
    return rates


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    instrument = SimulatedCl51(seed=1)
    times = [START_UNIX_S + 15 * index for index in range(PROFILE_COUNT)]
    inputs = [AnalysisInput(instrument.telegram(unix_s), "cl51", int(unix_s * 1e9)) for unix_s in times]
    result, rates = measure_transform(inputs), measure_batches(inputs)
    if options.json:
        print(json.dumps({"benchmark": "wavelet", **result, "analysis_profiles_per_s": rates}))
        return
    print(f"cumulative sums {result['transform_profiles_per_s']:.0f} profiles/s, loop", end=" ")
    print(f"{result['loop_profiles_per_s']:.1f} profiles/s: {result['ratio']:.0f} times as fast")
    print("batch  profiles/s of the whole analysis, telegram to heights")
    for size, rate in rates.items():
        print(f"{size:5d}  {rate:.0f}")


if __name__ == "__main__":
    main()
