"""The worker process: starts with its device, confines itself where it runs strangers' models, and serves its socket.

When the server is gone the socket ends, and so does the process; one that hangs then is killed by the kernel.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys

from server.analyses import Analysis, load_analysis
from server.workers.fate import die_with
from server.workers.jobs import ModelPackage
from server.workers.protocol import WorkerKind
from server.workers.worker import DeviceAnalysis, Loader, WorkerLoop
from server.workers.worker_wire import Answer, Ready, encode_answer, read_frame, write_frame


def run_worker(connection: socket.socket, kind: WorkerKind, device: str, threads: int, memory_bytes: int) -> None:
    """Serves until the socket ends."""
    start = _start_built_in if kind is WorkerKind.BUILT_IN else _start_onnx
    ready, load = start(device, threads, memory_bytes)

    def send(answer: Answer) -> None:
        write_frame(connection, encode_answer(answer))

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        send(ready)
        WorkerLoop(lambda: read_frame(connection), send, load, is_ahead=device != "cpu").run()


def _start_built_in(device: str, threads: int, memory_bytes: int) -> tuple[Ready, Loader]:
    import torch  # here, so that importing this module for its types costs nothing

    torch.set_num_threads(threads)
    device_name = torch.cuda.get_device_name(device) if device != "cpu" else device  # fails here where there is none
    if device != "cpu":
        torch.cuda.set_device(device)
    _limit_memory(memory_bytes)

    def load(package: ModelPackage) -> Analysis:
        weights = package.content if package.is_trained else b""
        analysis = load_analysis(package.key.analysis, package.key.version, weights)
        if device != "cpu" and isinstance(analysis, DeviceAnalysis):
            analysis.to(device)
        return analysis

    return Ready(device_name), load


def _start_onnx(device: str, threads: int, memory_bytes: int) -> tuple[Ready, Loader]:
    from server.models.onnx_analysis import load_onnx
    from server.models.sandbox import confine

    confinements = confine(memory_bytes=memory_bytes)
    return Ready(device, confinements), lambda package: load_onnx(package, threads=threads, device=device)


def _limit_memory(memory_bytes: int) -> None:
    """Bounds the process's data, so that an allocation fails instead of the machine.

    RLIMIT_DATA, not RLIMIT_AS: the latter also counts address space that is only reserved, of which CUDA and thread
    arenas take more than there is memory.
    """
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    file_number, parent_id, kind, device, threads, memory_bytes = sys.argv[1:]
    die_with(int(parent_id))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends the socket
    run_worker(socket.socket(fileno=int(file_number)), WorkerKind(kind), device, int(threads), int(memory_bytes))
