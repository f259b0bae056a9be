"""Runs one scenario without a fault, and writes down every change of the disk with its bytes, and every promise.

    LD_PRELOAD=faults.so python -m faults.record FOLDER SCENARIO LOG

Before the scenario runs, what lies in FOLDER is synced as far as anybody cares; what was promised of it is printed, one
line each. The buffer lies some folders deep, none of which exists in a scenario that begins with nothing.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from faults.library import Faults
from faults.scenarios import SCENARIOS, at_once

BUFFER = "var/lib/buffer"


def main() -> None:
    folder, name, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    scenario = SCENARIOS[name]
    logging.disable()
    if sys.argv[4:] == ["prepare"]:
        scenario.prepare(folder / BUFFER, print)
        return
    faults = Faults()
    faults.log_to(log, with_contents=True)
    faults.arm(folder, "", 0, 0)
    scenario.run(folder / BUFFER, faults.note, at_once, lambda: None)


if __name__ == "__main__":
    main()
