"""One time-height picture for each instrument, drawn by the analysis itself, with the truth where it is known."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np

from demo.account import true_height_m
from demo.plan import PlannedStation
from flows.day import DayReader
from flows.picture import choose
from server.analyses import AnalysisInput, AnalysisResult, find_analyses
from server.archive.bags import list_instrument_days
from server.storage.store import Store

TRUTH_POINTS = 1440


def draw_figures(stations: Sequence[PlannedStation], store: Store, folder: Path) -> list[Path]:
    """Draws what can be drawn; an instrument without predictions has no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = {(card.name, card.version): card for card in find_analyses()}
    drawn = []
    for station in stations:
        for instrument in station.instruments:
            inputs: list[AnalysisInput] = []
            results: list[AnalysisResult | None] = []
            package = ""
            with store.read() as connection:
                days = list_instrument_days(
                    connection, date(1990, 1, 1), date(2100, 1, 1), station=station.name, instrument=instrument.name
                )
            for reader in (DayReader(store, day) for day in days):
                contents = reader.look()
                for series in contents.series[-1:]:
                    package = cards[series.model.analysis, series.model.version].package
                    if series.failure_count < series.prediction_count:
                        more_inputs, more_results = choose(reader, contents, series)
                        inputs += more_inputs
                        results += more_results
            if inputs:
                path = folder / f"{station.name}-{instrument.name}.png"
                truth = None
                if instrument.seed is not None:
                    times = [each.measure_unix_nanos for each in inputs]
                    nanos = np.linspace(min(times), max(times), TRUTH_POINTS).astype(np.int64)
                    height_m = true_height_m(instrument.seed, nanos)
                    truth = nanos, height_m.astype(np.float32)
                title = f"{station.name}/{instrument.name}"
                importlib.import_module(package).draw(path, title, inputs, results, truth)
                drawn.append(path)
    return drawn
