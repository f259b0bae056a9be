"""What benchmarks measure with: loads counted right, answers checked, options understood."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.inference import Measured, compare, medians
from benchmarks.inference_echo import measure_echo
from benchmarks.inference_load import WrongAnswerError, run_clients
from benchmarks.inference_model import OUTPUT_COUNT, build_model, make_profiles, open_session, predict
from benchmarks.inference_peers import bentoml_request, check_answer, check_answers, triton_request
from benchmarks.inference_protocols import GrpcExchange, HttpExchange
from benchmarks.inference_servers import ProcessTree, wait_until
from benchmarks.network_stations import Plan

ROOT = Path(__file__).parent.parent


@contextmanager
def http_server(*, is_chunked: bool = False, status: int = 200) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each body with itself, upside down; yields its port and what it was asked."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(body)
            answer = body[::-1]
            self.send_response(status)
            if is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
                parts = [answer[:3], answer[3:]]
                answer = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            else:
                self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def grpc_server() -> Iterator[tuple[int, list[bytes]]]:
    """A server with one method, which answers upside down; yields its port and what it was asked."""
    asked: list[bytes] = []

    def answer(request: bytes, _context: object) -> bytes:
        asked.append(request)
        return request[::-1]

    handler = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Echo", {"Turn": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port, asked
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("is_chunked", [False, True])
def test_every_http_answer_is_counted_once(is_chunked: bool) -> None:
    with http_server(is_chunked=is_chunked) as (port, asked):
        exchanges = [HttpExchange("/", f"client {number}".encode()) for number in range(4)]
        figures = run_clients(("127.0.0.1", port), exchanges, 50, 30.0)
    assert figures.requests == len(figures.latencies_ms)
    assert 50 <= figures.requests <= 53
    assert len(asked) - figures.requests <= 4  # one of each client may be under way at the end
    assert all(exchange.answer == f"client {n}".encode()[::-1] for n, exchange in enumerate(exchanges))


def test_a_refusal_is_no_answer() -> None:
    with http_server(status=503) as (port, _), pytest.raises(WrongAnswerError, match="expected status 200"):
        run_clients(("127.0.0.1", port), [HttpExchange("/", b"x")], 1, 30.0)


def test_an_http_answer_may_come_in_pieces() -> None:
    exchange = HttpExchange("/", b"")
    content = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    completed = [exchange.feed(bytes([byte]))[1] for byte in content]
    assert completed == [False] * (len(content) - 1) + [True]
    assert exchange.answer == b"hello"


def test_every_grpc_answer_is_counted_once_beyond_the_first_window() -> None:
    message = bytes(range(256)) * 80  # 20 KB: two frames; 60 of them are many windows of 64 KB
    with grpc_server() as (port, asked):
        exchanges = [GrpcExchange("/tests.Echo/Turn", message) for _ in range(3)]
        figures = run_clients(("127.0.0.1", port), exchanges, 60, 30.0)
    assert 60 <= figures.requests <= 62
    assert 0 <= len(asked) - figures.requests <= 3
    assert set(asked) == {message}
    assert all(exchange.answer == message[::-1] for exchange in exchanges)


def test_a_grpc_status_is_no_answer() -> None:
    with grpc_server() as (port, _), pytest.raises(WrongAnswerError, match="expected an answer"):
        run_clients(("127.0.0.1", port), [GrpcExchange("/tests.Echo/Other", b"x")], 1, 30.0)


def test_the_floor_of_grpc_gives_back_what_it_gets_and_is_accounted_for(tmp_path: Path) -> None:
    figures = measure_echo(tmp_path, [bytes([number]) * 4096 for number in range(8)], 0.2)
    assert set(figures) == {"unary", "lone"}
    assert all(each["requests_per_s"] > 0 and each["p99_ms"] >= each["p50_ms"] > 0 for each in figures.values())


def test_the_model_answers_alike_alone_and_in_a_batch() -> None:
    session, profiles = open_session(build_model()), make_profiles(8)
    together = predict(session, profiles)
    assert together.shape == (8, OUTPUT_COUNT)
    for number in range(8):
        check_answer(predict(session, profiles[number : number + 1]).tobytes(), together[number : number + 1])
    with pytest.raises(WrongAnswerError):
        check_answer(together[0].tobytes(), together[1:2])


def test_only_those_who_were_answered_are_checked_but_somebody_must_be() -> None:
    heights = np.arange(8, dtype=np.float32).reshape(2, 4)
    answered, waiting = HttpExchange("/", b""), HttpExchange("/", b"")
    with pytest.raises(WrongAnswerError, match="got none"):
        check_answers([answered, waiting], [heights[:1], heights[1:]])
    answered.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + heights[0].tobytes())
    check_answers([answered, waiting], [heights[:1], heights[1:]])
    with pytest.raises(WrongAnswerError):
        check_answers([answered, waiting], [heights[1:], heights[:1]])


def test_the_peers_are_asked_in_their_own_formats() -> None:
    profiles = make_profiles(2)
    heights = np.arange(8, dtype=np.float32)
    triton = triton_request(profiles)
    assert triton.body.endswith(profiles.tobytes())
    assert int(triton.headers["Inference-Header-Content-Length"]) == len(triton.body) - profiles.nbytes
    assert triton.read_answer(b'{"outputs": []}' + heights.tobytes()) == heights.tobytes()
    assert bentoml_request(profiles).read_answer(b"[[0,1,2,3],[4,5,6,7]]") == heights.tobytes()


def test_a_peer_is_reported_with_the_settings_that_answer_most() -> None:
    measured = Measured()
    rates = {"waits": [{"requests_per_s": 10.0}, {"requests_per_s": 30.0}], "no wait": [{"requests_per_s": 25.0}]}
    for settings, rounds in rates.items():
        for each in rounds:
            measured.add("peer", settings, lambda each=each: {"unary": each})
    assert measured.loads("peer") == {"unary": {"requests_per_s": 25.0, "settings": "no wait"}}


def test_a_server_that_fails_is_left_out_with_its_reason() -> None:
    def fail() -> Any:
        raise FileNotFoundError("expected it, but it is not there")

    measured = Measured()
    measured.add("peer", "no wait", fail)
    assert measured.loads("peer") is None
    assert measured.left_out == {"peer, no wait": "expected it, but it is not there"}


def test_medians_and_ratios_are_of_like_with_like() -> None:
    rounds = [{"unary": {"cpu_ms": value}} for value in (3.0, 1.0, 2.0)]
    assert medians(rounds) == {"unary": {"cpu_ms": 2.0}}

    def figures(requests_per_s: float, cpu_ms: float) -> dict[str, Any]:
        return {"requests_per_s": requests_per_s, "cpu_ms": cpu_ms}

    ours = {load: figures(100.0, 0.5) for load in ("unary", "unary_rpc", "lone_rpc", "bundle")}
    slow = {**figures(10.0, 4.0), **{load: figures(10.0, 4.0) for load in ("lone", "bundle", "python")}}
    fast = {**figures(50.0, 1.0), **{load: figures(200.0, 0.25) for load in ("lone", "bundle", "python")}}
    compared = compare(ours, [slow, fast])
    assert compared is not None
    assert compared["unary_rpc"] == {"requests": 2.0, "cpu": 0.5}
    assert compared["bundle"] == {"requests": 0.5, "cpu": 2.0}


def test_a_process_tree_is_accounted_for_and_ended_with_its_children(tmp_path: Path) -> None:
    inner = "import os, time\nopen('child', 'w').write(str(os.getpid()))\nwhile True: time.sleep(0.1)"
    outer = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)\n"
        "sum(range(3_000_000))\nopen('ready', 'w').close()\ntime.sleep(60)"
    )
    tree = ProcessTree([sys.executable, "-c", outer], tmp_path)
    try:
        marks = [tmp_path / "ready", tmp_path / "child"]
        wait_until(lambda: all(mark.exists() for mark in marks), tree, 30.0, "both processes")
        assert tree.cpu_s() > 0
    finally:
        tree.stop()
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"  # whoever adopted it has not looked yet


def test_every_file_of_a_network_has_its_own_place() -> None:
    plan = Plan(4000, 50, 20, 200.0, "0" * 32, "mqtt", 1883, 60.0)
    places = [plan.place(index) for index in range(plan.files)]
    assert [plan.index(station, sequence) for station, _, sequence in places] == list(range(plan.files))
    assert len({(station, instrument) for station, instrument, _ in places[:1000]}) == 1000
    assert plan.after_s(200) == 1.0


@pytest.mark.parametrize("name", ["inference", "network"])
def test_the_options_are_explained(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--json" in said


def test_an_unknown_peer_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.inference", "--peers", "torchserve"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "torchserve" in done.stderr
