"""Decoding telegrams: equal to ceilopyter on every real one, and clear about what is wrong with the others."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ceilopyter.common import InvalidMessageError
from ceilopyter.readers.read_cl import FORMATS, read_cl_message
from ceilopyter.readers.read_ct import read_ct_message
from ceilopyter.utils import parse_file
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldpost.errors import InvalidObservationError
from fieldpost.simulation import SimulatedCl51
from fieldpost.simulation.telegram import write_telegram
from fieldpost.telegrams.vaisala_cl import read_profile
from server.analyses import AnalysisInput
from server.analyses.boundary_layer.decoding.decode import decode

NANOS = 1_600_000_000_123_456_789
TELEGRAM = SimulatedCl51(seed=1).telegram(1_750_000_000.0)
GOOD_TELEGRAM_COUNT = 21
"""How many of the real telegrams ceilopyter reads: so that the comparison cannot become empty."""


def as_input(payload: bytes, model: str = "cl51", calibration: float | None = None) -> AnalysisInput:
    return AnalysisInput(payload, model, NANOS, calibration)


def real_telegrams(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Every telegram of the real files: file name, instrument model, bytes between two time lines."""
    for path in sorted((folder / "ceilometer" / "vaisala").iterdir()):
        content = path.read_bytes()
        parts = [part for pattern in FORMATS for _, part in parse_file(content, pattern)]
        for part in parts or [content]:
            yield path.name, "ct25k" if path.name.startswith("ct25k") else "cl31", part


def real_telegram(folder: Path, name: str, index: int = 0) -> bytes:
    return [part for file_name, _, part in real_telegrams(folder) if file_name == name][index]


def with_checksum(telegram: bytes) -> bytes:
    """The telegram with the checksum that fits its bytes."""
    start, end = telegram.index(b"CL"), telegram.index(b"\x03") + 1
    checksum = binascii.crc_hqx(telegram[start:end], 0xFFFF) ^ 0xFFFF
    return telegram[:end] + b"%04x\x04\r\n" % checksum


def test_every_real_telegram_that_ceilopyter_reads_gives_the_same_profile_and_the_others_are_refused(
    shared_data: Path,
) -> None:
    good = 0
    for name, model, telegram in real_telegrams(shared_data):
        read = read_ct_message if model == "ct25k" else read_cl_message
        try:
            expected = read(telegram)
        except (InvalidMessageError, ValueError):
            with pytest.raises(InvalidObservationError):
                decode(as_input(telegram, model))
            continue
        profiles = decode(as_input(telegram, model))
        np.testing.assert_allclose(profiles.beta[0], expected.beta, rtol=1e-6, err_msg=name)
        cosine = np.cos(np.deg2rad(expected.tilt_angle))
        gates = np.arange(len(expected.beta)) + 0.5
        np.testing.assert_allclose(profiles.height_m, gates * expected.range_resolution * cosine, err_msg=name)
        good += 1
    assert good == GOOD_TELEGRAM_COUNT


def test_arrays_have_the_promised_shapes_and_types() -> None:
    profiles = decode(as_input(TELEGRAM))
    assert profiles.beta.shape == (1, 1540) and profiles.beta.dtype == np.float32
    assert profiles.height_m.shape == (1540,) and profiles.height_m.dtype == np.float64
    assert profiles.cloud_base_m.shape == (1, 3) and profiles.cloud_base_m.dtype == np.float32
    assert profiles.unix_nanos.tolist() == [NANOS]


def test_the_calibration_of_the_registry_is_a_factor() -> None:
    plain, calibrated = decode(as_input(TELEGRAM)), decode(as_input(TELEGRAM, calibration=1.4))
    np.testing.assert_allclose(calibrated.beta, 1.4 * plain.beta, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "index", "expected_m"),
    [
        ("cl51.DAT", 0, [150 * 0.3048]),  # the status says feet
        ("C5061800-first-invalid.DAT", 1, [270]),
        ("ct25k.dat", 0, [1220]),  # the CT25K has the bit for metres elsewhere
        ("kauniainen_cl31.dat", 0, [440]),
        ("cl31.DAT", 0, []),
    ],
)
def test_cloud_bases_of_real_telegrams_are_metres(
    shared_data: Path, name: str, index: int, expected_m: list[float]
) -> None:
    model = "ct25k" if name.startswith("ct25k") else "cl31"
    bases = decode(as_input(real_telegram(shared_data, name, index), model)).cloud_base_m[0]
    np.testing.assert_allclose(bases[: len(expected_m)], expected_m, rtol=1e-6)
    assert np.isnan(bases[len(expected_m) :]).all()


@pytest.mark.parametrize(
    ("status", "bases_m", "is_obscured"),
    [
        (b"00 ///// ///// /////", [], False),
        (b"10 00150 ///// /////", [150], False),
        (b"20 00150 01200 /////", [150, 1200], False),
        (b"30 00150 01200 03000", [150, 1200, 3000], False),
        (b"40 00090 00120 /////", [], True),  # vertical visibility and highest signal, no cloud bases
        (b"50 ///// ///// /////", [], False),
        (b"/0 ///// ///// /////", [], False),
    ],
)
def test_the_detection_status_says_what_the_heights_mean(
    status: bytes, bases_m: list[float], is_obscured: bool
) -> None:
    lines = write_telegram(np.zeros(1540, np.int32), unit="0").split(b"\r\n")
    lines[1] = status + b" 000000000080"
    profiles = decode(as_input(with_checksum(b"\r\n".join(lines))))
    assert profiles.cloud_base_m[0][np.isfinite(profiles.cloud_base_m[0])].tolist() == bases_m
    assert profiles.is_obscured.tolist() == [is_obscured]


