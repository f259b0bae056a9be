"""Framing: real instrument files with exact counts, held against another parser, and damage of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from ceilopyter.readers.read_cl import read_cl_file, read_cl_message
from ceilopyter.readers.read_ct import read_ct_file
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.framing import FORMATS, Filler, Framed, Part, Unframed, frame, recognise
from edge_agent.framing.netcdf import hdf5_size
from edge_agent.framing.vaisala import cl_checksum

# file -> (telegrams framed, parts that are not)
VAISALA_COUNTS = {
    "C4122300.DAT": (0, 1),
    "C5061800-first-invalid.DAT": (2, 1),
    "cl31.DAT": (3, 0),
    "cl31_badtime.DAT": (5, 0),
    "cl51-corrupted-profile.cl": (2, 1),
    "cl51.DAT": (2, 0),
    "ct25k.dat": (3, 0),
    "kauniainen_cl31.dat": (2, 0),
    "kenttarova_cl31_msg.dat": (1, 0),
    "uto_cl31_msg.dat": (1, 0),
}


def telegram(profile: bytes = b"0004e" * 20, end: bytes = b"\r\n") -> bytes:
    """A CL51 telegram with a right checksum, control characters and all."""
    lines = [b"CL010326", b"00 ///// ///// ///// 000000000080", b"  1 0123  0 ////  0 ////  0 ////  0 ////"]
    lines += [b"00100 10 0020 081 +35 100 01 0005 L0032HN15 006", profile]
    body = end.join([b"\x01" + lines[0] + b"\x02", *lines[1:], b""])
    return body + b"\x03%04x\x04" % cl_checksum(lines) + end


def framed(parts: list[Part]) -> list[Framed]:
    return [part for part in parts if isinstance(part, Framed)]


def unframed(parts: list[Part]) -> list[Unframed]:
    return [part for part in parts if isinstance(part, Unframed)]


# --- real files ---


@pytest.mark.parametrize("name", VAISALA_COUNTS)
def test_real_telegram_files_are_framed_to_the_exact_count(shared_data: Path, name: str) -> None:
    content = (shared_data / "ceilometer/vaisala" / name).read_bytes()
    assert recognise(content) == "vaisala-cl"
    parts = frame("vaisala-cl", content)
    assert (len(framed(parts)), len(unframed(parts))) == VAISALA_COUNTS[name]
    assert b"".join(part.raw for part in parts) == content


@pytest.mark.parametrize("name", [name for name in VAISALA_COUNTS if not name.endswith("_msg.dat")])
def test_what_is_framed_is_what_another_parser_accepts_with_the_same_times(shared_data: Path, name: str) -> None:
    path = shared_data / "ceilometer/vaisala" / name
    times, _ = (read_ct_file if name == "ct25k.dat" else read_cl_file)(path)
    expected = [int((time - type(time)(1970, 1, 1)).total_seconds()) for time in times]
    assert [part.measure_unix_s for part in framed(frame("vaisala-cl", path.read_bytes()))] == expected


@pytest.mark.parametrize("name", ["kenttarova_cl31_msg.dat", "uto_cl31_msg.dat"])
def test_a_bare_telegram_is_framed_without_a_time_and_another_parser_reads_it(shared_data: Path, name: str) -> None:
    (part,) = framed(frame("vaisala-cl", (shared_data / "ceilometer/vaisala" / name).read_bytes()))
    assert part.measure_unix_s is None
    assert len(read_cl_message(part.raw).beta) == 770


@pytest.mark.parametrize("pattern", ["chm15k/*.nc", "cl61/*.nc"])
def test_real_netcdf_files_are_one_observation_each_and_cut_ones_are_not(shared_data: Path, pattern: str) -> None:
    for path in sorted((shared_data / "ceilometer").glob(pattern)):
        content = path.read_bytes()
        assert recognise(content) == "netcdf"
        assert frame("netcdf", content) == [Framed(content)]
        if hdf5_size(content) is not None:
            (part,) = unframed(frame("netcdf", content[:-1]))
            assert part.reason == f"expected an HDF5 file of {len(content)} bytes, but got {len(content) - 1}: cut off"


@pytest.mark.parametrize("name", ["images/retina.jpg", "images/cell.png"])
def test_images_are_recognised_as_whole_files(shared_data: Path, name: str) -> None:
    content = (shared_data / name).read_bytes()
    assert recognise(content) == "file"
    assert frame("file", content) == [Framed(content)]


# --- damage ---


def test_a_flipped_byte_spoils_one_telegram_and_the_others_go_on() -> None:
    good = telegram()
    bad = good.replace(b"0004e", b"0004f", 1)
    content = b"".join(
        b"-2015-06-18 00:00:%02d\r\n" % second + part for second, part in [(1, good), (2, bad), (3, good)]
    )
    parts = frame("vaisala-cl", content)
    assert [part.measure_unix_s for part in framed(parts)] == [1434585601, 1434585603]
    (spoilt,) = unframed(parts)
    assert spoilt.raw == bad
    assert "expected checksum" in spoilt.reason


def test_a_telegram_cut_at_any_byte_is_unframed_and_the_next_one_is_not_lost() -> None:
    good = telegram()
    for cut in range(1, len(good) - 3):
        parts = frame("vaisala-cl", good[:cut] + good)
        assert [part.raw for part in framed(parts)] == [good]
        assert b"".join(part.raw for part in unframed(parts)) == good[:cut]


def test_a_telegram_whose_line_ends_and_control_characters_a_logger_dropped_is_framed() -> None:
    bare = telegram(end=b"\n").translate(None, b"\x01\x02\x03\x04")
    (part,) = framed(frame("vaisala-cl", b"2025-02-02 00:00:03," + bare))
    assert (part.raw, part.measure_unix_s) == (bare, 1738454403)


@pytest.mark.parametrize("line", [b"-2020-13-45 25:00:00\r\n", b"-20-04-10 00:00:58\r\n", b"-2020/04/10 00:00:58\r\n"])
def test_a_telegram_behind_a_time_line_that_is_no_time_is_not_framed(line: bytes) -> None:
    (part,) = unframed(frame("vaisala-cl", line + telegram()))
    assert part.raw == telegram()
    assert "expected a time line YYYY-MM-DD HH:MM:SS" in part.reason


def test_a_telegram_without_a_time_in_a_file_with_times_is_not_framed() -> None:
    parts = frame("vaisala-cl", b"-2020-04-10 00:00:58\r\n" + telegram() + telegram())
    assert (len(framed(parts)), len(unframed(parts))) == (1, 1)
    assert "expected a time line before the telegram" in unframed(parts)[0].reason


def test_a_time_line_without_a_telegram_is_filler_and_does_not_stamp_a_later_one() -> None:
    content = b"-2020-04-10 00:00:58\r\nnoise\r\n-2020-04-10 00:01:58\r\n" + telegram()
    parts = frame("vaisala-cl", content)
    assert [part.measure_unix_s for part in framed(parts)] == [1586476918]
    assert [part.raw for part in unframed(parts)] == [b"noise\r\n"]


def test_noise_before_the_start_character_does_not_hide_the_telegram() -> None:
    parts = frame("vaisala-cl", b"\xff\x00garbage" + telegram())
    assert [part.raw for part in framed(parts)] == [telegram()]
    assert [part.raw for part in unframed(parts)] == [b"\xff\x00garbage"]


def test_two_telegrams_without_a_line_end_between_them_are_two() -> None:
    assert len(framed(frame("vaisala-cl", telegram().rstrip() + telegram()))) == 2


def test_a_ct25k_telegram_of_a_wrong_shape_says_what_was_expected(shared_data: Path) -> None:
    content = (shared_data / "ceilometer/vaisala/ct25k.dat").read_bytes()
    lines = content.splitlines(keepends=True)
    del lines[6]  # the second profile line of the first telegram
    parts = frame("vaisala-cl", b"".join(lines))
    assert len(framed(parts)) == 2
    assert unframed(parts)[0].reason == "expected a CT25K telegram of 20 lines, but got 19"


@given(st.binary(max_size=3000), st.sampled_from(sorted(FORMATS)))
def test_no_bytes_raise_and_none_are_lost(content: bytes, payload_format: str) -> None:
    recognise(content)
    assert b"".join(part.raw for part in frame(payload_format, content)) == content


PIECES = st.sampled_from(
    [
        telegram(),
        telegram(end=b"\n"),
        telegram()[:50],
        b"-2020-04-10 00:00:58\r\n",
        b"2020-04-10 00:00:58,",
        b"-2020-99-10 00:00:58\r\n",
        b"-Ceilometer Logfile \r\n",
        b"\x01CT02073\x02\r\n",
        b"\x03\r\n",
        b"\r\n",
        b"\x01",
        b"\x04",
        b"noise",
    ]
)


@given(st.lists(PIECES, max_size=12))
def test_any_mixture_of_pieces_is_accounted_for_and_what_is_framed_is_a_whole_telegram(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    parts = frame("vaisala-cl", content)
    assert b"".join(part.raw for part in parts) == content
    assert all(part.raw in (telegram(), telegram(end=b"\n"), telegram()[:-2]) for part in framed(parts))
    assert not content or any(isinstance(part, Framed | Unframed) for part in parts)
    assert all(part.reason for part in unframed(parts))
    assert all(isinstance(part, Framed | Unframed | Filler) for part in parts)


def test_random_bytes_are_of_no_format() -> None:
    assert recognise(bytes(range(256)) * 20) is None
