"""What a training is told, checked before it begins. Plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fieldpost.errors import InvalidRequestError


@dataclass(frozen=True)
class TrainingSettings:
    """What a run is told; with the code and the climate it decides the result, within noise.

    Raises:
        InvalidRequestError: A number makes no sense.
    """

    days: int = 1024
    epochs: int = 10
    batch: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    validation_days: int = 48
    calibration_days: int = 96
    seed: int = 1
    widths: tuple[int, int, int] = (16, 24, 32)
    memory: int = 24

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("days", "epochs", "batch", "memory")}
        counts |= {"validation_days": self.validation_days, "calibration_days": self.calibration_days}
        for name, value in (*counts.items(), *(("widths", width) for width in self.widths)):
            if value < 1:
                raise InvalidRequestError(f"expected at least 1, but got {value} ({name})")
        if self.seed < 0:
            raise InvalidRequestError(f"expected a seed of at least 0, but got {self.seed}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InvalidRequestError(f"expected a learning rate above 0, but got {self.learning_rate}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return {**asdict(self), "widths": list(self.widths)}
