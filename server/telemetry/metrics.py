"""What a running server tells Prometheus: one table of metrics, read from the parts when it is asked.

The parts count for themselves and know nothing of Prometheus; only durations, which need buckets, are told to
`Durations` as they happen. To add a metric, add a line to a table; docs/metrics.md is made of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fieldpost import __version__
from fieldpost.errors import InvalidRequestError, OverloadedError

logger = logging.getLogger(__name__)

PREFIX = "fieldpost_"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


class Described(NamedTuple):
    """One metric.

    Attributes:
        name: Without the prefix; the unit, or total for a counter, at its end.
        kind: counter, gauge or histogram.
        labels: What it is told apart by.
        help: What it says, in a sentence.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


METRICS = (
    Described("server_info", "gauge", ("version",), "1, with the version of the server."),
    Described("observations_stored_total", "counter", (), "Observations stored."),
    Described("observations_duplicate_total", "counter", (), "Observations that were held already, and dropped."),
    Described("observations_refused_total", "counter", (), "Observations refused; the log has the reasons."),
    Described("ingest_waiting_bundles", "gauge", (), "Bundles that wait for the disk."),
    Described("ingest_waiting_bytes", "gauge", (), "Bytes of them."),
    Described("broker_connected", "gauge", ("broker",), "1 while connected to this broker."),
    Described("stations_registered", "gauge", (), "Stations in the registry."),
    Described("stations_online", "gauge", (), "Of them, those whose last status says that they are online."),
    Described("station_last_seen_seconds", "gauge", ("station",), "How long ago its last status came; none: never."),
    Described("station_backlog_observations", "gauge", ("station",), "What it then still had to deliver."),
    Described(
        "station_gap_observations",
        "gauge",
        ("station",),
        "Numbered by the station, not here, and neither in its backlog nor refused nor known to be lost; after a "
        "start it takes some visits until all is counted.",
    ),
    Described(
        "instrument_last_measured_seconds",
        "gauge",
        ("station", "instrument"),
        "How long ago, by measure time, its newest observation was measured.",
    ),
    Described("archive_newest_bag_seconds", "gauge", (), "How long ago the last bag was made; none: there is no bag."),
    Described(
        "archive_days_without_bag",
        "gauge",
        (),
        "Instrument-days that ended 3 to 9 days ago, have observations, and no bag; looked at every 5 minutes.",
    ),
    Described("archive_damaged_bags", "gauge", (), "Bags that a scrub found damaged and could not repair."),
    Described("predictions_total", "counter", ("model", "outcome"), "Predictions made; outcome: good or failed."),
    Described(
        "predictions_provisional", "gauge", ("model",), "Predictions that will be made again: history is still to come."
    ),
    Described("waiting_observations", "gauge", ("model", "priority"), "What waits: live, backfill or shadow."),
    Described("oldest_waiting_seconds", "gauge", ("model",), "How long the oldest of them has waited."),
    Described("batch_limit_observations", "gauge", ("model",), "The largest batch now: halved after lack of memory."),
    Described("batches_total", "counter", (), "Batches given to workers."),
    Described("batched_observations_total", "counter", (), "Observations in them."),
    Described("expired_total", "counter", (), "Requests dropped because nobody would have waited for their answer."),
    Described("worker_deaths_total", "counter", (), "Workers that crashed, hung or vanished, and were replaced."),
    Described("worker_up", "gauge", ("worker", "device"), "1 while the worker takes work."),
    Described("worker_batches_total", "counter", ("worker", "device"), "Batches that it has computed."),
    Described("worker_restarts_total", "counter", ("worker", "device"), "Times that it was started again."),
    Described("worker_busy_seconds_total", "counter", ("worker", "device"), "Time that it spent computing."),
    Described("worker_memory_bytes", "gauge", ("worker", "device"), "Memory that it holds."),
    Described("disk_free_bytes", "gauge", (), "Free on the disk of the data folder."),
)
DURATIONS = (
    Described("receipt_seconds", "histogram", (), "From a bundle's arrival to its receipt."),
    Described(
        "prediction_seconds", "histogram", ("model",), "From the capture of a live observation to its prediction."
    ),
    Described("call_seconds", "histogram", ("method", "code"), "How long gRPC calls took; streams until their end."),
)

Sample = tuple[tuple[str, ...], float]
"""Values of the labels, and the value."""
Read = Callable[[], Mapping[str, Iterable[Sample]]]
"""Reads some metrics of the table, by name."""


class Durations:
    """Histograms of how long things took, in s."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._by_name = {
            each.name: Histogram(PREFIX + each.name, each.help, each.labels, buckets=BUCKETS_S, registry=registry)
            for each in DURATIONS
        }

    def note_receipt(self, duration_s: float) -> None:
        """A bundle has its receipt."""
        self._by_name["receipt_seconds"].observe(duration_s)

    def note_prediction(self, model: str, duration_s: float) -> None:
        """A live observation has its prediction."""
        self._by_name["prediction_seconds"].labels(model).observe(duration_s)

    def note_call(self, method: str, code: str, duration_s: float) -> None:
        """A call has ended."""
        self._by_name["call_seconds"].labels(method, code).observe(duration_s)


class Metrics(Collector):
    """All metrics of one server.

    Attributes:
        registry: What is served.
        durations: For the parts to tell what took how long.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.durations = Durations(self.registry)
        self._reads: list[Read] = [lambda: {"server_info": [((__version__,), 1.0)]}]
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def add(self, read: Read) -> None:
        """Asks this part, too, whenever Prometheus comes."""
        self._reads.append(read)

    def collect(self) -> Iterator[Metric]:
        """What the parts say now. One that cannot be asked is left out, and the log says so."""
        found: dict[str, list[Sample]] = {}
        for read in self._reads:
            try:
                found.update((name, list(samples)) for name, samples in read().items())
            except Exception:
                logger.exception("metrics cannot be read")
        for each in METRICS:
            if each.name in found:
                family = CounterMetricFamily if each.kind == "counter" else GaugeMetricFamily
                metric = family(PREFIX + each.name.removesuffix("_total"), each.help, labels=each.labels)
                for labels, value in found[each.name]:
                    metric.add_metric(labels, value)
                yield metric

    def serve(self, address: str) -> Callable[[], None]:
        """Serves http://<address>/metrics in a thread; returns what ends it.

        Raises:
            InvalidRequestError: The address is no host:port.
            OverloadedError: It is taken.
        """
        host, separator, port = address.rpartition(":")
        if not separator or not port.isdigit():
            raise InvalidRequestError(f"expected metrics_address as host:port, but got {address!r}")
        try:
            server, thread = start_http_server(int(port), host, self.registry)
        except OSError as error:
            hint = "another program may use the port; choose another metrics_address"
            raise OverloadedError(f"metrics cannot be served on {address}: {error}", hint=hint) from error
        logger.info("metrics served", extra={"address": f"{host}:{server.server_port}"})

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return close


def metrics_page() -> str:
    """docs/metrics.md."""
    rows = [
        f"| `{PREFIX}{each.name}` | {each.kind} | {', '.join(each.labels)} | {each.help} |"
        for each in (*METRICS, *DURATIONS)
    ]
    return "\n".join(
        [
            "# The server's metrics",
            "",
            "Made from `server/telemetry/metrics.py` (`make docs`). Prometheus finds them at",
            "`http://<metrics_address>/metrics`, with those of every process (`process_…`) beside them. A station has",
            "metrics of its own (docs/station.md).",
            "",
            "| metric | kind | labels | what it says |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
