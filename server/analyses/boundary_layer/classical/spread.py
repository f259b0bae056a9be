"""The standard error of a height as what it was measured to be: the spread of a method's errors on days with truth.

Knows no method. What a method says of the place of an edge leaves out that it may be the wrong edge; this does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from server.analyses.boundary_layer.classical.layers import FLAG_GOOD, Layers


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard error = metres + share of the height, by quality flag.

    Attributes:
        good_m: Of heights that are flagged good.
        good_share: Likewise, as a share of the height.
        low_m: Of the others.
        low_share: Likewise.
    """

    good_m: float
    good_share: float
    low_m: float
    low_share: float


def with_spread(layers: Layers, spread: Spread) -> Layers:
    """Layers with their measured standard errors, NaN where there is no height."""
    is_good = layers.flag == FLAG_GOOD
    metres = np.where(is_good, spread.good_m, spread.low_m)
    share = np.where(is_good, spread.good_share, spread.low_share)
    return replace(layers, standard_error_m=(metres + share * layers.height_m).astype(np.float32))
