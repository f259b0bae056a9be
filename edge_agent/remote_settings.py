"""Settings that were changed from afar: they stand over the settings file, and cannot cut the station off. Pure.

Kept in the buffer's folder as `overrides.json`.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from typing import Any

from edge_agent.settings import AgentSettings
from edge_agent.settings_table import make_one
from fieldpost.errors import BrokenStateError, InvalidRequestError

OVERRIDES_FILE = "overrides.json"

Overrides = Mapping[str, str]
"""Setting -> its value as in the settings file."""

_FIELDS = {field.name: field for field in dataclasses.fields(AgentSettings)}
REMOTE_KEYS = tuple(name for name, field in _FIELDS.items() if field.metadata["is_remote"])


def check_change(overrides: Overrides, key: str, value: str) -> Overrides:
    """The overrides with a setting changed.

    Args:
        overrides: Those of now.
        key: Name of the setting.
        value: Its value as in the settings file; empty to go back to the settings file.

    Raises:
        InvalidRequestError: The setting cannot be changed from afar, or the value makes no sense.
    """
    if key not in REMOTE_KEYS:
        raise InvalidRequestError(
            f"expected a setting that may be changed from afar ({', '.join(REMOTE_KEYS)}), but got {key[:60]!r}"
        )
    if value:
        _value_of(key, value)
    changed = {**overrides, key: value}
    return {name: text for name, text in changed.items() if text}


def with_overrides(settings: AgentSettings, overrides: Overrides) -> AgentSettings:
    """The settings with the overrides over them; those that make no sense any more are left out."""
    values = {}
    for key, value in overrides.items():
        try:
            values[key] = _value_of(key, value)
        except InvalidRequestError:
            continue
    return dataclasses.replace(settings, **values)


def overrides_from_json(content: bytes) -> Overrides:
    """Reads overrides.json.

    Raises:
        BrokenStateError: It is no table of texts.
    """
    try:
        return {str(key): str(value) for key, value in json.loads(content).items() if key in REMOTE_KEYS}
    except (ValueError, AttributeError, RecursionError) as error:
        raise BrokenStateError(f"expected the changed settings, but got {content[:60]!r}: {error}") from error


def _value_of(key: str, value: str) -> Any:
    """The value as its type. Text needs no quotes here."""
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise InvalidRequestError(f"expected a value for {key}, but got {value[:60]!r}") from error
    return make_one(AgentSettings, _FIELDS[key], parsed)
