"""The peers: how each is started, what its requests look like, and which settings it is tried with.

They live in an environment of their own (`make bench-peers`; what each runs is in deploy/bench-peers). Each gets what
is fastest for it: raw bytes where it takes them, batches of up to 32 requests, one worker, and both the window that it
waits by default and none, the better of which is reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.inference_load import Exchange, LoadFigures, WrongAnswerError, run_clients
from benchmarks.inference_model import INPUT, OUTPUT, OUTPUT_COUNT, PROFILE_LENGTH, Floats
from benchmarks.inference_protocols import HttpExchange
from benchmarks.inference_servers import Figures, ProcessTree, to_figures, wait_until
from demo.processes import free_port

SCRIPTS = Path(__file__).parent.parent / "deploy" / "bench-peers"
ENVIRONMENT = Path("benchmark-output/peers")
START_TIMEOUT_S = 90.0
WARM_S = 0.5
TOLERANCE = 1e-4
JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a peer over HTTP."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    read_answer: Callable[[bytes], bytes] = bytes


def raw_request(path: str) -> Callable[[Floats], Request]:
    """Raw bytes in and out."""
    return lambda profiles: Request(path, profiles.tobytes())


def triton_request(profiles: Floats) -> Request:
    """Triton's HTTP protocol with its extension for binary data."""
    content = profiles.tobytes()
    output_bytes = 4 * OUTPUT_COUNT * len(profiles)
    described = {
        "name": INPUT,
        "shape": [len(profiles), 1, PROFILE_LENGTH],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(content)},
    }
    wanted = {"name": OUTPUT, "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [described], "outputs": [wanted]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Request("/v2/models/profiles/infer", head + content, headers, lambda body: body[-output_bytes:])


def bentoml_request(profiles: Floats) -> Request:
    """BentoML takes an array over HTTP as JSON; its binary formats are for its own client."""
    body = json.dumps({"profile": profiles.tolist()}).encode()
    return Request(
        "/predict", body, JSON_HEADERS, lambda answer: np.array(json.loads(answer), dtype=np.float32).tobytes()
    )


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer with certain settings.

    Attributes:
        name: Of the peer.
        settings: In words.
        command: Arguments of the environment's Python; {port} stands for the port, {scripts} for their folder.
        make_request: For (N, 1, 1024) profiles.
        environment: Variables of its own.
    """

    name: str
    settings: str
    command: tuple[str, ...]
    make_request: Callable[[Floats], Request]
    environment: Mapping[str, str] = field(default_factory=dict)


_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_MOSEC = ("{scripts}/serve_mosec.py", "--address", "127.0.0.1", "--port", "{port}")
_BENTOML = (
    *("-m", "bentoml", "serve", "serve_bentoml:Profiles", "--working-dir", "{scripts}"),
    *("--host", "127.0.0.1", "--port", "{port}"),
)
PEERS = (
    Peer("mosec", "waits 10 ms (default)", _MOSEC, raw_request("/inference"), {"PEER_WAIT_MS": "10"}),
    Peer("mosec", "waits 1 ms (its least)", _MOSEC, raw_request("/inference"), {"PEER_WAIT_MS": "1"}),
    Peer(
        "litserve",
        "no wait (default)",
        ("{scripts}/serve_litserve.py",),
        raw_request("/predict"),
        {"PEER_WAIT_MS": "0"},
    ),
    Peer(
        "ray_serve",
        "waits 10 ms (default)",
        ("{scripts}/serve_ray.py",),
        raw_request("/"),
        {"PEER_WAIT_MS": "10", **_RAY},
    ),
    Peer("ray_serve", "no wait", ("{scripts}/serve_ray.py",), raw_request("/"), {"PEER_WAIT_MS": "0", **_RAY}),
    Peer("triton", "no delay (default)", ("{scripts}/serve_triton.py",), triton_request),
    Peer("bentoml", "adaptive (default), JSON", _BENTOML, bentoml_request, {"BENTOML_DO_NOT_TRACK": "True"}),
)


def find_python() -> Path:
    """The Python of the peers' environment.

    Raises:
        FileNotFoundError: It was not made.
    """
    python = (ENVIRONMENT / "bin" / "python").absolute()
    if not python.exists():
        raise FileNotFoundError(f"expected {python}, but it is not there: call `make bench-peers`")
    return python


def measure_peer(
    peer: Peer, python: Path, folder: Path, profiles: Floats, expected: Floats, duration_s: float
) -> dict[str, Figures]:
    """Starts a peer, measures every load, and ends it.

    Returns:
        By load: "unary" (64 clients), "lone" (1 client), "bundle" (4 clients with bundles of 64), "python" (64 callers
        in one Python program).

    Raises:
        BrokenStateError, WrongAnswerError, OSError: It cannot be started, or answers wrongly.
    """
    port, grpc_port = free_port(), free_port()
    command = [str(python), *(part.format(port=port, scripts=SCRIPTS) for part in peer.command)]
    tree = ProcessTree(command, folder, _environment(python, folder, port, grpc_port) | dict(peer.environment))
    address = ("127.0.0.1", port)

    def clients(count: int, items: int) -> list[HttpExchange]:
        chosen = [profiles[:64] if items > 1 else profiles[i : i + 1] for i in range(count)]
        requests = [peer.make_request(each) for each in chosen]
        return [HttpExchange(each.path, each.body, each.headers, each.read_answer) for each in requests]

    def answers() -> bool:
        try:
            run_clients(address, clients(1, 1), 1, 10.0)
        except (OSError, WrongAnswerError):  # not there yet, or its worker is not: an open port is not readiness
            return False
        return True

    def measure(count: int, items: int = 1) -> Figures:
        exchanges = clients(count, items)
        run_clients(address, exchanges, None, WARM_S)
        check_answers(exchanges, [expected[:64] if items > 1 else expected[i : i + 1] for i in range(count)])
        before = tree.cpu_s()
        load = run_clients(address, clients(count, items), None, duration_s)
        return to_figures(load, tree.cpu_s() - before, items)

    try:
        wait_until(answers, tree, START_TIMEOUT_S, "an answer")
        figures = {"unary": measure(64), "lone": measure(1), "bundle": measure(4, 64)}
        request = peer.make_request(profiles[:1])
        return figures | {"python": _measure_python_clients(tree, python, folder, port, request, duration_s)}
    finally:
        tree.stop()


def check_answers(exchanges: Sequence[Exchange], expected: Sequence[Floats]) -> None:
    """Whether every client that was answered got what the model says; a slow server has not answered all of them yet.

    Raises:
        WrongAnswerError: One got something else, or none got anything.
    """
    answered = [pair for pair in zip(exchanges, expected, strict=True) if pair[0].answer]
    if not answered:
        raise WrongAnswerError("expected an answer while warming up, but got none")
    for exchange, values in answered:
        check_answer(exchange.answer, values)


def check_answer(content: bytes, expected: Floats) -> None:
    """Whether these bytes are what the model says.

    Raises:
        WrongAnswerError: They are not.
    """
    answer = np.frombuffer(content, np.float32)
    if answer.size != expected.size or not np.allclose(answer, expected.ravel(), atol=TOLERANCE):
        raise WrongAnswerError(f"expected {expected.ravel()[:4]}..., but got {answer[:4]}... ({answer.size} values)")


def _environment(python: Path, folder: Path, port: int, grpc_port: int) -> dict[str, str]:
    base = Path(sys.base_prefix) / "lib"
    return {
        "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(SCRIPTS),
        # pytriton's backend otherwise takes the system's libpython with this Python's library, and dies of it.
        "LD_LIBRARY_PATH": f"{base}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PEER_MODEL": str(folder / "model.onnx"),
        "PEER_PORT": str(port),
        "PEER_GRPC_PORT": str(grpc_port),
        "OMP_NUM_THREADS": "1",
    }


def _measure_python_clients(tree: ProcessTree, python: Path, folder: Path, port: int, request: Request,
                            duration_s: float) -> Figures:  # fmt: skip
    """64 callers in a user's Python program: aiohttp, one session."""
    body = folder / "body"
    body.write_bytes(request.body)
    url = f"http://127.0.0.1:{port}{request.path}"
    headers = json.dumps({"Content-Type": "application/octet-stream"} | request.headers)
    command = [str(python), str(SCRIPTS / "python_clients.py"), url, str(body), headers, "64", str(duration_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None and program.stdout is not None
        try:
            if program.stdout.readline() != "warm\n":
                raise WrongAnswerError("expected the Python program to get answers, but it ended: see above")
            before = tree.cpu_s()
            program.stdin.write("go\n")
            program.stdin.flush()
            told = json.loads(program.stdout.readline() or "null")
            cpu_s = tree.cpu_s() - before
        finally:
            program.kill()
    if told is None:
        raise WrongAnswerError("expected the Python program to get answers, but it ended: see above")
    latencies_ms = told["latencies_ms"]
    return to_figures(LoadFigures(len(latencies_ms), told["took_s"], latencies_ms, told["client_cpu_s"]), cpu_s)
