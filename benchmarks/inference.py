"""Predictions at once: our server next to the bare model and to the servers that others use, in one run.

    python -m benchmarks.inference [--json] [--device cpu|cuda] [--rounds N] [--seconds S] [--peers NAME ...]

Everybody serves the same ONNX model (inference_model: convolution, convolution, LSTM, linear over 1024 numbers) with
onnxruntime, one worker and one thread. Loads, each closed-loop: 64 callers and 1 ("lone") with single requests, and
4 with bundles of 64. Peers and our plain gRPC calls ("unary_rpc") are asked over raw sockets; what that costs the load
generator is client_cpu_ms. "unary" is our SDK in a user's Python program; "python" under each peer is such a program
with aiohttp: compare these two, and unary_rpc with the peers' own figures. requests_per_s and cpu_ms count single
items, in bundles too; latencies are those of whole requests. cpu_ms is user and system time of all processes of the
server, start-up left out. Each round starts every server anew, one at a time; figures are medians over rounds, and a
peer's are those of its better settings.

grpc_echo is a grpc.aio server that only gives back what it gets, asked like unary_rpc: what of that is gRPC's own.
ratio_to_bare_loop is that of a built-in model through batcher and worker (inference_saturation); that of the ONNX model
through the whole server is ours.bundle.ratio_to_bare_loop. learned_profiles_per_s is what the learned heights do of one
profile of each of many instruments at a time, learned_backlog_profiles_per_s of long stretches (inference_learned).
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.inference_echo import measure_echo
from benchmarks.inference_learned import measure_learned
from benchmarks.inference_load import WrongAnswerError
from benchmarks.inference_model import build_model, make_profiles, measure_bare_loop, open_session, predict
from benchmarks.inference_ours import measure_ours
from benchmarks.inference_peers import PEERS, find_python, measure_peer
from benchmarks.inference_saturation import measure_saturation
from benchmarks.inference_servers import Figures
from benchmarks.report import median, print_report
from fieldpost.errors import FieldpostError

PROFILES = 64
SATURATION_PROFILES = 8192
BARE_BATCHES = {"cpu": 32, "cuda": 256}
OURS = "ours"
ECHO = "grpc_echo"
FAILURES = (FieldpostError, WrongAnswerError, OSError, subprocess.SubprocessError)
"""What a server may fail with without failing the benchmark."""

Loads = dict[str, Figures]
"""By load."""


class Measured:
    """What the rounds gave, by name, by settings and by load."""

    def __init__(self) -> None:
        self._rounds: dict[str, dict[str, list[Loads]]] = defaultdict(lambda: defaultdict(list))
        self.left_out: dict[str, str] = {}

    def add(self, name: str, settings: str, measure: Callable[[], Loads]) -> None:
        """Measures once more; a server that cannot be measured is left out, with its reason, and not tried again."""
        label = f"{name}, {settings}" if settings else name
        if label in self.left_out:
            return
        try:
            self._rounds[name][settings].append(measure())
        except FAILURES as error:
            self.left_out[label] = str(error)[:500]

    def loads(self, name: str) -> Loads | None:
        """The medians of the settings that answered most, for each load by itself; None where none was measured."""
        tried = {settings: medians(rounds) for settings, rounds in self._rounds[name].items() if rounds}
        if not tried:
            return None
        every = next(iter(tried.values()))
        best = {load: max(tried, key=lambda each: tried[each][load]["requests_per_s"]) for load in every}
        return {load: tried[won][load] | ({"settings": won} if won else {}) for load, won in best.items()}


def medians(rounds: Iterable[Loads]) -> Loads:
    """Of each figure of each load, over rounds."""
    rounds = list(rounds)
    return {
        load: {figure: median([each[load][figure] for each in rounds]) for figure in rounds[0][load]}
        for load in rounds[0]
    }


def measure_servers(rounds: int, duration_s: float, names: set[str], device: str) -> Measured:
    """Everybody in turns."""
    model, profiles = build_model(), make_profiles(PROFILES)
    expected = predict(open_session(model), profiles)
    measured = Measured()

    def in_folder(measure: Callable[[Path], Loads]) -> Callable[[], Loads]:
        def run() -> Loads:
            base = Path("benchmark-output")
            base.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=base) as folder:
                path = Path(folder).absolute()
                (path / "model.onnx").write_bytes(model)
                return measure(path)

        return run

    def bare() -> Loads:
        return {str(batch): measure_bare_loop(batch, duration_s, device) for batch in (1, BARE_BATCHES[device])}

    def ours(folder: Path) -> Loads:
        return measure_ours(folder, model, profiles, expected, duration_s, device)

    def echo(folder: Path) -> Loads:
        return measure_echo(folder, [profile.tobytes() for profile in profiles], duration_s)

    for _ in range(rounds):
        measured.add("bare", "", bare)
        measured.add(OURS, "", in_folder(ours))
        measured.add(ECHO, "", in_folder(echo))
        for peer in PEERS:
            if peer.name in names:
                measured.add(
                    peer.name,
                    peer.settings,
                    in_folder(
                        lambda folder, peer=peer: measure_peer(  # type: ignore[misc]
                            peer, find_python(), folder, profiles, expected, duration_s
                        )
                    ),
                )
    return measured


def report(measured: Measured, device: str) -> dict[str, Any]:
    """As it is printed."""
    bare = measured.loads("bare") or {}
    loop = bare.get(str(BARE_BATCHES[device]))
    ours = measured.loads(OURS)
    echo = measured.loads(ECHO)
    peers = {}
    for name in dict.fromkeys(peer.name for peer in PEERS):
        loads = measured.loads(name)
        peers[name] = None if loads is None else {**loads.pop("unary"), **loads}
    result: dict[str, Any] = {
        "bare_loop": None if loop is None else {**loop, "batch": BARE_BATCHES[device], "single": bare["1"]},
        "ours": None,
        ECHO: None if echo is None else {**echo["unary"], "lone": echo["lone"]},
        "peers": peers,
        "left_out": measured.left_out,
    }
    if ours is not None:
        ratio = ours["bundle"]["requests_per_s"] / loop["requests_per_s"] if loop else None
        result["ours"] = {
            "unary": {**ours["unary"], "lone": ours["lone"]},
            "unary_rpc": {**ours["unary_rpc"], "lone": ours["lone_rpc"]},
            "bundle": {**ours["bundle"], "ratio_to_bare_loop": ratio},
        }
        result["ours_to_best_peer"] = compare(ours, [each for each in peers.values() if each is not None])
    return result


def compare(ours: Loads, peers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Ratios to the best peer, like to like: above 1 we answer more, below 1 we need less."""
    if not peers:
        return None

    def most(figures: list[Figures]) -> float:
        return max(float(each["requests_per_s"]) for each in figures)

    def least_cpu(figures: list[Figures]) -> float:
        return min(float(each["cpu_ms"]) for each in figures)

    pairs = {
        "unary_to_python": ("unary", [each["python"] for each in peers]),
        "unary_rpc": ("unary_rpc", peers),
        "lone_rpc": ("lone_rpc", [each["lone"] for each in peers]),
        "bundle": ("bundle", [each["bundle"] for each in peers]),
        "bundle_to_unary": ("bundle", peers),
    }
    return {
        name: {
            "requests": ours[load]["requests_per_s"] / most(theirs),
            "cpu": ours[load]["cpu_ms"] / least_cpu(theirs),
        }
        for name, (load, theirs) in pairs.items()
    }


