"""The server's metrics: what Prometheus reads over HTTP is what the table and docs/metrics.md promise."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fieldpost.errors import InvalidRequestError, OverloadedError
from server.operation.readings import read_disk
from server.telemetry.metrics import DURATIONS, METRICS, PREFIX, Metrics

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def served(free_port: int) -> Iterator[tuple[Metrics, Callable[[], dict[str, list[tuple[dict[str, str], float]]]]]]:
    """Metrics that are served, and what a reader finds: (labels, value) by name of the sample."""
    metrics = Metrics()
    close = metrics.serve(f"127.0.0.1:{free_port}")

    def read() -> dict[str, list[tuple[dict[str, str], float]]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    yield metrics, read
    close()


def test_prometheus_reads_what_the_parts_say_at_that_moment(served, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    metrics, read = served
    stored = 5.0
    metrics.add(lambda: {"observations_stored_total": [((), stored)]})
    metrics.add(lambda: {"worker_up": [(("local-1", "cpu"), 1.0), (("local-2", "cpu"), 0.0)]})
    metrics.add(read_disk(tmp_path))
    assert read()["fieldpost_observations_stored_total"] == [({}, 5.0)]
    stored = 7.0
    found = read()
    assert found["fieldpost_observations_stored_total"] == [({}, 7.0)]
    assert {labels["worker"]: value for labels, value in found["fieldpost_worker_up"]} == {"local-1": 1, "local-2": 0}
    assert found["fieldpost_disk_free_bytes"][0][1] > 0
    assert found["process_resident_memory_bytes"][0][1] > 0


def test_durations_are_histograms_by_their_labels(served) -> None:  # type: ignore[no-untyped-def]
    metrics, read = served
    metrics.durations.note_prediction("height@1", 0.2)
    metrics.durations.note_prediction("height@1", 0.02)
    metrics.durations.note_call("/fieldpost.v1.Models/List", "OK", 0.001)
    metrics.durations.note_receipt(0.003)
    found = read()
    buckets = {labels["le"]: value for labels, value in found["fieldpost_prediction_seconds_bucket"]}
    assert (buckets["0.01"], buckets["0.025"], buckets["0.25"], buckets["+Inf"]) == (0, 1, 2, 2)
    assert found["fieldpost_call_seconds_count"][0] == ({"method": "/fieldpost.v1.Models/List", "code": "OK"}, 1)
    assert found["fieldpost_receipt_seconds_count"] == [({}, 1)]


def test_a_part_that_cannot_be_asked_costs_only_its_own_metrics(served, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    metrics, read = served

    def broken() -> dict[str, list[tuple[tuple[str, ...], float]]]:
        raise OSError("database is gone")

    metrics.add(broken)
    metrics.add(lambda: {"batches_total": [((), 3.0)]})
    assert read()["fieldpost_batches_total"] == [({}, 3.0)]
    assert "metrics cannot be read" in caplog.text


def test_every_metric_is_documented_with_its_labels() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for each in (*METRICS, *DURATIONS):
        assert f"| `{PREFIX}{each.name}` | {each.kind} | {', '.join(each.labels)} |" in page


def test_counters_end_with_total_and_nothing_else_does() -> None:
    assert all(each.name.endswith("_total") == (each.kind == "counter") for each in METRICS)


def test_an_address_that_is_none_or_taken_is_said_at_the_start(free_port: int) -> None:
    with pytest.raises(InvalidRequestError, match="host:port"):
        Metrics().serve("9464")
    close = Metrics().serve(f"127.0.0.1:{free_port}")
    try:
        with pytest.raises(OverloadedError, match="metrics cannot be served"):
            Metrics().serve(f"127.0.0.1:{free_port}")
    finally:
        close()
