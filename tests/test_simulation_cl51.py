"""The simulated CL51: parsers of other hands read its telegrams, and find the profile that was put in."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path

import cl2nc
import numpy as np
import pytest
from ceilopyter.readers.read_cl import read_cl_file, read_cl_message
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fieldpost.simulation import SimulatedCl51
from fieldpost.simulation.telegram import RAW_LIMIT, RAW_UNIT, quantise, write_telegram
from fieldpost.sun import solar_elevation_deg

DAY = 20_000 * 86400
RANGE_M = np.arange(1540) * 10.0 + 5


def telegram_file(path: Path, telegrams: list[tuple[int, bytes]]) -> Path:
    """As a data logger writes it: a line with the time before each telegram."""
    with path.open("wb") as file:
        for unix_s, telegram in telegrams:
            file.write(f"-{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S}\r\n".encode() + telegram + b"\r\n")
    return path


@pytest.mark.parametrize("unix_s", [DAY, DAY + 36_000, DAY + 54_321.5])
def test_ceilopyter_reads_the_profile_that_was_measured(unix_s: float) -> None:
    instrument = SimulatedCl51(seed=3)
    message = read_cl_message(instrument.telegram(unix_s))
    _, measured = instrument.measure(unix_s)
    np.testing.assert_allclose(message.beta, measured, atol=0.51 * RAW_UNIT)
    assert message.range_resolution == 10
    assert message.status.units_meters


def test_ceilopyter_reads_a_whole_file(tmp_path: Path) -> None:
    instrument = SimulatedCl51(seed=5)
    times = [DAY + 15 * index for index in range(20)]
    path = telegram_file(tmp_path / "cl51.dat", [(t, instrument.telegram(t)) for t in times])
    read_times, messages = read_cl_file(path)
    assert [t.replace(tzinfo=UTC).timestamp() for t in read_times] == times
    assert len(messages) == len(times)


def test_cl2nc_reads_profile_and_cloud_base_and_finds_the_checksum_right(tmp_path: Path) -> None:
    instrument = SimulatedCl51(seed=2)
    truth = instrument.atmosphere.truth(DAY + np.arange(0, 5 * 86400, 300.0))
    cloudy = int(np.flatnonzero(np.isfinite(truth.cloud_base_m))[0])
    times = [DAY, DAY + 300 * cloudy]
    path = telegram_file(tmp_path / "cl51.dat", [(t, instrument.telegram(t)) for t in times])
    clear_sky, cloud = cl2nc.read_dat(os.fsencode(path), {"check": True})
    for unix_s, read in zip(times, (clear_sky, cloud), strict=True):
        # cl2nc gives km-1 sr-1
        np.testing.assert_allclose(read["backscatter"] / 1000, instrument.measure(unix_s)[1], atol=0.51 * RAW_UNIT)
    assert clear_sky["cbh_1"] == cl2nc.NA_INT32
    assert cloud["cbh_1"] == round(float(truth.cloud_base_m[cloudy]))
    assert cloud["layer_height"][0] == pytest.approx(truth.cloud_base_m[cloudy], abs=5.1)


@settings(max_examples=30, deadline=None)
@given(
    raw=hnp.arrays(np.int32, 1540, elements=st.integers(-RAW_LIMIT - 1, RAW_LIMIT)),
    cloud_bases_m=st.lists(st.floats(0, 15_000), max_size=3),
    background_mv=st.integers(0, 9999),
    laser_celsius=st.integers(-60, 99),
    tilt_deg=st.integers(0, 45),
    cover_octas=st.integers(0, 8),
)
def test_whatever_is_encoded_is_what_ceilopyter_decodes(
    raw: np.ndarray[tuple[int], np.dtype[np.int32]],
    cloud_bases_m: list[float],
    background_mv: int,
    laser_celsius: int,
    tilt_deg: int,
    cover_octas: int,
) -> None:
    message = read_cl_message(
        write_telegram(
            raw,
            unit="A",
            cloud_bases_m=tuple(sorted(cloud_bases_m)),
            background_mv=background_mv,
            laser_celsius=laser_celsius,
            tilt_deg=tilt_deg,
            cover_octas=cover_octas,
        )
    )
    np.testing.assert_array_equal(np.rint(message.beta / RAW_UNIT), raw)
    assert (message.background_light, message.laser_temperature, message.tilt_angle) == (
        background_mv,
        laser_celsius,
        tilt_deg,
    )


def test_the_same_time_gives_the_same_bytes_and_the_next_time_others() -> None:
    first, second = SimulatedCl51(7), SimulatedCl51(7)
    later = second.telegram(DAY + 15.0)
    assert first.telegram(DAY) == second.telegram(DAY)
    assert first.telegram(DAY + 15.0) == later
    assert first.telegram(DAY) != later


def test_noise_grows_with_the_square_of_the_distance_and_is_stronger_at_noon() -> None:
    instrument = SimulatedCl51(1)

    def noise(start_unix_s: float, gate: slice) -> float:
        times = start_unix_s + np.arange(40) * 15.0
        measured = np.array([instrument.measure(t)[1] for t in times])
        clean = instrument.atmosphere.attenuated_backscatter(times, RANGE_M)
        return float((measured - clean)[:, gate].std())

    near, far = slice(290, 310), slice(1190, 1210)
    assert noise(DAY, far) / noise(DAY, near) == pytest.approx((12_000 / 3_000) ** 2, rel=0.1)
    # 3.5 times under an overhead sun; at noon of this day in autumn, at 45 degrees north, it stands 40 degrees high
    elevation_deg = solar_elevation_deg(np.array([DAY + 43_200.0]), 45.0, 0.0)[0]
    assert 35 < elevation_deg < 45
    expected = math.sqrt(1 + (3.5**2 - 1) * math.sin(math.radians(elevation_deg)))
    assert noise(DAY + 43_200, far) / noise(DAY, far) == pytest.approx(expected, rel=0.1)


def test_values_beyond_20_bits_are_clipped_and_not_wrapped() -> None:
    assert quantise(np.array([1.0, -1.0, 1.2e-8])).tolist() == [RAW_LIMIT, -RAW_LIMIT - 1, 1]


@pytest.mark.parametrize("unit", ["", "12", " ", "é"])
def test_a_unit_that_does_not_fit_the_header_is_refused(unit: str) -> None:
    with pytest.raises(ValueError, match="one character"):
        SimulatedCl51(1, unit)
