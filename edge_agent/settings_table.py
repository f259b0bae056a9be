"""From a table of TOML to a dataclass, checked: types, bounds, unknown keys. Knows no particular setting."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from fieldpost.errors import InvalidRequestError

T = TypeVar("T")

_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    Path: "path",
    datetime: "time",
    tuple[str, ...]: "list of text",
}


def about(description: str, *, minimum: float | None = None, is_remote: bool = False) -> dict[str, Any]:
    """Metadata of a setting's dataclass field.

    Args:
        description: What it is for, in a sentence.
        minimum: Its lower bound; None for none.
        is_remote: Whether the server may change it while the agent runs.
    """
    return {"description": description, "minimum": minimum, "is_remote": is_remote}


def describe(owner: type, setting: dataclasses.Field[Any]) -> tuple[str, str, str]:
    """(type, default, description) of a setting; "" for no default."""
    hint = typing.get_type_hints(owner)[setting.name]
    default = "" if setting.default in (dataclasses.MISSING, None) else str(setting.default)
    return _type_name(hint), default, setting.metadata["description"]


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(typing.get_args(hint))
    return _TYPE_NAMES.get(_without_none(hint), str(hint))


def _is_scalar(hint: Any) -> bool:
    kind = _without_none(hint)
    return typing.get_origin(kind) is Literal or kind in _TYPE_NAMES


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def from_environment(owner: type, environment: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """The settings that stand in the environment as <prefix><KEY>; a list of text has commas.

    Raises:
        InvalidRequestError: One is unknown, or not a number where it must be one.
    """
    hints = {key: hint for key, hint in typing.get_type_hints(owner).items() if _is_scalar(hint)}
    found: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(prefix):
            continue
        key = name.removeprefix(prefix).lower()
        if key not in hints:
            raise _unknown(name, [f"{prefix}{known.upper()}" for known in hints])
        kind = _without_none(hints[key])
        if kind in (int, float):
            try:
                found[key] = float(text) if kind is float else int(text)
            except ValueError as error:
                raise InvalidRequestError(f"expected {name} to be a {_type_name(kind)}, but got {text!r}") from error
        else:
            found[key] = text.split(",") if kind == tuple[str, ...] else text
    return found


def make(owner: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Builds a settings dataclass of checked values.

    Args:
        owner: The dataclass.
        values: By key, as tomllib gives them; values of other types than text, numbers, paths, times and lists of text
            are taken as they are.
        where: Stands before the keys in messages.

    Raises:
        InvalidRequestError: A setting is unknown, missing, of another type, or out of bounds.
    """
    fields = {f.name: f for f in dataclasses.fields(owner)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(owner)
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise _unknown(f"{where}{key}", [f"{where}{known}" for known in fields])
        checked[key] = _convert(f"{where}{key}", value, hints[key], fields[key].metadata["minimum"])
    for key, setting in fields.items():
        has_default = setting.default is not dataclasses.MISSING or setting.default_factory is not dataclasses.MISSING
        if key not in checked and not has_default:
            about = setting.metadata["description"]
            raise InvalidRequestError(f"expected a setting {where}{key}, but there is none: {about}")
    return owner(**checked)


def _convert(key: str, value: Any, hint: Any, minimum: float | None) -> Any:
    """The value as the setting's type, or an error that says what was expected."""
    kind = _without_none(hint)
    wrong = InvalidRequestError(f"expected {key} to be a {_type_name(hint)}, but got {value!r}")
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise wrong
        return value
    if kind not in _TYPE_NAMES:
        return value
    if kind == tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
            raise wrong
        return tuple(value)
    if kind is datetime:
        return _to_time(key, value)
    accepted: dict[Any, tuple[type, ...]] = {Path: (str,), float: (int, float), int: (int,), str: (str,)}
    if not isinstance(value, accepted[kind]) or isinstance(value, bool):
        raise wrong
    converted = kind(value)
    if isinstance(converted, float) and not math.isfinite(converted):
        raise wrong
    if minimum is not None and converted < minimum:
        raise InvalidRequestError(f"expected {key} to be at least {minimum:g}, but got {value!r}")
    return converted


def _to_time(key: str, value: Any) -> datetime:
    """TOML has times and dates of its own; text is taken too. A time without a zone is UTC."""
    try:
        time = datetime.fromisoformat(value.isoformat() if isinstance(value, date) else value)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"expected {key} to be a time such as 2025-06-01T00:00:00Z, but got {value!r}"
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def make_one(owner: type, setting: dataclasses.Field[Any], value: Any) -> Any:
    """The checked value of one setting.

    Raises:
        InvalidRequestError: It is of another type, or out of bounds.
    """
    return _convert(setting.name, value, typing.get_type_hints(owner)[setting.name], setting.metadata["minimum"])


def _unknown(key: str, known: list[str]) -> InvalidRequestError:
    import difflib  # only for those who mistype: memory is short on a Pi

    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)
    return InvalidRequestError(f"expected a known setting, but got {key}", hint=f"did you mean {nearest[0]}?")
