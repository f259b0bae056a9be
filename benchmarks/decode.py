"""How fast telegrams are decoded: ours against ceilopyter, on the same telegrams, turn by turn in the same run.

    python -m benchmarks.decode [--json]

The telegrams are simulated, so that the benchmark runs anywhere; that both parsers agree on them is asserted first, and
the tests assert it on real ones. What ceilopyter does not do and ours does: cloud bases, heights corrected for tilt.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from ceilopyter.readers.read_cl import read_cl_message
from numpy.typing import NDArray

from fieldpost.simulation import SimulatedCl51
from server.analyses import AnalysisInput
from server.analyses.boundary_layer.decoding.decode import decode

TELEGRAM_COUNT = 50
ROUND_COUNT = 40
START_UNIX_S = 1_750_000_000.0


def seconds_a_call(call: Callable[[bytes], object], telegrams: list[bytes]) -> float:
    """Mean time of one call over the telegrams."""
    start = time.perf_counter()
    for telegram in telegrams:
        call(telegram)
    return (time.perf_counter() - start) / len(telegrams)


def decode_ours(telegram: bytes) -> NDArray[np.float32]:
    """The profile, by our decoder: (1, gates)."""
    return decode(AnalysisInput(telegram, "cl51", 0)).beta


def measure() -> dict[str, float]:
    """The best of many rounds of each parser, in microseconds a telegram, and the ratio."""
    instrument = SimulatedCl51(seed=1)
    telegrams = [instrument.telegram(START_UNIX_S + 1800 * index) for index in range(TELEGRAM_COUNT)]
    for telegram in telegrams:
        np.testing.assert_allclose(decode_ours(telegram)[0], read_cl_message(telegram).beta, rtol=1e-6)
    ours, theirs = [], []
    for _ in range(ROUND_COUNT):
        ours.append(seconds_a_call(decode_ours, telegrams))
        theirs.append(seconds_a_call(read_cl_message, telegrams))
    return {
        "ours_us": min(ours) * 1e6,
        "ceilopyter_us": min(theirs) * 1e6,
        "ratio": min(theirs) / min(ours),
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    result = measure()
    if options.json:
        print(json.dumps({"benchmark": "decode", **result}))
    else:
        print(f"ours {result['ours_us']:.0f} µs a telegram, ceilopyter {result['ceilopyter_us']:.0f} µs:", end=" ")
        print(f"{result['ratio']:.1f} times as fast")


if __name__ == "__main__":
    main()
