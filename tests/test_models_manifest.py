"""A manifest says what goes in and what comes out, and every mistake in it is named with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from model_support import CLASSIFIER_MANIFEST, PROFILE_MANIFEST
from pydantic import BaseModel

from fieldpost.errors import InvalidRequestError
from server.models.manifest import (
    Crop,
    InputDeclaration,
    Manifest,
    OutputDeclaration,
    Resize,
    VariableDeclaration,
    read_manifest,
)

DOCS = Path(__file__).resolve().parent.parent / "docs" / "models.md"


def test_a_manifest_is_read() -> None:
    manifest = read_manifest(CLASSIFIER_MANIFEST)
    assert manifest.input.item_shape == (3, 8, 8)
    assert manifest.outputs[0].variable_names == ["cloud_type", "cloud_type_probability"]
    assert read_manifest(PROFILE_MANIFEST).input.item_shape == (8,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('analysis = "layer-height"', "", "analysis: Field required"),
        ('analysis = "layer-height"', 'analysis = "Layer Height"', "analysis: String should match"),
        ('["cl51"]', "[]", "instrument_models: .*at least 1"),
        ('decode = "tensor"', 'decode = "pickle"', "input.decode: Input should be"),
        ('decode = "tensor"', 'decode = "tensor"\ncode = "x"', "input.code: Extra inputs"),
        ("shape = [8]", "", "expected stored_dtype and shape where decode is tensor"),
        ("shape = [8]", "shape = [100000, 100000]", "expected at most .* numbers in one input"),
        ("shape = [8]", "shape = [0]", "input.shape.0"),
        ("shape = [8]", 'shape = [8]\ncolour = "rgb"', "expected no colour where decode is tensor"),
        ("shape = [8]", "shape = [8]\nmean = [1.0, 2.0]", "expected 1 numbers in mean, but got 2"),
        ("shape = [8]", "shape = [8]\nstd = [0.0]", "input.std.0: Input should be greater than 0"),
        ("shape = [8]", "shape = [8]\nscale = nan", "input.scale: Input should be a finite number"),
        ('kind = "values"', 'kind = "class"', "expected no variables where kind is class"),
        ('unit = "m"', 'unit = "m\\u0000"', "variables.0.unit"),
        ('name = "layer_height"', 'name = "layer height"', "outputs.0.variables.0.name"),
        ('name = "y"', 'name = "y"\nlabels = ["a", "b"]', "expected no labels where kind is values"),
        ("[input]", "[input", "expected a manifest in TOML"),
        ("[input]", f"a = {'[' * 5000}\n[input]", "expected a manifest in TOML"),
        ("[input]", f"description = '{'x' * 1_100_000}'\n[input]", "expected a manifest of at most"),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, message: str) -> None:
    assert old in PROFILE_MANIFEST
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read_manifest(PROFILE_MANIFEST.replace(old, new))
    assert caught.value.hint


def test_two_outputs_may_not_name_the_same_variable() -> None:
    again = PROFILE_MANIFEST[PROFILE_MANIFEST.index("[[outputs]]") :]
    with pytest.raises(InvalidRequestError, match="each ONNX output once"):
        read_manifest(PROFILE_MANIFEST + again)
    with pytest.raises(InvalidRequestError, match="variables that differ"):
        read_manifest(PROFILE_MANIFEST + again.replace('name = "y"', 'name = "z"'))


@pytest.mark.parametrize(
    "declaration", [Manifest, InputDeclaration, Resize, Crop, OutputDeclaration, VariableDeclaration]
)
def test_every_field_is_described_here_and_in_the_documentation(declaration: type[BaseModel]) -> None:
    text = DOCS.read_text()
    for name, field in declaration.model_fields.items():
        assert field.description, name
        assert re.search(rf"^\| `([a-z_]+\.)?{name}` \|", text, flags=re.MULTILINE), f"{name} is not in docs/models.md"


def test_the_manifests_of_the_documentation_are_sound() -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        read_manifest(example)
