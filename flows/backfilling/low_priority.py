"""Worker processes that compute only with what nobody else wants: the kernel sees to it, not our event loop.

A worker starts as any other, which costs a second or two, and is lowered when it is ready: behind all others from the
first moment, it would not start within any patience on a busy machine. Only workers are lowered: they hold no lock.
Whoever writes to the database holds one that live work waits for, and must not be the one that starves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import psutil

from server.workers.supervised_worker import Ended, Report
from server.workers.worker_process import WorkerProcess, WorkerSpec
from server.workers.worker_wire import Frame, Ready, decode_answer

NICE_MAX = 19


class LowPriorityEngine:
    """Processes on this machine that yield to all others."""

    name = "backfill"

    def start_life(self, spec: WorkerSpec, report: Callable[[Report], None]) -> WorkerProcess:
        """Starts a process, and lowers it when it is ready."""
        process_id: Future[int] = Future()

        def on_frame(frame: Frame) -> None:
            answer = decode_answer(frame)
            if isinstance(answer, Ready):
                lower(process_id.result())
            report(answer)

        life = WorkerProcess(spec, on_frame, lambda reason: report(Ended(reason)))
        process_id.set_result(life.process_id)
        return life

    def close(self) -> None:
        """There is nothing to close."""


def lower(process_id: int) -> None:
    """Lowers all threads of a process, and so those that they will start; what the kernel refuses stays as it is."""
    with suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{process_id}/task").iterdir():
            _lower_thread(int(thread.name))
    # Each worker has a session of its own, and where the kernel shares time out among sessions first, a low priority
    # within one of them counts for nothing.
    with suppress(OSError):
        Path(f"/proc/{process_id}/autogroup").write_text(str(NICE_MAX))


def _lower_thread(thread_id: int) -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread_id, NICE_MAX)
    with suppress(OSError):
        os.sched_setscheduler(thread_id, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError, psutil.Error):
        psutil.Process(thread_id).ionice(psutil.IOPRIO_CLASS_IDLE)
