"""Products of an archived day, written by the analyses themselves: any package that has a function `write_products`.

A product is made of the predictions that lie beside it in the bag, and could be made again from them. Knows no
analysis by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from fieldpost.v1.prediction_pb2 import Prediction
from flows.bags.cf import to_site
from flows.bags.day import Series
from server.analyses import find_analyses
from server.archive.bags import DayPrediction, InstrumentDay


def write_products(
    folder: Path, day: InstrumentDay, series: Series, predictions: Iterable[DayPrediction], history: str
) -> list[Path]:
    """Writes what the analysis of these predictions makes of a day; nothing where it makes nothing.

    Args:
        folder: Where to.
        day: Which day of which instrument.
        series: Whose predictions.
        predictions: All of them.
        history: For the first line of each file's history.

    Raises:
        TryAgainError: The disk refuses.
    """
    packages = {card.name: card.package for card in find_analyses()}  # of all versions, those trained here too
    package = packages.get(series.model.analysis)
    write = getattr(importlib.import_module(package), "write_products", None) if package is not None else None
    if write is None:
        return []
    messages = map(_to_message, predictions)
    written: list[Path] = write(folder, to_site(day), series.model.version, day.day, messages, history)
    return written


def _to_message(row: DayPrediction) -> Prediction:
    message = Prediction.FromString(row.content)
    message.is_provisional = row.is_provisional
    return message
