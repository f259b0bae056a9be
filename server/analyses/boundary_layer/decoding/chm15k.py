"""Decodes NetCDF files of the Lufft CHM15k, firmware 0.702 and newer, in both modes of its files.

Older firmware writes beta_raw in another normalisation (it needs the detector's voltage and the overlap function); its
files are refused rather than read wrongly.
"""

from __future__ import annotations

import netCDF4
import numpy as np
from numpy.typing import NDArray

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

DEFAULT_CALIBRATION = 3e-12
"""Turns beta_raw into m-1 sr-1; typical of the instrument (ceilopyter, chm15k.py). Only where the registry has none."""
OLDEST_FIRMWARE = "0.702"
HIDDEN_SKY = (1, 2, 3)
"""Sky condition index: rain, fog, snow."""


def decode_chm15k(observation: AnalysisInput) -> Profiles:
    """Decodes one file.

    Raises:
        InvalidObservationError: It is no file of a CHM15k, or its firmware is too old.
    """
    with open_netcdf(observation.payload, "CHM15k") as dataset:
        _check_firmware(dataset)
        times = read_times(dataset)
        beta = _read_beta(dataset, observation.calibration)
        if beta.shape[0] != len(times):
            raise InvalidObservationError(f"expected {len(times)} profiles, but got shape {beta.shape} (backscatter)")
        tilt_deg = median_or(read(dataset, "zenith"), 0.0) if "zenith" in dataset.variables else 0.0
        height = read_height(dataset, tilt_deg, beta.shape[1])
        return Profiles(
            unix_nanos=times,
            # the file gives the far end of each gate
            height_m=height - (height[1] - height[0]) / 2,
            beta=beta,
            cloud_base_m=_read_cloud_bases(dataset, len(times)),
            is_obscured=_read_is_obscured(dataset, len(times)),
        )


def _check_firmware(dataset: netCDF4.Dataset) -> None:
    """Old files have one number, newer ones 'system FPGA firmware cloud-detection-mode'."""
    version = str(getattr(dataset, "software_version", ""))
    parts = version.split()
    if len(parts) < 3 or parts[2] < OLDEST_FIRMWARE:
        raise InvalidObservationError(
            f"expected a CHM15k firmware of {OLDEST_FIRMWARE} or newer, but got software_version {version!r}",
            hint="its normalisation is another; convert such files first",
        )


def _read_beta(dataset: netCDF4.Dataset, calibration: float | None) -> NDArray[np.float32]:
    """Attenuated backscatter: (times, gates). Mode 1 files hold beta_att = beta_raw * c_cal, others beta_raw."""
    if "beta_raw" in dataset.variables:
        factor = DEFAULT_CALIBRATION if calibration is None else calibration
        signal = read(dataset, "beta_raw", 2)
    else:
        signal = read(dataset, "beta_att", 2)
        factor = 1.0 if calibration is None else calibration / median_or(read(dataset, "c_cal"), np.nan)
    return to_backscatter(signal, factor)


def _read_cloud_bases(dataset: netCDF4.Dataset, time_count: int) -> NDArray[np.float32]:
    """Cloud bases above the instrument: (times, layers), m. The file gives them with an offset, and -1 for none."""
    if "cbh" not in dataset.variables:
        return np.full((time_count, 1), np.nan, np.float32)
    bases = read(dataset, "cbh", 2)
    offset_m = median_or(read(dataset, "cho"), 0.0) if "cho" in dataset.variables else 0.0
    return np.where(bases > 0, np.maximum(bases - offset_m, 0), np.nan).astype(np.float32)


def _read_is_obscured(dataset: netCDF4.Dataset, time_count: int) -> NDArray[np.bool_]:
    if "sci" not in dataset.variables:
        return np.zeros(time_count, np.bool_)
    return np.isin(read(dataset, "sci", 1), HIDDEN_SKY)