def test_a_telegram_whose_line_ends_blanks_and_control_characters_were_lost_is_still_checked() -> None:
    lines = re.sub(rb"[\x01-\x04]", b"", TELEGRAM).split(b"\r\n")
    lines[2] = lines[2].strip()
    stripped = b"2025-06-15 15:06:40," + b"\n".join(lines)
    np.testing.assert_array_equal(decode(as_input(stripped)).beta, decode(as_input(TELEGRAM)).beta)
    with pytest.raises(InvalidObservationError, match="checksum"):
        decode(as_input(stripped.replace(b"0a", b"0b", 1)))


@pytest.mark.parametrize("gate_count", [2, 5, 385, 770, 1500])
def test_odd_and_even_numbers_of_samples_are_read(gate_count: int) -> None:
    values = np.random.default_rng(gate_count).integers(-(2**19), 2**19, gate_count)
    digits = "".join(f"{value & 0xFFFFF:05x}" for value in values).encode()
    assert read_profile(digits, gate_count).tolist() == values.tolist()
    assert read_profile(digits.upper(), gate_count).tolist() == values.tolist()


@pytest.mark.parametrize(("gate_m", "gate_count"), [(10, 770), (20, 385), (5, 1500), (5, 770)])
def test_the_resolutions_of_the_cl31_are_read(gate_m: int, gate_count: int) -> None:
    lines = TELEGRAM.split(b"\r\n")
    lines[0] = b"\x01CL010121\x02"
    lines[3] = lines[3][:6] + b"%02d %04d" % (gate_m, gate_count) + lines[3][13:26] + b"01" + lines[3][28:]
    lines[4] = lines[4][: 5 * gate_count]
    profiles = decode(as_input(with_checksum(b"\r\n".join(lines)), "cl31"))
    assert profiles.beta.shape == (1, gate_count)
    assert np.diff(profiles.height_m) == pytest.approx(gate_m * np.cos(np.deg2rad(1)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: b"", "header"),
        (lambda t: t[:4000], "lines or more|characters"),
        (lambda t: t[:8] + b"9" + t[9:], "header"),
        (lambda t: t.replace(b" 1540 ", b" 1539 "), "expected 7695 characters"),
        (lambda t: t.replace(b"00100 10", b"00100 00"), "two gates or more"),
        (lambda t: t.replace(b"00100 10", b"0x100 10"), "checksum"),
        (lambda t: with_checksum(t.replace(b"00100 10", b"0x100 10")), "a number in columns 1 to 5"),
        (lambda t: with_checksum(t.replace(b"00000000C080", b"00000000G080")), "hexadecimal digits of status"),
        (lambda t: with_checksum(t.replace(b"00 /////", b"10 00x50", 1)), "a number in columns 4 to 8"),
        (lambda t: with_checksum(t[:5000] + b"xyz" + t[5003:]), "hexadecimal digits"),
        (lambda t: t[:-8] + b"zzzz\x04\r\n", "checksum of 4 digits"),
    ],
)
def test_what_is_wrong_with_a_telegram_is_said(damage: Callable[[bytes], bytes], message: str) -> None:
    clear = SimulatedCl51(seed=1).telegram(1_750_000_000.0 - 12 * 3600)
    with pytest.raises(InvalidObservationError, match=message):
        decode(as_input(damage(clear)))


def test_a_lost_line_of_a_ct25k_telegram_is_noticed_although_it_has_no_checksum(shared_data: Path) -> None:
    lines = real_telegram(shared_data, "ct25k.dat").splitlines(keepends=True)
    lost = b"".join(line for line in lines if not line.startswith(b"080"))
    with pytest.raises(InvalidObservationError, match="starts at gate 80"):
        decode(as_input(lost, "ct25k"))


def test_an_unknown_instrument_model_is_refused() -> None:
    with pytest.raises(InvalidObservationError, match="instrument model of cl31, cl51"):
        decode(as_input(TELEGRAM, "cs135"))


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=400), model=st.sampled_from(["cl31", "cl51", "ct25k", "chm15k", "cl61"]))
def test_any_bytes_are_refused_with_the_error_that_the_server_knows(payload: bytes, model: str) -> None:
    with pytest.raises(InvalidObservationError):
        decode(as_input(payload, model))


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, len(TELEGRAM)),
    is_checksum_mended=st.booleans(),
)
def test_a_damaged_telegram_is_decoded_or_refused_and_nothing_else(
    changes: list[tuple[int, int]], cut: int | None, is_checksum_mended: bool
) -> None:
    damaged = bytearray(TELEGRAM[:cut])
    for position, value in changes:
        if position < len(damaged):
            damaged[position] = value
    payload = bytes(damaged)
    if is_checksum_mended and b"CL" in payload and b"\x03" in payload[payload.index(b"CL") :]:
        start = payload.index(b"CL")
        payload = payload[:start] + with_checksum(payload[start:])
    try:
        profiles = decode(as_input(payload))
    except InvalidObservationError:
        return
    assert profiles.beta.shape == (1, len(profiles.height_m))
    assert np.all(np.diff(profiles.height_m) > 0)
