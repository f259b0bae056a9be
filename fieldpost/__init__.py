"""Fieldpost: observations of science instruments, carried from the field, and the predictions made of them.

The names below are imported when they are first used, and not before: a station imports `fieldpost.payload` on a
Raspberry Pi, and must not pay for gRPC and numpy with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fieldpost._version import __version__ as __version__

if TYPE_CHECKING:
    from fieldpost._answers import Answer as Answer
    from fieldpost._channel import Tls as Tls
    from fieldpost._outbox import Outbox as Outbox
    from fieldpost._outbox import new_epoch as new_epoch
    from fieldpost._sending import SendReport as SendReport
    from fieldpost._table import PredictionTable as PredictionTable
    from fieldpost._uploading import FileObservation as FileObservation
    from fieldpost.async_client import AsyncClient as AsyncClient
    from fieldpost.client import Client as Client
    from fieldpost.errors import BrokenStateError as BrokenStateError
    from fieldpost.errors import FieldpostError as FieldpostError
    from fieldpost.errors import InvalidObservationError as InvalidObservationError
    from fieldpost.errors import InvalidRequestError as InvalidRequestError
    from fieldpost.errors import NotAllowedError as NotAllowedError
    from fieldpost.errors import OfflineError as OfflineError
    from fieldpost.errors import OverloadedError as OverloadedError
    from fieldpost.errors import RejectedError as RejectedError
    from fieldpost.errors import TryAgainError as TryAgainError
    from fieldpost.errors import UnknownInstrumentError as UnknownInstrumentError
    from fieldpost.errors import UnknownModelError as UnknownModelError
    from fieldpost.errors import UnknownObservationError as UnknownObservationError


_HOMES = {
    "Answer": "fieldpost._answers",
    "AsyncClient": "fieldpost.async_client",
    "BrokenStateError": "fieldpost.errors",
    "Client": "fieldpost.client",
    "FieldpostError": "fieldpost.errors",
    "FileObservation": "fieldpost._uploading",
    "InvalidObservationError": "fieldpost.errors",
    "InvalidRequestError": "fieldpost.errors",
    "NotAllowedError": "fieldpost.errors",
    "OfflineError": "fieldpost.errors",
    "Outbox": "fieldpost._outbox",
    "OverloadedError": "fieldpost.errors",
    "PredictionTable": "fieldpost._table",
    "RejectedError": "fieldpost.errors",
    "SendReport": "fieldpost._sending",
    "Tls": "fieldpost._channel",
    "TryAgainError": "fieldpost.errors",
    "UnknownInstrumentError": "fieldpost.errors",
    "UnknownModelError": "fieldpost.errors",
    "UnknownObservationError": "fieldpost.errors",
    "new_epoch": "fieldpost._outbox",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "BrokenStateError",
    "Client",
    "FieldpostError",
    "FileObservation",
    "InvalidObservationError",
    "InvalidRequestError",
    "NotAllowedError",
    "OfflineError",
    "Outbox",
    "OverloadedError",
    "PredictionTable",
    "RejectedError",
    "SendReport",
    "Tls",
    "TryAgainError",
    "UnknownInstrumentError",
    "UnknownModelError",
    "UnknownObservationError",
    "__version__",
    "new_epoch",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'fieldpost' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
