"""Runs the station in this process, until a signal. Imports nothing that only other commands need."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal

from edge_agent.operation.privileges import become_owner_of
from edge_agent.settings import load_settings
from fieldpost.errors import InvalidRequestError


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
    _give_memory_back()
    agent.run(exit_when_delivered=options.exit_when_delivered)
    return 0


def _give_memory_back() -> None:
    """What the start needed and nobody needs any more, about half a megabyte; only glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
