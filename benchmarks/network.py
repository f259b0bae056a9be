"""A network of instruments end to end: files handed over at stations, decoded, stored and predicted at the server.

    python -m benchmarks.network [--json] [--files N] [--rate N] [--workers 1 2] [--over mqtt|grpc]

The experiment of IPDSF (ICPP Workshops 2021): 18,000 files of 1,000 ceilometers at 200 files/s, and then as
fast as it goes. A file is a simulated CL51 telegram of 8 KB. Stations speak their own protocol over a real Mosquitto
(network_stations says what is left out), the server is the real one with its own database, and a client watches the
predictions. A file's time runs from the moment at which its instrument was to hand it over to the moment at which the
watching client has its prediction; a station that is late does not stop the clock. Stations, broker, server, workers
and the watching client share this machine. Heights are those of the wavelets, a model version that does not remember,
as the one of IPDSF did not; benchmarks.inference measures those that do.

What is lost and what is there twice is counted in the database afterwards: lost is a file without a prediction.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.network_stations import Plan, StationsReport, instrument_name, run_stations, station_name
from benchmarks.report import percentile, print_report
from demo.plan import PlannedInstrument, PlannedStation, write_stations_file
from demo.processes import Processes, find_mosquitto, free_port, program
from fieldpost import Client
from fieldpost.v1 import predictions_service_pb2, predictions_service_pb2_grpc
from server.analyses.boundary_layer import NAME, WAVELET

STATIONS, INSTRUMENTS = 50, 20
WARM_FILES = 200
SETTLE_TIMEOUT_S = 120.0


class Watcher:
    """A client that watches predictions, and stamps each with the time at which it came."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        request = predictions_service_pb2.WatchPredictionsRequest()
        self._call = predictions_service_pb2_grpc.PredictionsStub(self._channel).Watch(request)
        self._call.initial_metadata()  # sent when the watch has begun
        self.arrivals: dict[tuple[str, str, int], float] = {}
        """Unix seconds, by (epoch, station, sequence)."""
        self.repeats = 0
        self._thread = threading.Thread(target=self._read, name="watcher", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                now_s = time.time()
                for each in response.predictions:
                    key = (each.epoch, each.station, each.sequence)
                    self.repeats += key in self.arrivals
                    self.arrivals.setdefault(key, now_s)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:  # close() cancels it
                raise

    def close(self) -> None:
        """Ends the watch."""
        self._call.cancel()
        self._thread.join()
        self._channel.close()


class Network:
    """A server with workers, and a broker where stations speak MQTT, in a folder of their own."""

    def __init__(self, folder: Path, workers: int, over: str) -> None:
        self.port = free_port()
        """Where stations send to."""
        self.grpc_port = self.port if over == "grpc" else free_port()
        self._database = folder / "data" / "fieldpost.db"
        self._processes = Processes(folder / "logs")
        instruments = [PlannedInstrument(instrument_name(number), "cl51", {}) for number in range(INSTRUMENTS)]
        stations = [PlannedStation(station_name(number), instruments) for number in range(STATIONS)]
        write_stations_file(folder / "stations.toml", stations)
        command = [program("fieldpost-server"), "run", "--data-folder", str(folder / "data")]
        command += ["--workers", str(workers), "--stations-file", str(folder / "stations.toml")]
        command += ["--grpc-address", f"127.0.0.1:{self.grpc_port}"]
        urls = []
        try:
            if over == "mqtt":
                self._start_broker(folder / "mosquitto.conf")
                urls = [f"mqtt://127.0.0.1:{self.port}"]
            self._processes.start("server", command, {"FIELDPOST_MQTT_URLS": json.dumps(urls)})
            self._processes.wait_for_port("server", self.grpc_port)
            with Client(f"127.0.0.1:{self.grpc_port}") as client:
                client.models.activate(NAME, WAVELET)
        except BaseException:
            self.close()
            raise

    def _start_broker(self, config: Path) -> None:
        mosquitto = find_mosquitto()
        if mosquitto is None:
            sys.exit("mosquitto is not installed: make mosquitto, or use --over grpc")
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            "max_queued_messages 100000\nmax_inflight_messages 1000\n"
        )
        self._processes.start("broker", [mosquitto, "-c", str(config)])
        self._processes.wait_for_port("broker", self.port)

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far, by part."""
        server = psutil.Process(self._processes.process_id("server"))
        cpu_s = {"server": _cpu_s(server), "workers": sum(_cpu_s(each) for each in server.children(recursive=True))}
        if self.port != self.grpc_port:
            cpu_s["broker"] = _cpu_s(psutil.Process(self._processes.process_id("broker")))
        return cpu_s

    def predictions(self, epoch: str) -> tuple[int, int, int, int]:
        """Of one epoch: observations held, those with a prediction, predictions, and those that are failures."""
        query = (
            "select count(distinct observation.id), count(distinct prediction.observation_id), count(prediction.id), "
            "coalesce(sum(prediction.is_failure), 0) from observation join epoch on epoch.id = observation.epoch_id "
            "left join prediction on prediction.observation_id = observation.id where epoch.epoch = ?"
        )
        with sqlite3.connect(f"file:{self._database}?mode=ro", uri=True) as connection:
            held, predicted, predictions, failed = connection.execute(query, (epoch,)).fetchone()
        connection.close()
        return held, predicted, predictions, failed

    def close(self) -> None:
        """Ends them."""
        self._processes.stop_all()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def running(workers: int, over: str) -> Iterator[Network]:
    """Broker and server in a folder of their own."""
    base = Path("benchmark-output")
    base.mkdir(exist_ok=True)  # on the checkout's disk: /tmp may be memory, where an fsync costs nothing
    with tempfile.TemporaryDirectory(dir=base) as folder:
        network = Network(Path(folder).absolute(), workers, over)
        try:
            yield network
        finally:
            network.close()


def make_plan(network: Network, files: int, files_per_s: float, over: str) -> Plan:
    """A run under an epoch of its own."""
    timeout_s = SETTLE_TIMEOUT_S + (files / files_per_s if files_per_s else 0.0)
    return Plan(files, STATIONS, INSTRUMENTS, files_per_s, secrets.token_hex(16), over, network.port, timeout_s)


def measure(network: Network, plan: Plan) -> dict[str, Any]:
    """Lets the stations hand over their files, and waits for all predictions."""
    watcher = Watcher(network.grpc_port)
    try:
        before = network.cpu_s()
        report, start_unix_s = _run_stations_process(plan)
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while len(watcher.arrivals) < plan.files and time.monotonic() < deadline_s:
            time.sleep(0.02)
        after = network.cpu_s()
    finally:
        watcher.close()
    held, predicted, predictions, failed = network.predictions(plan.epoch)
    arrivals = {key: at for key, at in watcher.arrivals.items() if key[0] == plan.epoch}
    took = [
        at - start_unix_s - plan.after_s(plan.index(station, sequence))
        for (_, station, sequence), at in arrivals.items()
    ]
    end_s = max(arrivals.values(), default=float("nan")) - start_unix_s
    return {
        "files_per_s": len(took) / end_s if took else 0.0,
        "p50_s": percentile(took, 50) if took else None,
        "p99_s": percentile(took, 99) if took else None,
        "p999_s": percentile(took, 99.9) if took else None,
        "lost": plan.files - predicted,
        "duplicates": predictions - predicted + watcher.repeats,
        "failed": failed,
        "unstored": plan.files - held,
        "took_s": end_s,
        "receipts_took_s": report.settled_s,
        "sent_again": report.sent_again_count,
        "stations_late_s": report.latest_s,
        **{f"{part}_cpu_ms": (after[part] - before[part]) * 1000 / plan.files for part in after},
        "stations_cpu_ms": report.cpu_s * 1000 / plan.files,
    }


def _run_stations_process(plan: Plan) -> tuple[StationsReport, float]:
    """Returns the report, and when it started (Unix seconds)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_stations, args=(theirs, plan), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()  # ready
        start_unix_s = time.time() + 0.2
        ours.send(start_unix_s)
        return ours.recv(), start_unix_s
    except EOFError:
        sys.exit("the simulated stations ended with an error: see above")
    finally:
        ours.close()
        process.join(10)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--files", type=int, default=18_000, help="default 18000")
    parser.add_argument("--rate", type=float, default=200.0, help="files per second of the first run; default 200")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="default 1 2")
    parser.add_argument("--over", choices=["mqtt", "grpc"], default="mqtt", help="default mqtt")
    options = parser.parse_args()
    at_rate: dict[str, Any] = {}
    flat_out: dict[str, Any] = {}
    for workers in options.workers:
        with running(workers, options.over) as network:
            measure(network, make_plan(network, WARM_FILES, 0, options.over))  # the workers have loaded their model
            at_rate[f"workers_{workers}"] = measure(
                network, make_plan(network, options.files, options.rate, options.over)
            )
            flat_out[f"workers_{workers}"] = measure(network, make_plan(network, options.files, 0, options.over))
    best_at_rate = min(at_rate.values(), key=lambda each: (each["lost"], each["p99_s"] or float("inf")))
    best_flat_out = min(flat_out.values(), key=lambda each: (each["lost"], -each["files_per_s"]))
    result = {
        "files": options.files,
        "instruments": STATIONS * INSTRUMENTS,
        "over": options.over,
        f"at_{options.rate:g}": {**best_at_rate, **at_rate},
        "flat_out": {**best_flat_out, **flat_out},
    }
    print_report(result, as_json=options.json)


if __name__ == "__main__":
    main()
