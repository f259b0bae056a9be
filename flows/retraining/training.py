"""Runs a training as processes of their own, and sees to it that they end with the run that wanted them.

Where several train together torchrun starts them, and starts them again when one dies; they go on from the last
checkpoint, as does the next run after a training that was ended.
Knows neither what is trained nor Prefect.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from fieldpost.errors import BrokenStateError

RESTARTS_MAX = 2
STOP_WAIT_S = 30.0
LINES_KEPT = 20
ENVIRONMENT: Mapping[str, str] = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else restarted processes may read the addresses of dead ones and hang
    "PYTHONUNBUFFERED": "1",
}


def run_training(arguments: Sequence[str], *, processes: int, threads: int, on_line: Callable[[str], None]) -> None:
    """Runs a training to its end.

    Args:
        arguments: `-m`, the module, and its arguments.
        processes: How many train together.
        threads: Threads of each.
        on_line: Told each line that it writes.

    Raises:
        BrokenStateError: It failed; the message has its last lines.
    """
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    restarting = ["--max-restarts", str(RESTARTS_MAX)]
    # alone it needs nobody who brings processes together, and says itself what is wrong
    how = [*together, *restarting, *arguments] if processes > 1 else arguments
    run_command([sys.executable, *how], {"OMP_NUM_THREADS": str(threads), **ENVIRONMENT}, on_line=on_line)


def run_command(command: Sequence[str], environment: Mapping[str, str], *, on_line: Callable[[str], None]) -> None:
    """Runs a command that ends when this process does, or when on_line raises.

    Raises:
        BrokenStateError: It failed; the message has its last lines.
    """
    kept: deque[str] = deque(maxlen=LINES_KEPT)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.retraining.child", str(os.getpid()), *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            kept.append(line.rstrip())
            on_line(kept[-1])
        status = process.wait()
    finally:
        _stop(process)
    if status != 0:
        raise BrokenStateError(
            f"expected {' '.join(command[:6])} … to succeed, but it ended with status {status}: " + " | ".join(kept),
            hint="the lines before this one say why; run again to go on from the last checkpoint",
        )


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends the command and what it has started, and waits for it."""
    if process.poll() is None:
        process.terminate()  # torchrun ends its processes then
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
