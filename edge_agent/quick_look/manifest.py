"""What a model package says about its model: parsed strictly, in plain values. Knows no zip file and no numpy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fieldpost.errors import InvalidRequestError

FORMAT = 1
ANALYSIS = "boundary-layer-height"
CHANNELS = ("backscatter", "signal_to_noise", "is_below_cloud")
"""What the model reads, in this order; profile_input says how each is made."""
TRANSFORM = "asinh"
INPUT_NAME = "profile"
OUTPUT_NAMES = ("height_m", "quality")
QUALITY_CLASSES = ("good", "doubtful", "bad")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
GATES_MAX = 4096


@dataclass(frozen=True, slots=True)
class InputGrid:
    """The grid of a model's input.

    Attributes:
        gate_count: How many gates.
        gate_m: Width of each; the first begins at the instrument.
        backscatter_scale: Backscatter, m-1 sr-1, at which asinh turns from linear to logarithmic.
    """

    gate_count: int
    gate_m: float
    backscatter_scale: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model, as its package describes it.

    Attributes:
        name: The model's name.
        grid: What it reads.
        good_at_least: An estimate is good where the model gives this probability to it.
        bad_at_least: And bad, thus without a height, where it gives this one.
        height_tolerance_m: How far the sample's heights may be off on another processor.
        quality_tolerance: The same for the probabilities.
        made_with: Versions of what made it, by name.
        metrics: What whoever made it measured; for people.
    """

    name: str
    grid: InputGrid
    good_at_least: float
    bad_at_least: float
    height_tolerance_m: float
    quality_tolerance: float
    made_with: Mapping[str, str]
    metrics: Mapping[str, Any]

    def quality(self, probabilities: Sequence[float]) -> str:
        """The class of an estimate, given the probabilities of QUALITY_CLASSES."""
        good, _, bad = probabilities
        if bad >= self.bad_at_least:
            return "bad"
        return "good" if good >= self.good_at_least else "doubtful"


def parse_manifest(content: bytes) -> Manifest:
    """Reads manifest.json.

    Raises:
        InvalidRequestError: Something is missing, unknown or out of bounds.
    """
    try:
        table = json.loads(content)
    except ValueError as error:
        raise InvalidRequestError(f"expected JSON, but got {error} (manifest.json)") from error
    keys = {"format", "name", "analysis", "made_with", "input", "outputs", "quality", "tolerance", "metrics"}
    _expect_keys(table, keys, "manifest.json")
    _expect(table["format"], FORMAT, "format")
    _expect(table["analysis"], ANALYSIS, "analysis")
    name = table["name"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidRequestError(f"expected a name of a-z, 0-9 and '-', but got {name!r} (manifest.json)")
    _expect_keys(table["outputs"], set(OUTPUT_NAMES), "outputs")
    for part in ("made_with", "metrics"):
        if not isinstance(table[part], dict):
            raise InvalidRequestError(f"expected a table, but got {table[part]!r} ({part} in manifest.json)")
    quality = _expect_keys(table["quality"], {"classes", "good_at_least", "bad_at_least"}, "quality")
    _expect(quality["classes"], list(QUALITY_CLASSES), "quality.classes")
    tolerance = _expect_keys(table["tolerance"], set(OUTPUT_NAMES), "tolerance")
    return Manifest(
        name=name,
        grid=_parse_input(table["input"]),
        good_at_least=_number(quality["good_at_least"], 0, 1, "quality.good_at_least"),
        bad_at_least=_number(quality["bad_at_least"], 0, 1, "quality.bad_at_least"),
        height_tolerance_m=_number(tolerance["height_m"], 0, 50, "tolerance.height_m"),
        quality_tolerance=_number(tolerance["quality"], 0, 0.2, "tolerance.quality"),
        made_with=table["made_with"],
        metrics=table["metrics"],
    )


def write_manifest(manifest: Manifest) -> bytes:
    """The manifest as its file: what parse_manifest reads."""
    table = {
        "format": FORMAT,
        "name": manifest.name,
        "analysis": ANALYSIS,
        "made_with": dict(manifest.made_with),
        "input": {
            "name": INPUT_NAME,
            "channels": list(CHANNELS),
            "transform": TRANSFORM,
            "gate_count": manifest.grid.gate_count,
            "gate_m": manifest.grid.gate_m,
            "backscatter_scale_per_m_sr": manifest.grid.backscatter_scale,
        },
        "outputs": {
            "height_m": "height of the mixing layer above the instrument, m: (1, 1)",
            "quality": "probabilities of good, doubtful, bad: (1, 3)",
        },
        "quality": {
            "classes": list(QUALITY_CLASSES),
            "good_at_least": manifest.good_at_least,
            "bad_at_least": manifest.bad_at_least,
        },
        "tolerance": {"height_m": manifest.height_tolerance_m, "quality": manifest.quality_tolerance},
        "metrics": dict(manifest.metrics),
    }
    return json.dumps(table, indent=2).encode() + b"\n"


def _parse_input(table: object) -> InputGrid:
    keys = {"name", "channels", "transform", "gate_count", "gate_m", "backscatter_scale_per_m_sr"}
    parsed = _expect_keys(table, keys, "input")
    _expect(parsed["name"], INPUT_NAME, "input.name")
    _expect(parsed["channels"], list(CHANNELS), "input.channels")
    _expect(parsed["transform"], TRANSFORM, "input.transform")
    gate_count = parsed["gate_count"]
    if type(gate_count) is not int or not 2 <= gate_count <= GATES_MAX:
        raise InvalidRequestError(f"expected 2 to {GATES_MAX} gates, but got {gate_count!r} (input in manifest.json)")
    return InputGrid(
        gate_count,
        _number(parsed["gate_m"], 1, 1000, "input.gate_m"),
        _number(parsed["backscatter_scale_per_m_sr"], 1e-12, 1, "input.backscatter_scale_per_m_sr"),
    )


def _expect_keys(table: object, keys: set[str], place: str) -> dict[str, Any]:
    if not isinstance(table, dict) or set(table) != keys:
        got = sorted(table) if isinstance(table, dict) else table
        raise InvalidRequestError(f"expected the keys {sorted(keys)}, but got {got!r} ({place} of a model package)")
    return table


def _expect(value: object, expected: object, place: str) -> None:
    if value != expected:
        raise InvalidRequestError(
            f"expected {expected!r}, but got {value!r} ({place} in manifest.json)",
            hint="the model is made for another version of the station's software",
        )


def _number(value: object, least: float, most: float, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidRequestError(
            f"expected a number from {least} to {most}, but got {value!r} ({place} in manifest.json)"
        )
    return float(value)
