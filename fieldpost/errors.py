"""The errors that Fieldpost raises, and what a caller can do about each.

    FieldpostError
    ├── RejectedError             sending or asking the same again cannot help
    │   ├── InvalidObservationError
    │   ├── UnknownInstrumentError
    │   ├── UnknownObservationError
    │   ├── UnknownModelError
    │   ├── NotAllowedError       a caller without the right certificate or token
    │   └── InvalidRequestError
    ├── TryAgainError             the same may succeed later
    │   ├── OfflineError
    │   └── OverloadedError
    └── BrokenStateError          ours to fix: a corrupt file, a bad checkpoint

Callers branch on these types, never on the text.
"""

from __future__ import annotations


class FieldpostError(Exception):
    """Base of all errors of this project.

    Args:
        message: What was expected, what came, and where.
        hint: What a person can do about it; empty where there is nothing to add.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RejectedError(FieldpostError):
    """The other side refused, and will refuse the same again."""


class InvalidObservationError(RejectedError):
    """The bytes or the header of an observation break a rule."""


class UnknownInstrumentError(RejectedError):
    """The instrument is not registered at the server."""


class UnknownObservationError(RejectedError):
    """The server holds no such observation."""


class UnknownModelError(RejectedError):
    """The server has no such analysis or model version."""


class NotAllowedError(RejectedError):
    """Whoever asks is not known, or may not do this."""


class InvalidRequestError(RejectedError):
    """A request, a setting or an argument makes no sense."""


class TryAgainError(FieldpostError):
    """The same may succeed later."""


class OfflineError(TryAgainError):
    """The other side could not be reached in time."""


class OverloadedError(TryAgainError):
    """The other side has too much to do."""


class BrokenStateError(FieldpostError):
    """Something of our own is damaged: a file, a database, a checkpoint."""
