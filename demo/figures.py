"""One time-height picture for each instrument, drawn by the analysis itself, with the truth where it is known."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.heights import ANALYSIS, name_method
from demo.plan import PlannedInstrument, PlannedStation
from flows.archiving.picture import choose
from flows.bags.day import DayReader
from server.analyses import AnalysisInput, AnalysisResult, find_analyses
from server.archive.bags import list_instrument_days
from server.storage.store import Store

TRUTH_POINTS = 1440
Truth = tuple[NDArray[np.int64], NDArray[np.float32]]


def draw_figures(stations: Sequence[PlannedStation], store: Store, folder: Path, versions: Sequence[int]) -> list[Path]:
    """Draws what can be drawn; an instrument without predictions has no picture.

    Args:
        stations: Whose instruments.
        store: What the server holds.
        folder: Gets the pictures.
        versions: Which are shown: the first one as lines, the others as points beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (package,) = {card.package for card in find_analyses() if card.name == ANALYSIS}
    draw = importlib.import_module(package).draw
    drawn = []
    for station in stations:
        for instrument in station.instruments:
            inputs, results = _read(store, station.name, instrument.name, versions)
            if any(result is not None for result in results[versions[0]]):
                path = folder / f"{station.name}-{instrument.name}.png"
                others = {f"{name_method(version)} (version {version})": results[version] for version in versions[1:]}
                draw(
                    path,
                    f"{station.name}/{instrument.name}: {name_method(versions[0])} (version {versions[0]})",
                    inputs,
                    results[versions[0]],
                    _true_heights(instrument, [each.measure_unix_nanos for each in inputs]),
                    others,
                )
                drawn.append(path)
    return drawn


def _read(
    store: Store, station: str, instrument: str, versions: Sequence[int]
) -> tuple[list[AnalysisInput], dict[int, list[AnalysisResult | None]]]:
    """Observations of all days, and what each version says of them."""
    inputs: list[AnalysisInput] = []
    results: dict[int, list[AnalysisResult | None]] = {version: [] for version in versions}
    with store.read() as connection:
        days = list_instrument_days(
            connection, date(1990, 1, 1), date(2100, 1, 1), station=station, instrument=instrument
        )
    for reader in (DayReader(store, day) for day in days):
        contents = reader.look()
        chosen = {
            series.model.version: choose(reader, contents, series)
            for series in contents.series
            if series.model.version in versions
        }
        if versions[0] in chosen:
            more_inputs = chosen[versions[0]][0]
            inputs += more_inputs
            for version in versions:
                results[version] += chosen[version][1] if version in chosen else [None] * len(more_inputs)
    return inputs, results


def _true_heights(instrument: PlannedInstrument, unix_nanos: Sequence[int]) -> Truth | None:
    if instrument.sky is None:
        return None
    nanos = np.linspace(min(unix_nanos), max(unix_nanos), TRUTH_POINTS).astype(np.int64)
    return nanos, instrument.sky.atmosphere().truth(nanos / 1e9).mixing_height_m.astype(np.float32)
