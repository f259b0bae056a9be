"""The console script fieldpost-server: runs the server where it can be found. Knows nothing of the server itself."""

from __future__ import annotations

import importlib.util
import runpy
import sys


def main() -> int:
    """Runs `python -m server`; 2 where there is none to run."""
    if not _has_server():
        sys.stderr.write(
            "fieldpost-server: the server runs from a checkout or an image, not from the wheel\n"
            "clone the repository and call `make up` there, or run the image of deploy/\n"
        )
        return 2
    sys.argv[0] = "fieldpost-server"
    runpy.run_module("server", run_name="__main__", alter_sys=False)
    return 0


def _has_server() -> bool:
    try:
        return importlib.util.find_spec("server.__main__") is not None
    except ModuleNotFoundError:  # no `server` at all, or a module of that name that is no package
        return False
