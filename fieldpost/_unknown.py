"""What "not found" means depends on what was asked for: says so. Knows no status codes."""

from __future__ import annotations

from fieldpost.errors import FieldpostError, UnknownInstrumentError, UnknownModelError, UnknownObservationError

UNKNOWN_HINTS: dict[type[FieldpostError], str] = {
    UnknownModelError: "check analysis and version; `fieldpost models list` shows those there are",
    UnknownObservationError: "check the id; `fieldpost observations` lists what is held",
}


def as_unknown(error: FieldpostError, unknown: type[FieldpostError]) -> FieldpostError:
    """The same error, of the type that tells what is not there."""
    if not isinstance(error, UnknownInstrumentError) or unknown not in UNKNOWN_HINTS:
        return error
    return unknown(str(error), hint=UNKNOWN_HINTS[unknown])
