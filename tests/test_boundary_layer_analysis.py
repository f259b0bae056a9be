"""The analysis as the server sees it: its contract, its errors, and how well it does on simulated and real days."""

from __future__ import annotations

import binascii
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError, InvalidRequestError
from fieldpost.simulation import SimulatedCl51
from server.analyses import Analysis, AnalysisInput, AnalysisResult, find_analyses, load_analysis

DAY = 20_100 * 86400.0
NAMES = (
    "atmosphere_boundary_layer_thickness",
    "atmosphere_boundary_layer_thickness_standard_error",
    "cloud_base_height",
    "quality_flag",
    "significance",
)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return load_analysis("boundary-layer-height", 1)


def observe(instrument: SimulatedCl51, unix_s: float) -> AnalysisInput:
    return AnalysisInput(instrument.telegram(unix_s), "cl51", int(unix_s * 1e9))


def results_of(analysis: Analysis, batch: list[AnalysisInput]) -> list[AnalysisResult]:
    answers = analysis.predict(batch)
    assert all(isinstance(answer, AnalysisResult) for answer in answers)
    return [answer for answer in answers if isinstance(answer, AnalysisResult)]


def values(result: AnalysisResult, name: str) -> NDArray[np.float32]:
    return next(variable.values for variable in result.variables if variable.name == name)


