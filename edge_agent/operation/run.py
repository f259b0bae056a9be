"""Runs the station in this process, until a signal. Imports nothing that only other commands need."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal

from edge_agent.operation.privileges import become_owner_of
from edge_agent.settings import load_settings
from fieldpost.errors import InvalidRequestError

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def run_agent(options: argparse.Namespace) -> int:
    """The command `run`."""
    settings = load_settings(options.config, os.environ)
    try:
        from edge_agent.assembly import build_agent
    except ModuleNotFoundError as error:
        message = f"expected what a station needs to be installed, but there is no module {error.name}"
        raise InvalidRequestError(message, hint="pip install 'fieldpost[edge]'") from error
    from fieldpost.logs import configure_logging

    configure_logging(settings.log_level)
    become_owner_of(settings.buffer_folder)
    agent = build_agent(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    _save_memory()
    agent.run(exit_when_delivered=options.exit_when_delivered)
    return 0


def _save_memory() -> None:
    """Gives back what only the start needed, and keeps bundles from leaving holes behind. Only glibc can, and may."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt"):
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 4 << 20), (_M_TRIM_THRESHOLD, 256 << 10)):
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
