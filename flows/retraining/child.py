"""Becomes another command that the kernel ends together with the process that wanted it, however that one ends.

    python -m flows.retraining.child PARENT COMMAND...

A hook between fork and exec would do the same, but may hang in a process with threads, as one with Prefect is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Becomes the command, unless the parent has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == parent:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
    sys.exit(1)
