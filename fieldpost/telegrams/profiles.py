"""What every decoder returns, whatever the instrument: attenuated backscatter over time and height. Decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Profiles:
    """The profiles of one observation.

    Attributes:
        unix_nanos: (times,), int64: when each was measured.
        height_m: (gates,), float64: centre of each gate above the instrument, that is the distance along the line of
            sight times the cosine of its tilt; ascending, evenly spaced.
        beta: (times, gates), float32: attenuated backscatter, m-1 sr-1; NaN where missing.
        cloud_base_m: (times, layers), float32: cloud bases above the instrument, lowest first, as the instrument itself
            reports them; NaN where there is none.
        is_obscured: (times,), bool: the instrument itself reports that fog or precipitation hides the sky.
    """

    unix_nanos: NDArray[np.int64]
    height_m: NDArray[np.float64]
    beta: NDArray[np.float32]
    cloud_base_m: NDArray[np.float32]
    is_obscured: NDArray[np.bool_]

    @property
    def lowest_cloud_base_m(self) -> NDArray[np.float32]:
        """The lowest cloud base of each profile: (times,); NaN where there is none."""
        lowest = np.where(np.isnan(self.cloud_base_m), np.inf, self.cloud_base_m).min(axis=1, initial=np.inf)
        return np.where(np.isinf(lowest), np.nan, lowest).astype(np.float32)
