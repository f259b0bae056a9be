"""What a trial and its process say to each other before the model's bytes follow. Imports nothing of either."""

from __future__ import annotations

import struct
from dataclasses import dataclass

LENGTHS = struct.Struct(">QQQQ")
"""Of the options, the manifest, the model and the sample, which follow."""
MEMORY_HINT = "use a smaller model or input, or ask the operator for a larger trial_memory_bytes_max"


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """What the parent says beside the model.

    Attributes:
        analysis: Its name.
        version: Its number; 0 where it has none yet.
        model_bytes_max: Length of the file at most.
        memory_bytes: Data of the process at most.
        cpu_s: CPU time at most.
        threads: To compute with.
        measure_s: About how long the cost is measured; 0 for once with the sample.
    """

    analysis: str
    version: int
    model_bytes_max: int
    memory_bytes: int
    cpu_s: int
    threads: int
    measure_s: float
