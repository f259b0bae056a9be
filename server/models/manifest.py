"""The manifest of a user's model: what goes in, what comes out, declared and never coded. Knows no ONNX and no image.

It is TOML that a person writes; docs/models.md explains it with an example.
"""

from __future__ import annotations

import math
import re
import tomllib
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fieldpost.errors import InvalidRequestError
from fieldpost.names import NAME_PATTERN

MANIFEST_CHARACTERS_MAX = 1024 * 1024
CACHED_CHARACTERS_MAX = 16 * 1024
"""Longer manifests are read anew each time: a few hundred of them would fill the memory."""
KEY_PARTS_MAX = 16
"""Of a dotted key. The parser's time grows with their square: a megabyte of them would take hours."""
STRINGS_AND_COMMENTS = re.compile(
    r'"""(?>\\.?|[^\\])*?(?:"{3,5}|\Z)|"(?>\\.|[^"\\\n])*+"|'
    r"'''.*?(?:'{3,5}|\Z)|'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)
ELEMENTS_MAX = 256 * 1024 * 1024
"""Numbers in one input at most."""

Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN.pattern}$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,99}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.+@-]{1,63}$")]
"""A word, as CF's flag_meanings has them: they are separated by blanks."""
Unit = Annotated[str, StringConstraints(pattern=r"^[ -~µ°]{1,63}$")]
Side = Annotated[int, Field(ge=1, le=16384)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

DTypeName = Literal[
    "float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"
]


class Declared(BaseModel):
    """What all parts of a manifest have in common: nothing beyond what is named here."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Resize(Declared):
    """To which size an image is brought."""

    width: Side = Field(description="Columns afterwards.")
    height: Side = Field(description="Rows afterwards.")
    method: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = Field(
        default="bilinear", description="How new pixels are made of old ones."
    )
    fit: Literal["stretch", "cover", "contain"] = Field(
        default="stretch",
        description="stretch: exactly this size, whatever becomes of the shape; cover: keeps the shape and cuts off "
        "what is too much, evenly; contain: keeps the shape and fills up with black, evenly.",
    )


class Crop(Declared):
    """What is cut out of the middle of an image, after resizing."""

    width: Side = Field(description="Columns.")
    height: Side = Field(description="Rows.")


class Decode(StrEnum):
    """How the instrument's bytes become numbers."""

    IMAGE = "image"
    TENSOR = "tensor"
    NPY = "npy"


class InputDeclaration(Declared):
    """What goes in: how payloads become the model's one input."""

    decode: Decode = Field(
        description="image: PNG, JPEG, TIFF or BMP; tensor: the bare numbers, little-endian; npy: a NumPy file."
    )
    name: str = Field(default="", max_length=255, description="The ONNX input; may be left out where there is one.")
    stored_dtype: DTypeName | None = Field(
        default=None, description="Type of the numbers in the payload; for tensor and npy."
    )
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), max_length=7, description="Shape of one payload, without the batch axis; for tensor and npy."
    )
    colour: Literal["rgb", "grey"] = Field(default="rgb", description="Channels of the model; for image.")
    resize: Resize | None = Field(default=None, description="Size that images are brought to; for image.")
    crop: Crop | None = Field(default=None, description="Cut out of the middle after resizing; for image.")
    layout: Literal["nchw", "nhwc"] = Field(default="nchw", description="Order of the axes; for image.")
    scale: Number = Field(default=1.0, description="Each number is multiplied by this first.")
    offset: Number = Field(default=0.0, description="This is added next.")
    mean: tuple[Number, ...] = Field(
        default=(), max_length=3, description="This is subtracted next: one number, or one for each channel."
    )
    std: tuple[Positive, ...] = Field(
        default=(), max_length=3, description="This divides last: one number, or one for each channel."
    )
    dtype: DTypeName = Field(default="float32", description="Type of the model's input.")

    @property
    def channel_count(self) -> int:
        """Channels of an image."""
        return 3 if self.colour == "rgb" else 1

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """Shape of one item as the model gets it, without the batch axis; None where images keep their own size."""
        if self.decode is not Decode.IMAGE:
            return self.shape
        size = self.crop or self.resize
        if size is None:
            return None
        if self.layout == "nchw":
            return self.channel_count, size.height, size.width
        return size.height, size.width, self.channel_count

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_image = self.decode is Decode.IMAGE
        foreign = ("stored_dtype", "shape") if is_image else ("colour", "resize", "crop", "layout")
        for field in foreign:
            if field in self.model_fields_set:
                raise ValueError(f"expected no {field} where decode is {self.decode}, but got one")
        if not is_image and (self.stored_dtype is None or not self.shape):
            raise ValueError(f"expected stored_dtype and shape where decode is {self.decode}, but got none")
        if math.prod(self.item_shape or ()) > ELEMENTS_MAX:
            raise ValueError(f"expected at most {ELEMENTS_MAX} numbers in one input, but got shape {self.item_shape}")
        allowed = {1, self.channel_count} if is_image else {1}
        for field, given in (("mean", self.mean), ("std", self.std)):
            if given and len(given) not in allowed:
                raise ValueError(
                    f"expected {' or '.join(map(str, sorted(allowed)))} numbers in {field}, but got {len(given)}"
                )
        return self


class VariableDeclaration(Declared):
    """One predicted quantity."""

    name: VariableName = Field(description="CF standard name where there is one.")
    unit: Unit = Field(default="1", description="UDUNITS string.")


