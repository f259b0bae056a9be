"""What a run has done so far: numbers that the loop which predicts counts up, and the flow reads. Knows neither."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Observations.

    Attributes:
        predicted_count: That got a value.
        failed_count: That got a prediction which says why there is no value.
        unreadable_count: Whose payload could not be read: they wait still.
    """

    predicted_count: int = 0
    failed_count: int = 0
    unreadable_count: int = 0

    @property
    def done_count(self) -> int:
        """Predictions that were written."""
        return self.predicted_count + self.failed_count

    def note(self, failures: list[str]) -> None:
        """Predictions are on the disk; for each, why it has no value, or nothing."""
        failed_count = sum(map(bool, failures))
        self.failed_count += failed_count
        self.predicted_count += len(failures) - failed_count
