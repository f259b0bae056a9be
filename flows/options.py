"""Command-line options from the parameters of a flow: what its form asks, a terminal asks in the same words.

Knows no flow; what is given is checked by the parameters themselves.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def add_options(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """An option for each parameter; those that are not given are left out of the result."""
    for name, field in model.model_fields.items():
        flag, given = f"--{name.replace('_', '-')}", _list_types(field.annotation)
        common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _describe(field)}
        choices = [choice for each in given for choice in _list_choices(each)]
        if bool in given:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif any(_is_many(each) for each in given):
            parser.add_argument(flag, action="append", metavar="TEXT", **common)
        elif choices:
            parser.add_argument(flag, choices=choices, **common)
        else:
            metavar, read = _name_type(given)
            parser.add_argument(flag, metavar=metavar, type=read, **common)


def read_options(options: argparse.Namespace, model: type[BaseModel]) -> dict[str, object]:
    """What was given, by the parameters' names."""
    return {name: value for name, value in vars(options).items() if name in model.model_fields}


def parse_day(text: str) -> date:
    """A day as ISO 8601 has it."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a day as YYYY-MM-DD, but got {text!r}") from error


def _describe(field: FieldInfo) -> str:
    return f"{field.title}: {field.description}".replace("%", "%%")


def _list_types(annotation: Any) -> list[Any]:
    """The alternatives of `A | B | None` without the None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _list_types(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [each for part in get_args(annotation) for each in _list_types(part)]
    return [] if annotation is types.NoneType else [annotation]


def _list_choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(each.value) for each in annotation]
    return []


def _is_many(annotation: Any) -> bool:
    return (get_origin(annotation) or annotation) in (tuple, list, set, frozenset)


def _name_type(given: list[Any]) -> tuple[str, Callable[[str], object]]:
    if date in given:
        return "YYYY-MM-DD", parse_day
    if int in given or float in given:
        return "N", str
    return ("FILE", str) if Path in given else ("TEXT", str)
