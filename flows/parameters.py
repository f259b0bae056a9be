"""What the forms of several flows have in common: the same question is asked in the same words everywhere.

Knows no flow and no Prefect, whose page draws its forms from such fields.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fieldpost.errors import InvalidRequestError
from fieldpost.names import NAME_PATTERN

Params = TypeVar("Params", bound=BaseModel)


def _ask_plainly(schema: dict[str, Any]) -> None:
    """Has the page draw one plain field for what may be left empty, instead of a choice of two types.

    Prefect takes null for a property that is not required and has no default.
    """
    for name, asked in schema["properties"].items():
        choices = [each for each in asked.get("anyOf", ()) if each != {"type": "null"}]
        if len(choices) != 1 or len(choices) == len(asked["anyOf"]):
            continue
        plain = {**choices[0], **{key: value for key, value in asked.items() if key not in ("anyOf", "default")}}
        if "pattern" in plain:  # an emptied field comes as an empty text
            plain["pattern"] = f"^$|{plain['pattern']}"
        schema["properties"][name] = plain


class Form(BaseModel):
    """What a flow asks a person. A question that is left empty has its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_ask_plainly)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_empty(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value not in ("", None)}


Station = Annotated[
    str | None,
    Field(
        pattern=f"^{NAME_PATTERN.pattern}$",
        title="Station",
        description="Only this station; without it, all.",
    ),
]
Instrument = Annotated[
    str | None,
    Field(
        pattern=f"^{NAME_PATTERN.pattern}$",
        title="Instrument",
        description="Only instruments of this name; without it, all.",
    ),
]
FirstDay = Annotated[date, Field(title="First day", description="UTC day of measure time.")]
LastDay = Annotated[date, Field(title="Last day", description="UTC day of measure time; it is included.")]
SettingsFile = Annotated[
    Path | None,
    Field(
        title="Settings file",
        description="The server's TOML settings; without it, the environment (FIELDPOST_...) and the defaults.",
    ),
]


def make_params(model: type[Params], **given: object) -> Params:
    """Parameters from a command line.

    Args:
        model: What a flow takes.
        given: What was given, by name; the others have the model's defaults.

    Raises:
        InvalidRequestError: Some are wrong; the message names each.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or model.__name__}: {each['msg']}" for each in error.errors()
        )
        raise InvalidRequestError(f"the parameters are wrong: {wrong}", hint="see --help") from error
