"""What a whole server says of itself: metrics, traces, the doctor beside it and where everything is broken."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from test_server_tracing import Collector
from whole_support import WholeServer, until

from demo.processes import free_port, program
from fieldpost import Client, Outbox
from fieldpost.simulation import SimulatedCl51

MODEL = "boundary-layer-height@5"
GOOD_COUNT = 12


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def epoch() -> str:
    return Outbox("lindenberg").epoch


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, collector: tuple[Collector, str], metrics_port: int, epoch: str
) -> Iterator[WholeServer]:
    """One that has worked: telegrams, the same again, one that is none, and some of nobody's instrument."""
    settings = f'metrics_address = "127.0.0.1:{metrics_port}"\notlp_endpoint = "{collector[1]}"\ntrace_ratio = 1.0\n'
    running = WholeServer(tmp_path_factory.mktemp("operation"), {"lindenberg/cl51": "cl51"}, settings)
    try:
        with running.client() as client:
            work(client, epoch)
        yield running
        running.stop()
    finally:
        running.close()


def work(client: Client, epoch: str) -> None:
    instrument, now_s = SimulatedCl51(1), time.time()
    telegrams = [instrument.telegram(now_s + 15 * number) for number in range(GOOD_COUNT)]
    items = [("cl51", content, None) for content in (*telegrams, b"no telegram")]
    sent = list(Outbox("lindenberg", epoch=epoch, payload_format="vaisala-cl").number(items))
    assert client.send(sent).held_count == GOOD_COUNT + 1
    assert client.send(sent[:5]).duplicate_count == 5
    stranger = Outbox("lindenberg").number([("nobody", b"1", None), ("nobody", b"2", None)])
    assert len(client.send(stranger).refused) == 2
    until(lambda: len(list(client.iter_predictions())) == GOOD_COUNT + 1)


