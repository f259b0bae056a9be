"""What a backfill achieves, and what live work notices of it.

    python -m benchmarks.archive_backfill [--json] [--quick]

backfill_ratio: observations a second of a backfill by one process (wavelet, and learned_ratio for the learned version,
which remembers) over those of a bare loop in one process that reads the same payloads, decodes and predicts them in
batches of the same size, and stores nothing. Starting and loading are left out of both; rounds alternate; the ratio is
the median over pairs. Times of the CPU for an observation, user and system: own_cpu_us of the process that reads and
writes, worker_cpu_us of the one that predicts beside it, bare_cpu_us of the bare loop.

live_p99_growth: a real server predicts what comes live, one observation at a time at a steady rate; the latency is that
from sending to the prediction's arrival at a watcher. Spans of time with and without a backfill beside it alternate, on
the same machine and the same database; it is (p99 with / p99 without) - 1, over all spans of each kind together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Connection, delete, select

from benchmarks.inference_servers import ProcessTree, wait_until
from benchmarks.report import median, percentile, print_report
from demo.processes import free_port, is_listening, program
from fieldpost import Client, Outbox
from fieldpost.errors import BrokenStateError
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from flows.backfilling.parameters import BackfillParams
from flows.backfilling.plan import find_version, make_plan
from flows.backfilling.predictors import behind_all_others, open_predictors
from flows.backfilling.run import Standing, carry_out
from flows.site import Site, open_site
from server.analyses import FollowingAnalysis, Stretch, find_analyses, load_analysis
from server.analyses.boundary_layer import GRADIENT, LEARNED, NAME, SHORTEST_PATH, VARIANCE, WAVELET, course_start
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.models import catalogue
from server.models.card import ModelState, Restriction
from server.prediction.course_looks import STRETCH_MAX
from server.prediction.pending import load_item, pending_of, with_facts
from server.storage.store import Store
from server.storage.tables import follow_states, model_versions, observations, predictions
from server.workers.worker import predict_items

EVERY_NANOS = 15 * 10**9
START_NANOS = course_start(LEARNED, 1_750_000_000 * 10**9, None) or 0
TELEGRAMS = 256
INSTRUMENTS = 4
"""As in a network: the courses of several instruments are followed side by side."""
BUNDLE = 64
BESIDE = (WAVELET, GRADIENT, VARIANCE, SHORTEST_PATH)
"""What is backfilled beside live work, one after the other: enough to do for a minute."""
PAST, LIVE = "past", "live"
LIVE_PER_S = 20.0
START_TIMEOUT_S = 60.0
FIRST_DAY, LAST_DAY = date(2025, 1, 1), date(2025, 12, 31)
READY = "ready"
WARM_S = 2.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    observation_count: int
    learned_count: int
    live_s: float
    rounds: int


def measure_backfill(options: argparse.Namespace) -> dict[str, Any]:
    """Both figures, and what they were made from.

    Args:
        options: With `quick`: whether only to see that everything runs.
    """
    sizes = Sizes(6_000, 600, 4.0, 1) if options.quick else Sizes(60_000, 12_000, 60.0, 3)
    base = Path("benchmark-output")
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as name:
        folder = Path(name).absolute()
        settings_file = make_site(folder, sizes.observation_count)
        with open_site(settings_file, is_repeatable=True) as site:
            wavelet = measure_ratio(site, WAVELET, sizes.observation_count, sizes.rounds)
            learned = measure_ratio(site, LEARNED, sizes.learned_count, sizes.rounds)
        live = measure_live(folder, settings_file, sizes)
    return {
        "backfill_ratio": wavelet["ratio"],
        "learned_ratio": learned["ratio"],
        "live_p99_growth": live["with_p99_ms"] / live["without_p99_ms"] - 1,
        "wavelet": wavelet,
        "learned": learned,
        "live": live,
    }


def make_site(folder: Path, count: int) -> Path:
    """A server's data with so many telegrams of a simulated CL51, and no version at work; returns its settings."""
    settings_file, data = folder / "server.toml", folder / "data"
    settings_file.write_text(f'data_folder = "{data}"\nmqtt_urls = []\n')
    data.mkdir()
    store = Store(f"sqlite:///{data / 'fieldpost.db'}", data / "segments")
    names = [f"cl51-{number}" for number in range(INSTRUMENTS)]
    instruments = [RegisteredInstrument(name=each, instrument_model="cl51") for each in names]
    stations = [RegisteredStation(name=each, instruments=instruments) for each in (PAST, LIVE)]
    store.write(lambda connection: register(connection, stations)).result()
    store.write(lambda connection: catalogue.register_built_in(connection, find_analyses())).result()
    set_state(store, ModelState.READY)
    instrument = SimulatedCl51(seed=7)
    telegrams = [instrument.telegram(START_NANOS / 1e9 + 15 * each) for each in range(TELEGRAMS)]
    outbox = Outbox(PAST, payload_format="vaisala-cl", clock_nanos=lambda: START_NANOS)
    ingest = Ingest(store, payload_bytes_max=1 << 24, on_stored=lambda: None)
    for first in range(0, count, BUNDLE):
        bundle = [
            outbox.observation(names[each % INSTRUMENTS], telegrams[each % TELEGRAMS], to_time(measured_nanos(each)))
            for each in range(first, min(first + BUNDLE, count))
        ]
        assert not ingest.submit(pb.Bundle(observations=bundle)).result().rejections
    ingest.close()
    store.close()
    return settings_file


