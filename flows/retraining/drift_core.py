"""How an instrument's last days differ from the days that the active version was trained for.

The middle of the days counts, so that one odd day is no drift; and only what lies far outside of how days differ among
themselves. find_drift is pure; describe_network reads. Knows no Prefect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from flows.archiving.picture import choose
from flows.bags.day import DayReader
from flows.retraining.days import find_real_days, read_real_day
from flows.retraining.folder import make_json
from flows.retraining.run import OBSERVATIONS_A_DAY, USUAL_DAYS
from server.analyses import AnalysisResult
from server.analyses.retraining import DayStatistics, Retraining, Version
from server.archive.bags import InstrumentDay
from server.archive.shelf import Shelf
from server.storage.store import Store
from server.workers.jobs import ModelKey

DAYS_MIN = 3
DEVIATIONS_MAX = 4.0
SPREAD_MIN = 0.05
"""Standard deviations from day to day are taken for no less: few simulated days may be too much alike."""

Usual = Mapping[str, Mapping[str, Sequence[float]]]
"""By instrument model and statistic: mean and standard deviation of the training's days."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A statistic of an instrument that is not as in the training.

    Attributes:
        station: Of the instrument.
        instrument: Its name there.
        statistic: Which.
        found: Its median over the days.
        usual: Its mean over the training's days.
        spread: Its standard deviation over the training's days.
        day_count: Days that tell.
    """

    station: str
    instrument: str
    statistic: str
    found: float
    usual: float
    spread: float
    day_count: int

    def __str__(self) -> str:
        return (
            f"{self.station}/{self.instrument}: {self.statistic} is {self.found:.3g} in the middle of {self.day_count} "
            f"days, in the training {self.usual:.3g} with a standard deviation of {self.spread:.2g}"
        )

    def to_row(self) -> dict[str, str | int | float]:
        """For a table."""
        return {
            "station": self.station,
            "instrument": self.instrument,
            "statistic": self.statistic,
            "found": round(self.found, 4),
            "usual": round(self.usual, 4),
            "spread": round(self.spread, 4),
            "days": self.day_count,
        }


@dataclass(frozen=True, slots=True)
class Watch:
    """What is held against the training.

    Attributes:
        store: Where the days are.
        shelf: Where the bags lie.
        hooks: The analysis' side.
        active: The version at work.
        version: The same, as it is loaded.
        provenance: What is known of it.
        folder: Where is kept what is usual for it, if its provenance does not tell.
        last_trained_unix_nanos: When a version was trained here last, nanoseconds since 1970; 0 for never.
    """

    store: Store
    shelf: Shelf
    hooks: Retraining
    active: ModelKey
    version: Version
    provenance: Mapping[str, Any]
    folder: Path
    last_trained_unix_nanos: int

    def usual(self, instrument_models: Sequence[str]) -> Usual:
        """What the training's days look like; of a version that came with Fieldpost, days are simulated, once."""
        if "usual" in self.provenance:
            known: Usual = self.provenance["usual"]
            return known
        name = f"usual-{self.active.version}-{'-'.join(instrument_models)}.json"

        def describe() -> object:
            return self.hooks.describe_training(None, instrument_models, self.version, day_count=USUAL_DAYS, seed=0)

        return dict(make_json(self.folder / name, describe))


def find_drift(days: Sequence[DayStatistics], usual: Usual) -> list[Deviation]:
    """What is not as in the training, instrument by instrument.

    Args:
        days: Of all instruments.
        usual: What the training's days look like; an instrument model that is not in it was not simulated, and of it
            nothing can be said.
    """
    by_instrument: dict[tuple[str, str, str], list[DayStatistics]] = defaultdict(list)
    for each in days:
        by_instrument[each.station, each.instrument, each.instrument_model].append(each)
    return [
        deviation
        for (station, instrument, model), mine in sorted(by_instrument.items())
        for statistic, (mean, spread) in usual.get(model, {}).items()
        if (deviation := _deviation(station, instrument, statistic, mine, mean, spread)) is not None
    ]


def _deviation(
    station: str, instrument: str, statistic: str, days: Sequence[DayStatistics], mean: float, spread: float
) -> Deviation | None:
    values = np.array([each.values.get(statistic, np.nan) for each in days], np.float64)
    values = values[np.isfinite(values)]
    if len(values) < DAYS_MIN:
        return None
    found = float(np.median(values))
    if abs(found - mean) <= DEVIATIONS_MAX * max(spread, SPREAD_MIN):
        return None
    return Deviation(station, instrument, statistic, found, mean, spread, len(values))


def describe_network(watch: Watch, first_day: date, last_day: date) -> list[DayStatistics]:
    """The days of all instruments, with the answers of the active version where the store has them."""
    days = []
    for day in find_real_days(watch.store, first_day, last_day):
        real = read_real_day(watch.store, watch.shelf, day, OBSERVATIONS_A_DAY)
        if real is None:
            continue
        values = dict(watch.hooks.describe_inputs(real.observations, real.measure_unix_nanos))
        values |= watch.hooks.describe_answers(_answers(watch, day))
        facts = (day.station, day.instrument, day.instrument_model, day.latitude_deg, day.longitude_deg)
        days.append(DayStatistics(*facts, day.day.isoformat(), values))
    return days


def _answers(watch: Watch, day: InstrumentDay) -> list[AnalysisResult | None]:
    reader = DayReader(watch.store, day)
    contents = reader.look()
    for series in contents.series:
        if (series.model.analysis, series.model.version) == watch.active:
            return choose(reader, contents, series)[1]
    return []
