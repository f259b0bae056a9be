"""Pictures of an archived day, drawn by the analyses themselves: any package that has a function `draw`.

Of a full day some hundred observations are drawn, evenly spaced: a picture has no more columns, and memory is
bounded. Needs no torch. Knows no analysis by name.
"""

from __future__ import annotations

import importlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fieldpost.v1 import prediction_pb2
from flows.bags.day import Contents, DayReader, Series
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable, find_analyses
from server.archive.bags import DayObservation

OBSERVATIONS_MAX = 900
PAYLOAD_BYTES_MAX = 128 * 1024 * 1024
PNG_BYTES_MAX = 200 * 1000
"""It lies in Prefect's database as a part of a Markdown text."""
_SHRINK = 0.85


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a day.

    Attributes:
        analysis: Whose predictions it shows.
        version: Of the model.
        png: At most PNG_BYTES_MAX bytes.
    """

    analysis: str
    version: int
    png: bytes


def draw_pictures(reader: DayReader) -> Iterator[Picture]:
    """One picture for each analysis that has predictions on the day and knows how to draw, of its newest version."""
    contents = reader.look()
    newest = {series.model.analysis: series for series in contents.series}  # ascending: the last one stays
    packages = {card.name: card.package for card in find_analyses()}  # those trained at the network have no card
    for series in newest.values():
        package = packages.get(series.model.analysis)
        draw = getattr(importlib.import_module(package), "draw", None) if package is not None else None
        if draw is None or series.failure_count == series.prediction_count:
            continue
        inputs, results = choose(reader, contents, series)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "day.png"
            draw(path, f"{reader.day.station}/{reader.day.instrument}", inputs, results, None)
            yield Picture(series.model.analysis, series.model.version, shrink(path.read_bytes()))


def choose(
    reader: DayReader, contents: Contents, series: Series
) -> tuple[list[AnalysisInput], list[AnalysisResult | None]]:
    """Evenly spaced observations of the day, each with its result; None where it has none."""
    by_count = -(-contents.observation_count // OBSERVATIONS_MAX)
    by_bytes = -(-contents.payload_bytes // PAYLOAD_BYTES_MAX)
    stride = max(by_count, by_bytes, 1)
    rows = [row for place, row in enumerate(reader.observations(contents.extent)) if place % stride == 0]
    wanted = {row.observation_id for row in rows}
    results = {
        row.observation_id: _to_result(row.content)
        for row in reader.predictions(contents.extent, series.model)
        if row.observation_id in wanted
    }
    return [_to_input(reader, row) for row in rows], [results.get(row.observation_id) for row in rows]


def _to_input(reader: DayReader, row: DayObservation) -> AnalysisInput:
    content, day = reader.read(row)[1], reader.day
    place = day.latitude_deg, day.longitude_deg
    return AnalysisInput(content, day.instrument_model, row.measure_unix_nanos, day.calibration, *place)


def _to_result(content: bytes) -> AnalysisResult | None:
    prediction = prediction_pb2.Prediction.FromString(content)
    if prediction.failure:
        return None
    variables = (
        AnalysisVariable(each.name, each.unit, np.array(each.values, np.float32), tuple(each.flag_meanings))
        for each in prediction.variables
    )
    return AnalysisResult(np.array(prediction.sample_unix_nanos, np.int64), tuple(variables))


def shrink(png: bytes, bytes_max: int = PNG_BYTES_MAX) -> bytes:
    """The picture in 256 colours, and smaller, until it has at most bytes_max; untouched where it has."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    while len(png) > bytes_max:
        packed = io.BytesIO()
        image.quantize(256, Image.Quantize.MAXCOVERAGE).save(packed, format="PNG", optimize=True)
        png = packed.getvalue()
        image = image.resize((round(image.width * _SHRINK), round(image.height * _SHRINK)))
    return png
