"""What versions of the boundary layer's height are compared by. Plain values."""

from __future__ import annotations

from server.analyses.retraining import Measure

RMSE = Measure("RMSE", unit="m", is_root=True, must_improve=True)
WRONG_LAYER = Measure("wrong layer", must_improve=True)
NO_HEIGHT = Measure("no height")
FALSE_HEIGHT = Measure("height in rain or fog")
COVERAGE = Measure("90 % interval off by", target=0.9)
MEASURES = (RMSE, WRONG_LAYER, NO_HEIGHT, FALSE_HEIGHT, COVERAGE)
