"""The floor of gRPC in Python: a grpc.aio server that gives each request back, under the load of single requests.

It parses nothing, asks nobody, and has no model. What our plain calls cost beyond it is ours; the rest is gRPC's, and
the reason for the SDK to let requests travel together on a stream.

    python -m benchmarks.inference_echo PORT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc

from benchmarks.inference_load import WrongAnswerError, run_clients
from benchmarks.inference_peers import WARM_S
from benchmarks.inference_protocols import GrpcExchange
from benchmarks.inference_servers import Figures, ProcessTree, to_figures, wait_until
from demo.processes import free_port, is_listening

SERVICE, METHOD = "benchmarks.Echo", "Echo"
START_TIMEOUT_S = 30.0
CODE_FOLDER = Path(__file__).resolve().parents[1]


def measure_echo(folder: Path, payloads: list[bytes], duration_s: float) -> dict[str, Figures]:
    """Starts it, asks it with as many callers as there are payloads ("unary") and with one ("lone"), and ends it.

    Raises:
        BrokenStateError, WrongAnswerError: It cannot be started, or does not give back what it got.
    """
    port = free_port()
    tree = ProcessTree(
        [sys.executable, "-m", "benchmarks.inference_echo", str(port)], folder, {"PYTHONPATH": str(CODE_FOLDER)}
    )
    try:
        wait_until(lambda: is_listening(port), tree, START_TIMEOUT_S, "an open port")
        return {
            "unary": _measure(tree, port, payloads, duration_s),
            "lone": _measure(tree, port, payloads[:1], duration_s),
        }
    finally:
        tree.stop()


def _measure(tree: ProcessTree, port: int, payloads: list[bytes], duration_s: float) -> Figures:
    def exchanges() -> list[GrpcExchange]:
        return [GrpcExchange(f"/{SERVICE}/{METHOD}", payload) for payload in payloads]

    warm = exchanges()
    run_clients(("127.0.0.1", port), warm, None, WARM_S)
    for exchange, payload in zip(warm, payloads, strict=True):
        if exchange.answer not in (payload, b""):
            raise WrongAnswerError(f"expected {len(payload)} bytes back, but got {len(exchange.answer)}")
    before = tree.cpu_s()
    load = run_clients(("127.0.0.1", port), exchanges(), None, duration_s)
    return to_figures(load, tree.cpu_s() - before)


async def serve(port: int) -> None:
    """Gives back, until it is killed."""

    async def echo(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    server = grpc.aio.server()
    server.add_registered_method_handlers(SERVICE, {METHOD: grpc.unary_unary_rpc_method_handler(echo)})
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
