"""Holds what was predicted against the active version, before archived days leave again: in numbers and in a picture.

The picture is drawn by the analysis itself, any package that has a function `draw`. Knows no analysis by name.
"""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from flows.archiving.picture import choose, shrink
from flows.backfilling.comparing import Agreement, Quantity, compare_spans
from flows.backfilling.plan import Plan
from flows.backfilling.span import Span
from flows.bags.day import DayReader
from flows.site import Site
from server.analyses import find_analyses
from server.archive.bags import InstrumentDay
from server.models import catalogue
from server.models.card import ModelCard
from server.storage.store import Store

PICTURES_MAX = 3
"""Of so many instruments one day each: they lie in Prefect's database."""
TRIES_MAX = 5
"""Days of an instrument that are looked at for one that both versions have predicted."""


@dataclass(frozen=True, slots=True)
class BeforeAndAfter:
    """A day of an instrument, with what the active version and the new one say of it, as a PNG."""

    day: InstrumentDay
    png: bytes


@dataclass(slots=True)
class Review:
    """What was found so far.

    Attributes:
        store: Where predictions are.
        ours: The version that predicts.
        active: The one to hold it against.
        first_day: Of the range.
        last_day: Of the range.
        agreements: By instrument and quantity.
        pictures: One for each of the first instruments.
    """

    store: Store
    ours: ModelCard
    active: ModelCard
    first_day: date
    last_day: date
    agreements: dict[Quantity, Agreement] = field(default_factory=dict)
    pictures: list[BeforeAndAfter] = field(default_factory=list)
    _looked_at: set[tuple[int, int]] = field(default_factory=set)
    _tries: Counter[int] = field(default_factory=Counter)

    def look(self, spans: Sequence[Span]) -> None:
        """Looks at pieces that were predicted, while their days are in the hot store; at each piece once."""
        new = {(span.instrument.instrument_id, span.course.start_unix_nanos): span for span in spans}
        new = {key: span for key, span in new.items() if key not in self._looked_at}
        self._looked_at.update(new)
        compare_spans(self.store, new.values(), self.ours.row_id, self.active.row_id, self.agreements)
        for span in new.values():
            instrument_id = span.instrument.instrument_id
            is_drawn = instrument_id in {each.day.instrument_id for each in self.pictures}
            if len(self.pictures) < PICTURES_MAX and not is_drawn and self._tries[instrument_id] < TRIES_MAX:
                self._tries[instrument_id] += 1
                self._draw(span)

    def _draw(self, span: Span) -> None:
        package = {card.name: card.package for card in find_analyses()}.get(self.ours.key.analysis)
        draw = getattr(importlib.import_module(package), "draw", None) if package is not None else None
        days = [day for day in span.days if self.first_day <= day <= self.last_day]
        if draw is None or not days:
            return
        day = replace(span.instrument, day=days[0])
        reader = DayReader(self.store, day)
        contents = reader.look()
        series = {each.model.model_row_id: each for each in contents.series}
        if self.ours.row_id not in series or self.active.row_id not in series:
            return
        inputs, after = choose(reader, contents, series[self.ours.row_id])
        _, before = choose(reader, contents, series[self.active.row_id])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "day.png"
            draw(path, f"{day}: {self.ours.key}", inputs, after, None, {f"{self.active.key}, active": before})
            self.pictures.append(BeforeAndAfter(day, shrink(path.read_bytes())))


def begin_review(site: Site, plan: Plan) -> Review | None:
    """What is to be held against the active version; None where there is none, or where it is the same."""
    ours = plan.version.card
    with site.store.read() as connection:
        active = catalogue.find_card(connection, ours.key.analysis, 0)
    if active is None or active.key == ours.key:
        return None
    return Review(site.store, ours, active, plan.first_day, plan.last_day)
