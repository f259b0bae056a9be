"""Framing of streams: however the bytes are cut into chunks, the same observations come out and no byte is lost."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from chaos.fuzz import Fuzzer, run_fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.framing import (
    FORMATS,
    STREAM_FORMATS,
    Filler,
    Framed,
    Framer,
    FramingParameters,
    Part,
    Unframed,
    frame,
    stream_framer,
)
from edge_agent.framing.vaisala import cl_checksum

SETTINGS_MATTER = FramingParameters(
    line_end=b"\r\n", frame_bytes=8, frame_start=b"\xaa\x55", idle_gap_s=1.0, max_frame_bytes=200
)


def telegram(mark: bytes = b"0004e") -> bytes:
    """A CL51 telegram with a right checksum, as it comes out of the instrument; short."""
    lines = [b"CL010326", b"00 ///// ///// ///// 000000000080", b"  1 0123  0 ////  0 ////  0 ////  0 ////", mark * 4]
    body = b"\r\n".join([b"\x01" + lines[0] + b"\x02", *lines[1:], b""])
    return body + b"\x03%04x\x04\r\n" % cl_checksum(lines)


CT25K_END = b"\x03\x04\r\n"
PIECES = st.sampled_from(
    [
        telegram(),
        telegram(b"00000"),
        telegram().translate(None, b"\x01\x02\x03\x04"),
        telegram()[:50],
        telegram()[60:],
        telegram().replace(b"\x04\r\n", b"\r\n"),
        b"-2020-04-10 00:00:58\r\n",
        b"2020-04-10 00:00:58,",
        b"\x01CT02073\x02\r\n",
        CT25K_END,
        b"\xaa\x55123456",
        b"\xaa",
        b"\x55",
        b"\r\n",
        b"\r",
        b"\n",
        b"\x01",
        b"\x04",
        b"21.4;80\r\n",
        b"noise",
        b" " * 90,
        b"x" * 150,
    ]
)


def feed_all(framer: Framer, chunks: list[bytes], now_s: float = 0.0) -> list[Part]:
    return [part for chunk in chunks for part in framer.feed(chunk, now_s)]


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(content), *(at % (len(content) + 1) for at in cuts)})
    return [content[first:last] for first, last in pairwise(bounds)]


def framed(parts: list[Part]) -> list[bytes]:
    return [part.raw for part in parts if isinstance(part, Framed)]


def joined(parts: list[Part]) -> bytes:
    return b"".join(part.raw for part in parts)


# --- what holds for all of them ---


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(PIECES, st.binary(max_size=30)), max_size=10),
    st.lists(st.integers(0, 10_000), max_size=25),
    st.sampled_from(sorted(set(STREAM_FORMATS) - {"file"})),
    st.sampled_from(["silence", "end", "loss"]),
)
def test_the_bytes_come_out_as_they_went_in_and_chunks_change_no_observation(
    pieces: list[bytes], cuts: list[int], payload_format: str, ending: str
) -> None:
    content = b"".join(pieces)
    outcomes = []
    for chunks in (cut(content, []), cut(content, cuts), [content[i : i + 1] for i in range(len(content))]):
        framer = stream_framer(payload_format, SETTINGS_MATTER)
        parts = feed_all(framer, chunks)
        if ending == "silence":
            parts += framer.idle(0.9)
            parts += framer.idle(1.0)
        elif ending == "loss":
            parts += framer.lose()
            # What comes behind a loss is cut just as much by the bytes alone.
            parts += feed_all(framer, chunks)
            parts += framer.end()
        else:
            parts += framer.end()
        assert joined(parts) == content * (2 if ending == "loss" else 1)
        assert all(part.reason for part in parts if isinstance(part, Unframed))
        assert not any(part.raw.strip() and payload_format == "line" for part in parts if isinstance(part, Filler))
        outcomes.append(framed(parts))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(st.sampled_from(sorted(set(STREAM_FORMATS) - {"file"})), st.binary(min_size=1, max_size=3), st.integers(1, 40))
def test_no_more_bytes_than_allowed_are_ever_in_hand(payload_format: str, pattern: bytes, repeats: int) -> None:
    framer = stream_framer(payload_format, SETTINGS_MATTER)
    content = pattern * (repeats * 20)
    out = joined(framer.feed(content, 0.0))
    assert len(content) - len(out) <= SETTINGS_MATTER.max_frame_bytes


def test_silence_is_measured_from_the_last_bytes_also_where_they_are_looked_at_late() -> None:
    framer = stream_framer("idle-gap", SETTINGS_MATTER)
    assert framer.feed(b"first", 10.0) == []
    assert framer.feed(b" half", 10.9) == []
    assert framer.idle(11.8) == []
    assert framer.feed(b"second", 11.9) == [Framed(b"first half")], "a pause lay before these bytes"
    assert framer.idle(12.9) == [Framed(b"second")]
    assert framer.is_at_rest and framer.idle(20.0) == []


# --- telegrams ---


def test_a_telegram_is_handed_over_with_its_last_byte() -> None:
    framer = stream_framer("vaisala-cl", FramingParameters())
    good = telegram()
    before, last, behind = good[:-3], good[-3:-2], good[-2:]
    assert feed_all(framer, [before]) == []
    assert feed_all(framer, [last]) == [Framed(good[:-2])]
    assert feed_all(framer, [behind]) == []
    assert framer.idle(100.0) == [Filler(b"\r\n")]


@pytest.mark.parametrize("name", ["kenttarova_cl31_msg.dat", "uto_cl31_msg.dat", "cl31_badtime.DAT", "cl51.DAT"])
def test_real_telegrams_out_of_a_stream_are_those_of_the_file(shared_data: Path, name: str) -> None:
    content = (shared_data / "ceilometer/vaisala" / name).read_bytes()
    framer = stream_framer("vaisala-cl", FramingParameters())
    parts = feed_all(framer, [content[at : at + 37] for at in range(0, len(content), 37)]) + framer.idle(100.0)
    expected = [part for part in frame("vaisala-cl", content) if isinstance(part, Framed)]
    found = [part for part in parts if isinstance(part, Framed)]
    assert [(part.raw.strip(b"\r\n"), part.measure_unix_s) for part in found] == [
        (part.raw.strip(b"\r\n"), part.measure_unix_s) for part in expected
    ]
    assert joined(parts) == content


def test_real_ct25k_telegrams_without_a_checksum_are_framed_one_by_one(shared_data: Path) -> None:
    content = (shared_data / "ceilometer/vaisala/ct25k.dat").read_bytes()
    framer = stream_framer("vaisala-cl", FramingParameters())
    counts = [len(framed(framer.feed(content[at : at + 1], 0.0))) for at in range(len(content))]
    assert sum(counts) + len(framed(framer.idle(100.0))) == 3
    assert sum(counts) >= 2


def test_a_telegram_whose_checksum_is_wrong_is_unframed_and_the_next_one_is_not_lost() -> None:
    good = telegram()
    bad = good.replace(b"0004e", b"0004f", 1)
    framer = stream_framer("vaisala-cl", FramingParameters())
    parts = feed_all(framer, [good, bad, good])
    assert framed(parts) == [good[:-2], good[:-2]]
    (spoilt,) = [part for part in parts if isinstance(part, Unframed)]
    assert spoilt.raw == bad[:-2]
    assert "expected checksum" in spoilt.reason


def test_a_telegram_cut_at_any_byte_by_a_loss_costs_itself_only() -> None:
    good = telegram()
    for at in range(1, len(good) - 3):
        framer = stream_framer("vaisala-cl", FramingParameters())
        parts = feed_all(framer, [good[:at]]) + framer.lose() + feed_all(framer, [good]) + framer.end()
        assert framed(parts) == [good[:-2]]


def test_noise_of_any_length_before_a_telegram_does_not_hide_it() -> None:
    for noise in (b"\x00\xff" * 500, b"noise\r\n" * 100, b"\x01" * 300):
        framer = stream_framer("vaisala-cl", FramingParameters(max_frame_bytes=400))
        parts = feed_all(framer, [noise, telegram()])
        assert framed(parts) == [telegram()[:-2]]


def test_a_telegram_whose_control_characters_a_converter_dropped_is_framed() -> None:
    bare = telegram().translate(None, b"\x01\x02\x03\x04")
    framer = stream_framer("vaisala-cl", FramingParameters())
    assert framed(feed_all(framer, [bare, bare])) == [bare, bare]


def test_a_loggers_time_line_gives_the_time_of_the_telegram_behind_it() -> None:
    framer = stream_framer("vaisala-cl", FramingParameters())
    content = b"-2020-04-10 00:00:58\r\n" + telegram() + b"2020-04-10 00:01:58," + telegram()
    parts = feed_all(framer, [content])
    assert [part.measure_unix_s for part in parts if isinstance(part, Framed)] == [1586476858, 1586476918]


# --- lines, frames of one length, pauses ---


def test_lines_keep_their_ends_and_empty_ones_are_filler() -> None:
    framer = stream_framer("line", FramingParameters())
    assert feed_all(framer, [b"21.4;80\r\n\r\n", b"21", b".5;81\r\n"]) == [
        Framed(b"21.4;80\r\n"),
        Filler(b"\r\n"),
        Framed(b"21.5;81\r\n"),
    ]


def test_half_a_line_is_unframed_with_what_ended_it() -> None:
    framer = stream_framer("line", FramingParameters(idle_gap_s=5.0))
    framer.feed(b"21.", 0.0)
    assert framer.idle(5.0) == [
        Unframed(b"21.", "expected a line that ends with b'\\n', but got 3 bytes and then silence")
    ]
    framer.feed(b"22.", 6.0)
    (cut_off,) = framer.end()
    assert isinstance(cut_off, Unframed) and cut_off.reason.endswith("then the end of the stream")


def test_the_rest_of_a_line_behind_a_loss_is_no_observation() -> None:
    framer = stream_framer("line", FramingParameters())
    parts = framer.feed(b"1;2\n3;", 0.0) + framer.lose() + framer.feed(b"6\n7;8\n", 0.0)
    assert framed(parts) == [b"1;2\n", b"7;8\n"]
    assert [part.raw for part in parts if isinstance(part, Unframed)] == [b"3;", b"6\n"]


def test_a_line_that_is_too_long_is_unframed_as_a_whole() -> None:
    framer = stream_framer("line", FramingParameters(max_frame_bytes=64))
    parts = feed_all(framer, [b"a\n", b"x" * 65, b"y" * 100, b"end\n", b"b\n"])
    assert framed(parts) == [b"a\n", b"b\n"]


def test_frames_of_one_length_find_back_into_step_at_their_start() -> None:
    framer = stream_framer("fixed-length", FramingParameters(frame_bytes=6, frame_start=b"\xaa\x55"))
    parts = feed_all(framer, [b"junk\xaa", b"\xaa\x551234\xaa\x555678", b"\r\n\xaa\x55", b"90ab"])
    assert framed(parts) == [b"\xaa\x551234", b"\xaa\x555678", b"\xaa\x5590ab"]
    assert [part.raw for part in parts if isinstance(part, Unframed)] == [b"junk", b"\xaa"]


def test_frames_without_a_start_are_in_step_again_after_silence_only() -> None:
    framer = stream_framer("fixed-length", FramingParameters(frame_bytes=4, idle_gap_s=1.0))
    parts = framer.feed(b"AAAABB", 0.0) + framer.lose() + framer.feed(b"BCCCCDDDD", 0.1)
    parts += framer.feed(b"EEEE", 5.0)
    assert framed(parts) == [b"AAAA", b"EEEE"]


def test_a_pause_ends_an_observation_but_the_end_of_the_stream_does_not() -> None:
    framer = stream_framer("idle-gap", FramingParameters(idle_gap_s=1.0))
    parts = framer.feed(b"one", 0.0) + framer.idle(1.0) + framer.feed(b"tw", 2.0) + framer.end()
    assert framed(parts) == [b"one"]
    assert [part.raw for part in parts if isinstance(part, Unframed)] == [b"tw"]


def test_each_datagram_is_an_observation_and_one_that_is_too_long_is_not() -> None:
    framer = stream_framer("file", FramingParameters(max_frame_bytes=64))
    assert framer.feed(b"a", 0.0) == [Framed(b"a")]
    (part,) = framer.feed(b"b" * 65, 0.0)
    assert isinstance(part, Unframed)


def test_files_of_lines_and_frames_are_framed_as_well() -> None:
    parameters = FramingParameters(line_end=b";", frame_bytes=3, frame_start=b"#")
    assert frame("line", b"a;b; \n", parameters) == [Framed(b"a;"), Framed(b"b;"), Filler(b" \n")]
    assert frame("line", b"a;last", parameters) == [Framed(b"a;"), Framed(b"last")]
    parts = frame("fixed-length", b"#12x#34#5", parameters)
    assert framed(parts) == [b"#12", b"#34"]
    assert [part.raw for part in parts if isinstance(part, Unframed)] == [b"x", b"#5"]


# --- a few thousand of the million of chaos.fuzz ---


def test_a_few_thousand_mutated_inputs_raise_nothing_and_lose_nothing() -> None:
    summary = run_fuzz(count=4000, seed=1, report=lambda text: None)
    assert summary.input_count == 4000
    assert set(summary.by_target) >= {*(f"file {name}" for name in FORMATS), *(f"stream {n}" for n in STREAM_FORMATS)}
    assert summary.framed_count > 500, "good inputs are among them"
    assert summary.unframed_count > 500, "and bad ones"


def test_the_fuzzer_notices_a_byte_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "file", lambda content, _: [Framed(content[:-1])] if content else [])
    fuzzer = Fuzzer(seed=1)
    with pytest.raises(AssertionError, match="bytes"):
        for _ in range(2000):
            fuzzer.try_one()