def test_the_server_finds_it_without_importing_torch() -> None:
    code = (
        "import sys, server.analyses as a\n"
        "cards = [c for c in a.find_analyses() if c.name == 'boundary-layer-height']\n"
        "assert [c.version for c in cards] == [1, 2, 3, 4, 5], cards\n"
        "heavy = {'torch', 'netCDF4', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_loaded_analysis_is_what_its_card_says(analysis: Analysis) -> None:
    card = next(card for card in find_analyses() if card.name == "boundary-layer-height")
    assert (analysis.name, analysis.version) == (card.name, card.version)
    assert analysis.instrument_models == card.instrument_models == {"cl31", "cl51", "ct25k", "chm15k", "cl61"}
    assert analysis.max_batch == card.max_batch
    with pytest.raises(InvalidRequestError, match="boundary-layer-height@1"):
        load_analysis("boundary-layer-height", 9)


def test_a_telegram_gives_one_sample_of_each_variable(analysis: Analysis) -> None:
    [result] = results_of(analysis, [observe(SimulatedCl51(1), DAY)])
    assert result.sample_unix_nanos.tolist() == [int(DAY * 1e9)]
    assert tuple(variable.name for variable in result.variables) == NAMES
    assert [variable.unit for variable in result.variables] == ["m", "m", "m", "1", "1"]
    assert all(variable.values.shape == (1,) and variable.values.dtype == np.float32 for variable in result.variables)


def test_what_cannot_be_decoded_has_its_error_in_its_place_and_disturbs_nobody(analysis: Analysis) -> None:
    instrument = SimulatedCl51(1)
    good = [observe(instrument, DAY + 15 * index) for index in range(3)]
    cut = AnalysisInput(good[0].payload[:3000], "cl51", 0)
    answers = analysis.predict([good[0], cut, good[1], cut, good[2]])
    assert [isinstance(answer, InvalidObservationError) for answer in answers] == [False, True, False, True, False]
    alone = results_of(analysis, good)
    for answer, expected in zip(answers[::2], alone, strict=True):
        assert isinstance(answer, AnalysisResult)
        assert values(answer, NAMES[0]) == values(expected, NAMES[0])


@pytest.mark.parametrize(("gate_count", "gate_m"), [(2, 10), (3, 99), (7, 10), (40, 10), (1540, 1), (1540, 99)])
def test_grids_that_no_instrument_has_are_survived(analysis: Analysis, gate_count: int, gate_m: int) -> None:
    lines = SimulatedCl51(1).telegram(DAY).split(b"\r\n")
    lines[3] = lines[3][:6] + b"%02d %04d" % (gate_m, gate_count) + lines[3][13:]
    lines[4] = lines[4][: 5 * gate_count]
    checked = b"\r\n".join(lines[:5]).removeprefix(b"\x01") + b"\r\n\x03"
    telegram = b"\x01%b%04x\x04\r\n" % (checked, binascii.crc_hqx(checked, 0xFFFF) ^ 0xFFFF)
    [result] = results_of(analysis, [AnalysisInput(telegram, "cl51", 0)])
    assert values(result, "quality_flag")[0] in (0, 1, 2)


def test_an_empty_batch_has_an_empty_answer(analysis: Analysis) -> None:
    assert analysis.predict([]) == []


def test_a_mixed_batch_gives_what_each_observation_gives_alone(analysis: Analysis, shared_data: Path) -> None:
    folder = shared_data / "ceilometer"
    batch = [
        AnalysisInput((folder / "chm15k/00100_A202010222015_CHM170137.nc").read_bytes(), "chm15k", 0),
        observe(SimulatedCl51(1), DAY),
        AnalysisInput((folder / "cl61/live_20210829_224520.nc").read_bytes(), "cl61", 0),
        AnalysisInput((folder / "vaisala/uto_cl31_msg.dat").read_bytes(), "cl31", 7),
        AnalysisInput((folder / "chm15k/raw_chm15k_lidar.nc").read_bytes(), "chm15k", 0),
    ]
    together = results_of(analysis, batch)
    assert [len(result.sample_unix_nanos) for result in together] == [10, 1, 12, 1, 20]
    for observation, result in zip(batch, together, strict=True):
        [alone] = results_of(analysis, [observation])
        for name in NAMES:
            np.testing.assert_allclose(values(result, name), values(alone, name), rtol=1e-5, err_msg=name)


def test_a_clear_evening_of_a_real_chm15k_has_a_steady_layer(analysis: Analysis, shared_data: Path) -> None:
    path = shared_data / "ceilometer/chm15k/00100_A202010222015_CHM170137.nc"
    [result] = results_of(analysis, [AnalysisInput(path.read_bytes(), "chm15k", 0)])
    height_m = values(result, NAMES[0])
    assert np.all((height_m > 350) & (height_m < 500))
    assert np.all(values(result, "quality_flag") == 2)


def test_fog_and_rain_of_real_files_give_no_height(analysis: Analysis, shared_data: Path) -> None:
    path = shared_data / "ceilometer/chm15k/raw_chm15k_lidar.nc"
    [result] = results_of(analysis, [AnalysisInput(path.read_bytes(), "chm15k", 0)])
    assert np.isnan(values(result, NAMES[0])).all()
    assert np.all(values(result, "quality_flag") == 0)


@pytest.mark.parametrize(
    ("name", "start_hour", "end_hour", "worst_median_m", "least_available"),
    [("night", 0, 5, 20, 0.98), ("growth", 7, 10.5, 40, 0.9), ("mature", 13, 17, 80, 0.5)],
)
def test_simulated_days_are_retrieved_as_well_as_the_documentation_says(
    analysis: Analysis, name: str, start_hour: float, end_hour: float, worst_median_m: float, least_available: float
) -> None:
    errors = []
    for seed in (21, 22, 23, 24):
        instrument = SimulatedCl51(seed)
        times = DAY + seed * 86400 + np.linspace(start_hour, end_hour, 40) * 3600
        results = results_of(analysis, [observe(instrument, unix_s) for unix_s in times])
        found = np.concatenate([values(result, NAMES[0]) for result in results])
        errors.append(found - instrument.atmosphere.truth(times).mixing_height_m)
    error = np.concatenate(errors)
    assert np.isfinite(error).mean() >= least_available
    assert np.nanmedian(np.abs(error)) < worst_median_m


def test_the_standard_error_is_about_the_error_where_the_edge_is_the_right_one(analysis: Analysis) -> None:
    instrument = SimulatedCl51(31)
    times = DAY + np.arange(0, 86400, 300.0)
    results = results_of(analysis, [observe(instrument, unix_s) for unix_s in times])
    found, error_m = (np.concatenate([values(result, name) for result in results]) for name in NAMES[:2])
    off_m = np.abs(found - instrument.atmosphere.truth(times).mixing_height_m)
    is_right = off_m < 200
    assert is_right.mean() > 0.7
    assert 0.5 < (off_m <= error_m)[is_right].mean() < 0.95


def test_the_cloud_base_that_the_instrument_reports_comes_with_the_height(analysis: Analysis) -> None:
    instrument = SimulatedCl51(2)
    times = DAY + np.arange(0, 10 * 86400, 600.0)
    base_m = instrument.atmosphere.truth(times).cloud_base_m
    cloudy = np.flatnonzero(np.isfinite(base_m))[:10]
    results = results_of(analysis, [observe(instrument, times[index]) for index in cloudy])
    reported = np.concatenate([values(result, "cloud_base_height") for result in results])
    np.testing.assert_allclose(reported, base_m[cloudy], atol=0.51)
