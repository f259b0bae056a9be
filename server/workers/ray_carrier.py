"""A driver of Ray that carries frames between the server's socket and one actor, which hosts a worker process.

The actor is never restarted by Ray, and nothing is sent twice: whatever goes wrong ends this process, with the reason
as its last words, and the actor ends with it. The code of `server` and `fieldpost` goes to the nodes from here; the
packages that it needs must be installed there. Ray Client is not used: its proxy would be one more process to lose.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray

from server.workers.fate import die_with
from server.workers.protocol import WorkerKind
from server.workers.worker_process import CODE_FOLDER, WorkerProcess, WorkerSpec
from server.workers.worker_wire import Frame, frame_parts, read_frame, write_frame

CONNECT_TIMEOUT_S = 10.0


class Carrier:
    """The actor: one worker process, and what it says."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._answers: queue.SimpleQueue[Frame | str] = queue.SimpleQueue()
        self._process = WorkerProcess(spec, self._answers.put, self._answers.put)

    def live(self) -> Iterator[tuple[bytes, bytes]]:
        """Header and body of each answer, until the process ends; then raises why."""
        while isinstance(answer := self._answers.get(), Frame):
            yield bytes(answer.header), bytes(answer.body)
        raise RuntimeError(answer)

    def send(self, frame: bytes) -> None:
        """Passes a frame to the process."""
        self._process.send([frame])


def start_actor(spec: WorkerSpec) -> Any:
    """Asks the cluster for an actor; it may have to wait for room."""
    is_on_gpu = spec.device != "cpu"
    options: dict[str, Any] = {
        "num_gpus": 1 if is_on_gpu else 0,
        "num_cpus": 1 if is_on_gpu else spec.threads,
        "max_restarts": 0,
        "concurrency_groups": {"send": 1},  # beside live; one thread, so that the order stays
        "scheduling_strategy": "SPREAD",
    }
    if spec.memory_bytes and spec.kind == WorkerKind.BUILT_IN:  # of a stranger it is a bound, which he seldom needs
        options["memory"] = spec.memory_bytes
    # Ray shows an actor the GPU that it is given, and no other
    there = WorkerSpec(spec.kind, "cuda:0" if is_on_gpu else "cpu", spec.threads, spec.memory_bytes)
    return ray.remote(**options)(Carrier).remote(there)


def carry(connection: socket.socket, actor: Any) -> str:
    """Carries frames both ways until one side ends; then says why."""
    threading.Thread(target=_send_all, args=(connection, actor), name="carrier-send", daemon=True).start()
    try:
        for answer in actor.live.options(num_returns="streaming").remote():
            header, body = ray.get(answer)
            write_frame(connection, frame_parts(header, [body]))
    except ray.exceptions.RayTaskError as error:
        return str(error.cause)
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())
    return "the actor ended"


def _send_all(connection: socket.socket, actor: Any) -> None:
    with contextlib.suppress(OSError):
        while (frame := read_frame(connection)) is not None:
            parts = frame_parts(bytes(frame.header), [frame.body])
            actor.send.options(concurrency_group="send").remote(b"".join(parts))
    os._exit(0)  # the server is gone


def _check_head(address: str) -> None:
    """Ray itself tries for minutes, and then says little."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        sys.exit(f"expected the head of a Ray cluster at {address}, but got: {error}")


def main() -> None:
    """Runs the command line that server.workers.worker_process gives."""
    file_number, parent_id, kind, device, threads, memory_bytes, address = sys.argv[1:]
    die_with(int(parent_id))
    code = {"py_modules": [str(CODE_FOLDER / name) for name in ("server", "fieldpost")], "excludes": ["__pycache__"]}
    _check_head(address)
    ray.init(address=address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    with socket.socket(fileno=int(file_number)) as connection:
        reason = carry(connection, start_actor(WorkerSpec(kind, device, int(threads), int(memory_bytes))))
        print(reason, file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)  # at once: the cluster may be gone, and then leaving it in good order takes a minute


if __name__ == "__main__":
    main()