def set_state(store: Store, state: ModelState, version: int = LEARNED) -> None:
    """Puts a version to work for the live station, or takes it out."""

    def change(connection: Connection) -> None:
        others = model_versions.update().where(model_versions.c.state == ModelState.ACTIVE)
        connection.execute(others.values(state=ModelState.READY))
        text = Restriction(stations=(LIVE,)).to_json() if state is ModelState.ACTIVE else ""
        here = (model_versions.c.analysis == NAME, model_versions.c.version == version)
        connection.execute(model_versions.update().where(*here).values(state=state, restriction=text))

    store.write(change).result()


def measured_nanos(number: int) -> int:
    """When the observation of this number was measured: the instruments measure at once, every 15 s."""
    return START_NANOS + number // INSTRUMENTS * EVERY_NANOS


def to_time(unix_nanos: int) -> datetime:
    """An instant as the SDK takes it."""
    return datetime.fromtimestamp(unix_nanos / 1e9, UTC)


def make_range(version: int, count: int) -> BackfillParams:
    """A range with the first so many observations, give or take a course."""
    first_day, last_day = to_time(START_NANOS).date(), to_time(measured_nanos(count - 1)).date()
    return BackfillParams(
        analysis=NAME, model_version=version, first_day=first_day, last_day=last_day, station=PAST, processes=1
    )


