"""How good the heights are: the learned version against every classical one, on days that none has seen.

    python -m benchmarks.boundary_layer [--json] [--days 96] [--quick] [--versions 1 2 3 4 5] [--processes 2]

The days are courses of the climate HELD_OUT, whose ranges reach beyond those of the climates that anything was chosen
or trained on, with seeds from 900 000 on, which nothing else uses. Four instrument models take turns; one profile a
minute from solar noon to solar noon; each version is asked as a worker asks it. All are scored on the same instants,
and once more, under `common`, on those at which all of them gave a height, since silence in hard cases flatters. What
the numbers mean stands in server/analyses/boundary_layer/scoring/metrics.py. `shortest_path_whole_day` knows the future
and is a reference, not a competitor. `profiles_per_s` is for one processor core, decoded profiles in, heights out; it
alone is not the same in every run.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.boundary_layer_methods import NAMES, Found, Method, methods_of
from fieldpost.simulation import HELD_OUT
from server.analyses.boundary_layer import LEARNED, VERSIONS
from server.analyses.boundary_layer.score import format_table, rows_of, show_progress
from server.analyses.boundary_layer.scoring.metrics import in_common, join, score_parts
from server.analyses.boundary_layer.scoring.simulated_courses import simulate_course

FIRST_SEED = 900_000
DAYS, QUICK_DAYS = 96, 4
PROCESSES_MAX = 2


def run_day(seed: int, versions: tuple[int, ...]) -> dict[str, Found]:
    """What every method says of one course."""
    course = simulate_course(seed, HELD_OUT)
    found: dict[str, Found] = {}
    for method in _methods(versions):
        found |= method(course)
    return found


def score_methods(days: list[dict[str, Found]]) -> dict[str, Any]:
    """The scores of every method over the days, ready for JSON."""
    compared = {name: join([day[name].compared for day in days]) for name in days[0]}
    common = in_common(compared)
    scores: dict[str, dict[str, Any]] = {}
    for name, heights in compared.items():
        cpu_s = sum(day[name].cpu_s for day in days)
        scores[name] = {
            **score_parts(heights),
            "common": score_parts(common[name]),
            "profiles_per_s": len(heights.unix_s) / cpu_s if cpu_s > 0 else None,
        }
    return {
        "benchmark": "boundary_layer",
        "climate": "held-out",
        "first_seed": FIRST_SEED,
        "days": len(days),
        "learned": scores.pop(NAMES[LEARNED], None),
        "baselines": scores,
    }


def main() -> None:
    """Runs the command line."""
    options = _parse()
    days: list[dict[str, Found]] = []
    seeds = range(FIRST_SEED, FIRST_SEED + options.days)
    for day in _run_days(seeds, tuple(options.versions), options.processes):
        days.append(day)
        show_progress(len(days), len(seeds), "days")
    result = score_methods(days)
    if options.json:
        print(json.dumps(result))
        return
    print_report(result)


def print_report(result: Mapping[str, Any]) -> None:
    """Tables for people: all methods side by side, on all instants and on common ones, then each by its parts."""
    scores = {**result["baselines"], **({"learned": result["learned"]} if result["learned"] else {})}
    print(f"{result['days']} days of the climate {result['climate']}, seeds from {result['first_seed']}")
    print(f"all instants\n{format_table(scores)}")
    print(f"instants at which all have a height\n{format_table({n: s['common'] for n, s in scores.items()})}")
    for name, parts in scores.items():
        rate, lag = parts["profiles_per_s"], parts["lag_min"]
        print(f"\n{name}: {rate:,.0f} profiles/s of one core, lags by {lag} min in growth")
        print(format_table(rows_of(parts)))


def _run_days(seeds: range, versions: tuple[int, ...], processes: int) -> Iterator[dict[str, Found]]:
    """In the order of the seeds, whoever is done first."""
    if processes == 1:
        torch.set_num_threads(1)
        yield from (run_day(seed, versions) for seed in seeds)
        return
    # a forked process would inherit torch's threads, and hang
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(run_day, seeds, [versions] * len(seeds))


@cache
def _methods(versions: tuple[int, ...]) -> list[Method]:
    """Loaded once in each process."""
    return methods_of(versions)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--days", type=_positive, default=None, help=f"default {DAYS}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DAYS} days: to see that it runs, not how good")
    parser.add_argument("--versions", type=int, nargs="+", choices=tuple(NAMES), default=list(VERSIONS))
    parser.add_argument("--processes", type=_positive, default=min(PROCESSES_MAX, os.cpu_count() or 1))
    options = parser.parse_args()
    options.days = options.days or (QUICK_DAYS if options.quick else DAYS)
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, but got {text}")
    return value


if __name__ == "__main__":
    main()