def read_metrics(port: int) -> dict[tuple[str, str], float]:
    """Each sample's value by its name and the labels that tell it from others of the name."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, " ".join(sample.labels.get(name, "") for name in ("model", "outcome", "method", "code")).strip()):
            sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }  # fmt: skip


def test_the_metrics_count_what_was_done(server: WholeServer, metrics_port: int) -> None:
    expected = {
        ("fieldpost_observations_stored_total", ""): GOOD_COUNT + 1,
        ("fieldpost_observations_duplicate_total", ""): 5,
        ("fieldpost_observations_refused_total", ""): 2,
        ("fieldpost_predictions_total", f"{MODEL} good"): GOOD_COUNT,
        ("fieldpost_predictions_total", f"{MODEL} failed"): 1,
        ("fieldpost_prediction_seconds_count", MODEL): GOOD_COUNT + 1,
        ("fieldpost_batched_observations_total", ""): GOOD_COUNT + 1,
        ("fieldpost_receipt_seconds_count", ""): 3,
        ("fieldpost_worker_deaths_total", ""): 0,
        ("fieldpost_worker_up", ""): 1,
        ("fieldpost_ingest_waiting_bundles", ""): 0,
        ("fieldpost_stations_registered", ""): 1,
    }
    until(lambda: read_metrics(metrics_port).get(("fieldpost_prediction_seconds_count", MODEL), 0) > GOOD_COUNT)
    found = read_metrics(metrics_port)
    assert {name: found.get(name) for name in expected} == expected
    assert found["fieldpost_disk_free_bytes", ""] > 0
    assert found["fieldpost_call_seconds_count", "/fieldpost.v1.Ingest/Send OK"] == 3, sorted(found)


def test_a_trace_tells_the_way_of_an_observation_from_its_capture_to_its_stored_prediction(
    server: WholeServer, collector: tuple[Collector, str]
) -> None:
    servicer, _ = collector
    whole = {
        "observation",
        "transport",
        "ingest",
        f"prediction {MODEL}",
        f"compute {MODEL}",
        f"store prediction {MODEL}",
    }

    def find_whole_traces() -> list[dict[str, Any]]:
        traces: dict[bytes, dict[str, Any]] = {}
        for span in list(servicer.spans):
            traces.setdefault(span.trace_id, {})[span.name] = span  # type: ignore[attr-defined]
        return [each for each in traces.values() if set(each) == whole]

    until(lambda: len(find_whole_traces()) == GOOD_COUNT + 1)
    for trace in find_whole_traces():
        root, way = trace["observation"], [trace[name] for name in ("transport", "ingest", f"compute {MODEL}")]
        assert root.start_time_unix_nano <= way[0].start_time_unix_nano
        begins = [each.start_time_unix_nano for each in (*way, trace[f"store prediction {MODEL}"])]
        assert begins == sorted(begins)


def ask_doctor(config: Path) -> tuple[int, list[dict[str, str]]]:
    command = [program("fieldpost-server"), "doctor", "--json", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_doctor_beside_a_running_server_finds_all_of_it_and_disturbs_nothing(
    server: WholeServer, metrics_port: int
) -> None:
    before = read_metrics(metrics_port)["fieldpost_observations_stored_total", ""]
    status, findings = ask_doctor(server.config)
    about = {each["subject"]: each["level"] for each in findings if each["subject"] != "disk"}
    assert set(about.values()) == {"OK"}, "\n".join(map(str, findings))
    assert status == int(any(each["level"] == "FAIL" for each in findings))
    assert server.process.poll() is None
    assert read_metrics(metrics_port)["fieldpost_observations_stored_total", ""] == before


def test_the_doctor_names_each_thing_that_is_broken_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "stations.toml").write_text("[[stations]]\n")
    config = tmp_path / "server.toml"
    config.write_text(
        f'data_folder = "{tmp_path / "file"}"\n'
        f'database_url = "postgresql+psycopg://nobody@/nothing?host={tmp_path}"\n'
        f'mqtt_urls = ["mqtt://127.0.0.1:{free_port()}"]\n'
        f'grpc_address = "127.0.0.1:{free_port()}"\n'
        f'grpc_cert_file = "{tmp_path / "none.crt"}"\ngrpc_key_file = "{tmp_path / "none.key"}"\n'
    )
    status, findings = ask_doctor(config)
    assert status == 1
    failed = {each["subject"]: each for each in findings if each["level"] == "FAIL"}
    for subject in ("data folder", "database", "payloads", "gRPC"):
        assert subject in failed, findings
    assert any(subject.startswith("broker mqtt://") for subject in failed)
    assert all(each["text"] for each in findings) and all(each["hint"] for each in failed.values()), failed


def test_a_server_that_cannot_start_says_why_in_words(server: WholeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    taken = server.port
    for settings in (
        f'data_folder = "{tmp_path / "file"}"\n',
        f'data_folder = "{tmp_path}"\nmodels_folder = "{tmp_path / "file"}"\n',
        f'data_folder = "{tmp_path}"\nsegments_folder = "{tmp_path / "file"}"\n',
        f'data_folder = "{tmp_path}"\ndatabase_url = "postgresql+psycopg://nobody@/nothing?host={tmp_path}"\n',
        f'data_folder = "{tmp_path}"\nmetrics_address = "127.0.0.1:{taken}"\n',
        f'data_folder = "{tmp_path}"\ngrpc_address = "127.0.0.1:{taken}"\n',
    ):
        config = tmp_path / "server.toml"
        address = "" if "grpc_address" in settings else f'grpc_address = "127.0.0.1:{free_port()}"\n'
        config.write_text(f"{settings}{address}mqtt_urls = []\nworkers = 0\n")
        command = [program("fieldpost-server"), "run", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 75), settings
        assert "Traceback" not in done.stderr, f"{settings}\n{done.stderr}"
        what = done.stderr.partition("fieldpost-server: ")[2].splitlines()[0]
        assert any(word in what for word in (str(tmp_path), str(taken))), f"{settings}\n{done.stderr}"
