"""What a child process gives up before it touches a model. Linux; needs nothing but the standard library."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

NICENESS = 10
DATA_BYTES_MAX = 256 << 20
"""Of private memory. RLIMIT_DATA and not RLIMIT_AS: libraries that are only mapped cost the station nothing, and
LiteRT maps many. The shipped model needs 60 MB of it."""
OPEN_FILES_MAX = 64
DEAD_AFTER_S = 30.0
"""A child whose agent was killed while it was in an endless loop would run for ever; the kernel ends it after this."""


def confine() -> None:
    """Makes this process the first that the kernel slows down or kills, and keeps it from writing files.

    Raises:
        OSError: The system lets no limit be set; then no model is to run.
    """
    with contextlib.suppress(OSError):  # not everywhere allowed, and only a preference
        os.nice(NICENESS)
    with contextlib.suppress(OSError):  # likewise
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _limit(resource.RLIMIT_DATA, DATA_BYTES_MAX)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)  # a core file would fill the SD card
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which then closes the pipe
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (allowed, allowed))


def take_standard_output() -> int:
    """A descriptor for answers; what libraries print goes where errors go instead of in between."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def set_alarm(after_s: float) -> None:
    """Lets the kernel end this process after so many seconds, whatever it does then; 0 to call it off."""
    signal.setitimer(signal.ITIMER_REAL, after_s)