class OutputDeclaration(Declared):
    """What comes out, of one of the model's outputs."""

    name: str = Field(min_length=1, max_length=255, description="The ONNX output.")
    kind: Literal["values", "class"] = Field(
        description="values: each number along the last axis is a variable; class: the last axis has a score for each "
        "label."
    )
    activation: Literal["none", "softmax", "sigmoid"] = Field(
        default="none", description="What is applied along the last axis before anything else."
    )
    variables: tuple[VariableDeclaration, ...] = Field(
        default=(), max_length=1000, description="What the numbers along the last axis are; for values."
    )
    variable: VariableName | None = Field(default=None, description="Name of the predicted class; for class.")
    labels: tuple[Label, ...] = Field(
        default=(), max_length=10_000, description="The classes in the order of their scores; for class."
    )
    probability: VariableName | None = Field(
        default=None, description="Name under which the score of the chosen class is kept; for class."
    )
    fill_value: Number | None = Field(default=None, description="What the model says where a value is missing.")
    is_missing_allowed: bool = Field(
        default=False, description="Whether NaN may come out for the sample; it means missing."
    )
    expected: tuple[Number, ...] = Field(
        default=(),
        max_length=100_000,
        description="What the model itself says of the sample, before the activation, as one flat list.",
    )

    @property
    def width(self) -> int:
        """Length of the last axis that the declaration asks for."""
        if self.kind == "values":
            return len(self.variables)
        return 1 if self.is_binary else len(self.labels)

    @property
    def is_binary(self) -> bool:
        """Whether one score, of the second label, tells two classes apart."""
        return self.kind == "class" and self.activation == "sigmoid" and len(self.labels) == 2

    @property
    def variable_names(self) -> list[str]:
        """The variables that come of it."""
        if self.kind == "values":
            return [each.name for each in self.variables]
        return [each for each in (self.variable, self.probability) if each is not None]

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_class = self.kind == "class"
        for field in ("variables", "fill_value") if is_class else ("variable", "labels", "probability"):
            if field in self.model_fields_set:
                raise ValueError(f"expected no {field} where kind is {self.kind}, but got one")
        if is_class and (self.variable is None or len(self.labels) < 2):
            raise ValueError("expected a variable and at least two labels where kind is class")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("expected labels that differ from each other")
        if not is_class and not self.variables:
            raise ValueError("expected at least one of variables where kind is values")
        return self


class Manifest(Declared):
    """The whole file."""

    analysis: Name = Field(description="The question that the model answers.")
    instrument_models: tuple[Name, ...] = Field(
        min_length=1, max_length=100, description="The instrument models that it answers for, as in the registry."
    )
    description: str = Field(default="", max_length=10_000, description="For people.")
    timeout_s: float = Field(
        default=60.0,
        ge=0.1,
        le=3600,
        description="A batch that takes longer is taken for hung, and its worker replaced.",
    )
    tolerance: float = Field(
        default=1e-3,
        ge=0,
        le=1,
        description="How far outputs for the sample may be from the expected ones, as part of the largest of these.",
    )
    sample_spacing_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400 * 366,
        description="Where the model says something of many instants of one payload: the time between them. Then the "
        "axis after the batch axis of each output is time. Left out: one instant.",
    )
    input: InputDeclaration = Field(description="What goes in.")
    outputs: tuple[OutputDeclaration, ...] = Field(min_length=1, max_length=100, description="What comes out.")
    metrics: dict[Label, Number] = Field(
        default_factory=dict, max_length=100, description="What the model reached when it was tested; kept, not used."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({each.name for each in self.outputs}) < len(self.outputs):
            raise ValueError("expected each ONNX output once among outputs")
        names = [name for each in self.outputs for name in each.variable_names]
        if len(set(names)) < len(names):
            raise ValueError("expected names of variables that differ from each other")
        return self


def read_manifest(text: str) -> Manifest:
    """Reads a manifest.

    Raises:
        InvalidRequestError: It is not one; the message names every place that is wrong.
    """
    return _read_again(text) if len(text) <= CACHED_CHARACTERS_MAX else _read(text)


def _read(text: str) -> Manifest:
    hint = "docs/models.md describes every field"
    if len(text) > MANIFEST_CHARACTERS_MAX:
        raise InvalidRequestError(
            f"expected a manifest of at most {MANIFEST_CHARACTERS_MAX} characters, but got {len(text)}",
            hint="leave out long lists of expected outputs",
        )
    if _longest_key(text) > KEY_PARTS_MAX:
        raise InvalidRequestError(
            f"expected a manifest with keys of at most {KEY_PARTS_MAX} parts, but got a longer one", hint=hint
        )
    try:
        return Manifest.model_validate(tomllib.loads(text))
    except ValidationError as error:
        places = [f"{'.'.join(map(str, each['loc'])) or 'manifest'}: {each['msg']}" for each in error.errors()[:20]]
        raise InvalidRequestError(f"the manifest is wrong: {'; '.join(places)}", hint=hint) from error
    except (ValueError, RecursionError) as error:  # beside its own error, the parser passes on Python's
        raise InvalidRequestError(f"expected a manifest in TOML, but got: {error}", hint=hint) from error


_read_again = lru_cache(maxsize=256)(_read)


def _longest_key(text: str) -> int:
    """Parts of the longest dotted key, found in one pass; a number has two."""
    bare = STRINGS_AND_COMMENTS.sub("s", text)
    return 1 + max(each.count(".") for each in re.split(r"[^\w.+ \t-]", bare))