def main() -> None:
    """Runs the command line."""
    names = list(dict.fromkeys(peer.name for peer in PEERS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: ours and the bare loop there too"
    )
    parser.add_argument("--rounds", type=int, default=2, help="default 2; of all peers about two minutes each")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load; default 1")
    parser.add_argument("--peers", nargs="*", choices=names, default=names, help="default all")
    options = parser.parse_args()
    saturation = asyncio.run(measure_saturation(SATURATION_PROFILES, options.rounds, "cpu"))
    result = {
        "ratio_to_bare_loop": saturation["ratio_to_bare_loop"],
        **asyncio.run(measure_learned(options.rounds, "cpu")),
        **report(measure_servers(options.rounds, options.seconds, set(options.peers), "cpu"), "cpu"),
        "saturation": saturation,
    }
    if options.device == "cuda":
        on_gpu = report(measure_servers(options.rounds, options.seconds, set(), "cuda"), "cuda")
        on_gpu["saturation"] = asyncio.run(measure_saturation(SATURATION_PROFILES, options.rounds, "cuda"))
        result["cuda"] = {key: on_gpu[key] for key in ("bare_loop", "ours", "left_out", "saturation")}
        result["cuda"] |= asyncio.run(measure_learned(options.rounds, "cuda"))
    print_report(result, as_json=options.json)


if __name__ == "__main__":
    main()