def measure_ratio(site: Site, version: int, count: int, rounds: int) -> dict[str, Any]:
    """Bare loop and backfill in turns."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    database, segments = site.settings.database, site.settings.segments
    bare = context.Process(target=_bare_loop, args=(theirs, database, segments, version, count), daemon=True)
    bare.start()
    theirs.close()
    filled: list[Filled] = []
    looped: list[tuple[float, float]] = []
    try:
        ours.recv()  # it has loaded its model now
        for _ in range(rounds):
            ours.send(True)
            looped.append(ours.recv())
            filled.append(_backfill_once(site, version, count))
    finally:
        ours.close()
        bare.join(10)
    return {
        "ratio": median([mine.per_s / per_s for mine, (per_s, _) in zip(filled, looped, strict=True)]),
        "backfill_per_s": median([each.per_s for each in filled]),
        "bare_loop_per_s": median([per_s for per_s, _ in looped]),
        "own_cpu_us": 1e6 * median([each.own_cpu_s for each in filled]),
        "worker_cpu_us": 1e6 * median([each.worker_cpu_s for each in filled]),
        "bare_cpu_us": 1e6 * median([cpu_s for _, cpu_s in looped]),
    }


@dataclass(frozen=True, slots=True)
class Filled:
    """A backfill.

    Attributes:
        per_s: Predictions a second.
        own_cpu_s: User and system time, for each, of the process that reads and writes.
        worker_cpu_s: Of the one that predicts.
    """

    per_s: float
    own_cpu_s: float
    worker_cpu_s: float


def _backfill_once(site: Site, version: int, count: int) -> Filled:
    """Fills, and forgets what was filled."""
    plan = make_plan(site, make_range(version, count), find_version(site, NAME, version))
    spans = [span for batch in plan.batches for span in batch.spans]
    with open_predictors(site.store, plan.version, 1, behind_all_others(1, "cpu")) as predictors:
        began_s, own_s, worker_s = time.perf_counter(), time.process_time(), _worker_cpu_s()
        predictors.predict(spans, lambda: None)
        took_s, own_s, worker_s = time.perf_counter() - began_s, time.process_time() - own_s, _worker_cpu_s() - worker_s
    done = predictors.tally.predicted_count
    assert done == plan.waiting_count, f"expected {plan.waiting_count} predictions, but got {done}"
    forget(site.store, (version,))
    return Filled(done / took_s, own_s / done, worker_s / done)


def forget(store: Store, versions: Iterable[int]) -> None:
    """Takes away what these versions have said."""
    here = (model_versions.c.analysis == NAME, model_versions.c.version.in_(versions))
    ids = select(model_versions.c.id).where(*here)
    for table in (predictions, follow_states):
        gone = delete(table).where(table.c.model_version_id.in_(ids))
        store.write(lambda connection, gone=gone: connection.execute(gone)).result()  # type: ignore[misc]


def _worker_cpu_s() -> float:
    """User and system time of the workers of this process."""
    workers = [each for each in psutil.Process().children() if "server.workers.worker_main" in each.cmdline()]
    return float(sum(times.user + times.system for times in (each.cpu_times() for each in workers)))


def _bare_loop(pipe: Pipe, database: str, segments: str | Path, version: int, count: int) -> None:
    """A process of its own: reads, decodes and predicts, and stores nothing, each time it is told to."""
    import torch

    torch.set_num_threads(1)
    store = Store(database, segments)
    analysis = load_analysis(NAME, version)
    size = STRETCH_MAX if isinstance(analysis, FollowingAnalysis) else analysis.max_batch
    with store.read() as connection:
        chosen = select(observations).order_by(observations.c.id).limit(count).subquery()
        pending = [pending_of(row) for row in connection.execute(with_facts(select(chosen.c.id), chosen))]

    def predict_all() -> None:
        state = b""
        for first in range(0, len(pending), size):
            items = [load_item(each, store.read_segment)[1] for each in pending[first : first + size]]
            if isinstance(analysis, FollowingAnalysis):
                state = analysis.follow([Stretch(state, [each.decode() for each in items])])[0].state
            else:
                predict_items(analysis, items)

    pending, everything = pending[:size], pending
    predict_all()
    pending = everything
    pipe.send(True)
    try:
        while pipe.recv():
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            predict_all()
            took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
            pipe.send((len(pending) / took_s, took_cpu_s / len(pending)))
    except EOFError:
        store.close()


def measure_live(folder: Path, settings_file: Path, sizes: Sizes) -> dict[str, Any]:
    """Latencies of live observations with and without a backfill beside them, in turns."""
    with open_site(settings_file) as site:
        set_state(site.store, ModelState.ACTIVE)
    address = f"127.0.0.1:{free_port()}"
    command = [program("fieldpost-server"), "run", "--workers", "1", "--grpc-address", address]
    environment = {"FIELDPOST_DATA_FOLDER": str(folder / "data"), "FIELDPOST_MQTT_URLS": "[]"}
    server = ProcessTree(command, folder, environment)
    alone, beside = [], []
    try:
        port = int(address.rpartition(":")[2])
        wait_until(lambda: is_listening(port), server, START_TIMEOUT_S, "an open port")
        with LiveLoad(address) as load:
            load.run(WARM_S)  # it has loaded its model now
            for _ in range(sizes.rounds):
                alone += load.run(sizes.live_s)
                with open_site(settings_file) as site:
                    forget(site.store, BESIDE)
                with running_backfill(settings_file):
                    load.run(WARM_S)
                    beside += load.run(sizes.live_s)
    finally:
        server.stop()
    return {
        "without_p50_ms": percentile(alone, 50),
        "with_p50_ms": percentile(beside, 50),
        "without_p99_ms": percentile(alone, 99),
        "with_p99_ms": percentile(beside, 99),
        "samples": [len(alone), len(beside)],
    }


class LiveLoad:
    """A station that sends at a steady rate, and somebody who watches its predictions."""

    def __init__(self, address: str) -> None:
        self._sender, self._watcher = Client(address), Client(address)
        self._outbox = Outbox(LIVE, payload_format="vaisala-cl")
        self._instrument = SimulatedCl51(seed=8)
        self._sent_s: dict[int, float] = {}
        self._came_s: dict[int, float] = {}
        self._watch = self._watcher.watch(station=LIVE)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> LiveLoad:
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.close()
        self._sender.close()
        self._listener.join()

    def run(self, duration_s: float) -> list[float]:
        """Sends for so long, waits for the last prediction, and returns the latencies, in milliseconds."""
        first, begin_s = self._outbox.next_sequence, time.perf_counter()
        for number in range(round(duration_s * LIVE_PER_S)):
            time.sleep(max(0.0, begin_s + number / LIVE_PER_S - time.perf_counter()))
            now = time.time()
            content = self._instrument.telegram(now)
            observation = self._outbox.observation("cl51-0", content, datetime.fromtimestamp(now, UTC))
            self._sent_s[observation.header.sequence] = time.perf_counter()
            self._sender.send([observation])
        wanted = range(first, self._outbox.next_sequence)
        deadline_s = time.perf_counter() + START_TIMEOUT_S
        while not all(each in self._came_s for each in wanted):
            if time.perf_counter() > deadline_s:
                raise BrokenStateError(f"expected all live predictions within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)
        return [1000 * (self._came_s[each] - self._sent_s[each]) for each in wanted]

    def _listen(self) -> None:
        for prediction in self._watch:
            self._came_s.setdefault(prediction.sequence, time.perf_counter())


@contextmanager
def running_backfill(settings_file: Path) -> Iterator[None]:
    """A backfill in a process of its own, which goes on for as long as the block lasts."""
    command = [sys.executable, "-m", "benchmarks.archive_backfill", "--as-backfill", str(settings_file)]
    backfill = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert backfill.stdout is not None
        if backfill.stdout.readline() != f"{READY}\n":
            raise BrokenStateError(f"the backfill ended with status {backfill.wait()}")
        yield
        if backfill.poll() is not None:
            raise BrokenStateError("the backfill came to its end too early: give it more observations")
    finally:
        backfill.kill()
        backfill.wait()


def backfill_until_killed(settings_file: Path) -> None:
    """Backfills one version after the other; says so when a worker is at it."""
    is_told = False

    def on_progress(standing: Standing) -> None:
        nonlocal is_told
        if standing.tally.done_count and not is_told:
            print(READY, flush=True)
            is_told = True

    with open_site(settings_file, is_repeatable=True) as site:
        for version in BESIDE:
            params = BackfillParams(
                analysis=NAME, model_version=version, first_day=FIRST_DAY, last_day=LAST_DAY, station=PAST, processes=1
            )
            carry_out(site, params, make_plan(site, params, find_version(site, NAME, version)), on_progress)


def main() -> None:
    """Measures, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--as-backfill", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_backfill is not None:
        backfill_until_killed(options.as_backfill)
    else:
        print_report(measure_backfill(options), as_json=options.json)


if __name__ == "__main__":
    main()
