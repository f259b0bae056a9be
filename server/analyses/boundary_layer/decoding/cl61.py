"""Decodes NetCDF files of the Vaisala CL61, all firmware since 1.0 of 2021."""

from __future__ import annotations

import netCDF4
import numpy as np

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams import Profiles
from server.analyses import AnalysisInput
from server.analyses.boundary_layer.decoding.netcdf import (
    median_or,
    open_netcdf,
    read,
    read_height,
    read_times,
    to_backscatter,
)


def decode_cl61(observation: AnalysisInput) -> Profiles:
    """Decodes one file. Files of 2021 do not tell the tilt; the beam is taken as vertical then.

    Raises:
        InvalidObservationError: It is no file of a CL61.
    """
    factor = 1.0 if observation.calibration is None else observation.calibration
    with open_netcdf(observation.payload, "CL61") as dataset:
        times = read_times(dataset)
        beta = to_backscatter(read(dataset, "beta_att", 2), factor)
        bases = read(dataset, "cloud_base_heights", 2).astype(np.float32)
        if beta.shape[0] != len(times) or bases.shape[0] != len(times):
            raise InvalidObservationError(
                f"expected {len(times)} profiles, but got shapes {beta.shape}, {bases.shape} (backscatter, clouds)"
            )
        return Profiles(
            unix_nanos=times,
            height_m=read_height(dataset, _read_tilt_deg(dataset), beta.shape[1]),
            beta=beta,
            cloud_base_m=bases,
            # vertical visibility is given where the sky is hidden, and only there
            is_obscured=np.isfinite(read(dataset, "vertical_visibility", 1)),
        )


def _read_tilt_deg(dataset: netCDF4.Dataset) -> float:
    """The tilt, wherever the firmware puts it; 0 where it does not."""
    for place in (dataset, dataset.groups.get("monitoring")):
        if place is not None and "tilt_angle" in place.variables:
            return median_or(read(place, "tilt_angle"), 0.0)
    return 0.0
