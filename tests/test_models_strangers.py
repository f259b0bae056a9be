"""What a stranger's manifest, payload, model and process can do to the server: be refused, each with its reason."""

from __future__ import annotations

import asyncio
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from model_support import PROFILE_MANIFEST, make_profile, make_profile_model

from fieldpost.errors import BrokenStateError, InvalidObservationError, InvalidRequestError
from server.models.answers import RESULT_BYTES_MAX, interpret
from server.models.manifest import InputDeclaration, read_manifest
from server.models.payloads import Preparation
from server.models.trial import TrialLimits, try_model
from server.workers.jobs import ModelKey, ModelPackage

MANY = 5000


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * MANY + " = 1",
        "a" + " . 'b.c'" * MANY + " = 1",
        'a."x\\".y"' + '."z#"' * MANY + " = 1",
        "[a" + ".a" * MANY + "]",
        'a = { b = """ """", c' + ".c" * MANY + ' = 1, d = "" }',
        "a = { b = ''' ''''', c" + ".c" * MANY + " = 1 }",
        'a = "#"\nb' + ".b" * MANY + " = 1",
    ],
)
def test_a_key_of_thousands_of_parts_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="keys of at most"):
        read_manifest(text)


def test_dots_that_part_no_keys_are_fine() -> None:
    dots = ".x" * 100
    expected = ", ".join(["1.5"] * 100)
    text = PROFILE_MANIFEST.replace("[input]", f"description = '''{dots}'''  # {dots}\n[input]")
    assert read_manifest(text).description == dots
    with pytest.raises(InvalidRequestError, match="metrics"):
        read_manifest(f"metrics = [{expected}]\n{PROFILE_MANIFEST}")


def test_a_number_too_long_to_be_read_is_a_mistake_in_the_manifest() -> None:
    with pytest.raises(InvalidRequestError, match="expected a manifest in TOML"):
        read_manifest(f"timeout_s = {'1' * 5000}")


@pytest.mark.parametrize(
    "header", ["{'descr': (", "-" * 9000 + "1", "{[]: 1}", "'" * 3, "  x\n y", "[" * 9000, "(" * 150 + ")" * 150]
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_numpy_header_that_breaks_the_parser_is_refused_in_its_place(header: str, version: tuple[int, int]) -> None:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    payload = b"\x93NUMPY" + bytes(version) + length + header.encode() + bytes(16)
    preparation = Preparation(InputDeclaration(decode="npy", stored_dtype="float32", shape=(4,)))  # type: ignore[arg-type]
    with pytest.raises(InvalidObservationError):
        preparation.decode(payload)


def test_results_that_no_message_could_hold_are_refused() -> None:
    manifest = read_manifest("sample_spacing_s = 1\n" + PROFILE_MANIFEST)
    count = RESULT_BYTES_MAX // 12
    assert interpret(manifest, [np.zeros((1, count, 1), np.float32)], [0]).counts == [count]
    with pytest.raises(InvalidRequestError, match="bytes of results for one payload"):
        interpret(manifest, [np.zeros((1, count + 1, 1), np.float32)], [0])


@pytest.mark.parametrize(
    "said",
    [
        "5",
        "[1]",
        '["step"]',
        "null",
        '{"refused": "half a character: \\ud800"}',
        '{"step": "\\ud800"}',
        "[" * 100_000,
        '{"step": "loaded"}\n"step"',
        "x" * 2_000_000,
        '{"trial": {"batch_fixed_s": -1}}',
        '{"trial": 7}',
        '{"other": 7}',
    ],
)
def test_whatever_the_process_of_a_trial_says_it_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    (tmp_path / "said").write_text(said + "\n")
    _become(tmp_path, monkeypatch, f"cat {tmp_path / 'said'}; exec sleep 60")
    with pytest.raises((InvalidRequestError, BrokenStateError), match=r"^(forbidden|expected the finding)") as caught:
        _try(TrialLimits())
    (str(caught.value) + caught.value.hint).encode()


def test_a_process_that_talks_for_ever_gets_no_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _become(tmp_path, monkeypatch, """while echo '{"step": ""}'; do sleep 0.05; done""")
    with pytest.raises(InvalidRequestError, match=r"time: expected a model that can be tried in 0\.5 s"):
        _try(TrialLimits(wall_s=0.5))


def _become(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Lets another program run in the place of Python: what a model that got the better of its process could do."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def _try(limits: TrialLimits) -> None:
    package = ModelPackage(ModelKey("some", 1), PROFILE_MANIFEST, make_profile_model())
    asyncio.run(asyncio.wait_for(try_model(package, make_profile(), limits), 20))
