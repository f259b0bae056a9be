"""The child process that runs the model: python -m edge_agent.quick_look.worker <package>. The agent starts it.

Says on its standard output once that it is ready, then answers each telegram that it reads from its standard input;
ends when that is closed. Knows no budget: whoever is late is killed.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.quick_look.confinement import DEAD_AFTER_S, confine, set_alarm, take_standard_output
from edge_agent.quick_look.messages import MessageBuffer, pack
from edge_agent.quick_look.package import Package, read_package
from fieldpost.errors import FieldpostError, InvalidObservationError

if TYPE_CHECKING:
    from edge_agent.quick_look.estimator import Estimator

READ_BYTES = 1 << 20


def main() -> None:
    """Runs until standard input is closed."""
    answers = take_standard_output()
    try:
        confine()
    except OSError as error:
        _write(answers, pack({"error": "limits", "detail": f"expected to limit the model's process, but got {error}"}))
        return
    set_alarm(2 * DEAD_AFTER_S)  # a slow SD card needs its time
    try:
        package = read_package(Path(sys.argv[1]).read_bytes())
        estimator = _load(package)
    except ImportError as error:
        _write(answers, pack({"error": "install", "detail": f"expected {error.name} to be installed, but it is not"}))
        return
    except (FieldpostError, OSError, MemoryError) as error:
        _write(answers, pack({"error": "package", "detail": str(error) or type(error).__name__}))
        return
    set_alarm(0)
    _write(answers, pack({"model": package.label, "sha256": package.sha256}))
    buffer = MessageBuffer()
    while content := os.read(0, READ_BYTES):
        buffer.feed(content)
        while (message := buffer.next()) is not None:
            for telegram in message[1]:
                set_alarm(DEAD_AFTER_S)
                answer = _answer(estimator, telegram)
                set_alarm(0)
                _write(answers, pack(answer))


def _load(package: Package) -> Estimator:
    """The model, after one run: the first takes longer than all others, and belongs to the start."""
    import numpy as np

    from edge_agent.quick_look.estimator import Estimator, NotFiniteError
    from edge_agent.quick_look.manifest import CHANNELS

    estimator = Estimator(package)
    with suppress(NotFiniteError):  # of an empty profile; what counts is what it says of real ones
        estimator.run(np.zeros((1, len(CHANNELS), package.manifest.grid.gate_count), np.float32))
    return estimator


def _answer(estimator: Estimator, telegram: bytes) -> dict[str, Any]:
    from edge_agent.quick_look.estimator import NotFiniteError

    start_s = time.perf_counter()
    try:
        estimate = estimator.estimate(telegram)
    except NotFiniteError as error:
        return {"fault": str(error)}
    except InvalidObservationError as error:
        return {"undecodable": str(error)}
    duration_ms = (time.perf_counter() - start_s) * 1000
    return {"quality": estimate.quality, "height_m": estimate.height_m, "duration_ms": duration_ms}


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
