"""What a run of the retrain flow found, as tables and pages for people. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from flows.retraining.decision import Comparison, Decision, format_value
from server.analyses.retraining import DayStatistics
from server.workers.jobs import ModelKey


def to_rows(decision: Decision) -> list[dict[str, str | int]]:
    """One row for each group and measure: both versions, and how sure the difference is."""
    return [_row(each) for each in decision.comparisons if each.day_count]


def _row(each: Comparison) -> dict[str, str | int]:
    verdict = "better" if each.is_better else "worse" if each.is_worse else "noise" if each.is_known else "too few days"
    return {
        "group": each.group,
        "measure": each.measure.name,
        "active": format_value(each.active, each.measure),
        "trained": format_value(each.candidate, each.measure),
        "difference": f"{format_value(each.low, each.measure, '+')} to {format_value(each.high, each.measure, '+')}",
        "verdict": verdict,
        "days": each.day_count,
    }


def to_text(decision: Decision, key: ModelKey, parent: ModelKey, outcome: str) -> str:
    """What became of a trained version, in words with numbers."""
    return "\n".join([f"{key}, compared with {parent}: {outcome}.", "", *(f"- {each}" for each in decision.reasons)])


def to_markdown(text: str, key: ModelKey, files: Sequence[str], pictures: Sequence[tuple[str, bytes]]) -> str:
    """A page with the decision, what was exported, and the pictures inside.

    Args:
        text: From to_text.
        key: The trained version.
        files: What was exported, in words.
        pictures: Title and PNG of each.
    """
    shown = [f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})" for title, png in pictures]
    return "\n\n".join([f"# {key}", text, "\n".join(f"- {each}" for each in files), *shown]) + "\n"


def to_day_rows(days: Sequence[DayStatistics]) -> list[dict[str, str]]:
    """One row for each day that was looked at."""
    return [
        {
            "station": each.station,
            "instrument": each.instrument,
            "day": each.day,
            "model": each.instrument_model,
            **{name: f"{value:.3g}" for name, value in each.values.items()},
        }
        for each in days
    ]
