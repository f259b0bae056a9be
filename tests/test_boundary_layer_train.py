"""The training: that it learns, that it goes on after a kill, and that two processes find what one finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_support import drawn_weights

from fieldpost.errors import InvalidRequestError
from fieldpost.simulation.climates import TRAINING
from server.analyses.boundary_layer.learned.grid import CENTRES_M, GATE_COUNT
from server.analyses.boundary_layer.learned.weights import Weights
from server.analyses.boundary_layer.training.batches import make_batch
from server.analyses.boundary_layer.training.calibrate import calibrate, measure
from server.analyses.boundary_layer.training.courses import (
    PROFILE_COUNT,
    Course,
    climate_from_json,
    climate_to_json,
    gather_courses,
)
from server.analyses.boundary_layer.training.losses import loss_of, ranked_probability_score_m
from server.analyses.boundary_layer.training.references import read_references, write_references

SMALL = ("--days", "8", "--epochs", "3", "--batch", "4", "--validation-days", "2", "--calibration-days", "2")
SMALL_NETWORK = ("--widths", "6", "8", "8", "--memory", "6")


def _plain_course(top_m: float, seed: int = 0) -> Course:
    """A layer that stays where it is all day, without simulator."""
    random = np.random.default_rng(seed)
    count, nothing = PROFILE_COUNT, np.full(PROFILE_COUNT, np.nan, np.float32)
    beta = np.where(top_m > CENTRES_M, 2e-6, 1e-7) * random.uniform(0.8, 1.2, (count, 1))
    return Course(
        beta=beta.astype(np.float32),
        noise=np.full(count, 1e-27),
        cloud_base_m=nothing,
        is_obscured=np.zeros(count, np.bool_),
        is_there=np.ones(count, np.bool_),
        sun=np.zeros((count, 4), np.float32),
        mixing_height_m=np.full(count, top_m, np.float32),
        residual_layer_height_m=nothing,
        true_cloud_base_m=nothing,
        sky=np.zeros(count, np.int8),
        regime=np.zeros(count, np.int8),
        reach=np.array(GATE_COUNT),
    )


@pytest.fixture(scope="module")
def courses(tmp_path_factory) -> Path:
    """A folder of courses that all runs here share."""
    return tmp_path_factory.mktemp("courses")


def _command(out: Path, courses: Path, *options: str, processes: int = 1) -> list[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--max-restarts=2", "-m"]
    train = ["server.analyses.boundary_layer.train", "--out", str(out), "--courses", str(courses)]
    return [*start, *train, *SMALL, *SMALL_NETWORK, *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def _run(out: Path, courses: Path, *options: str, processes: int = 1) -> str:
    command = _command(out, courses, *options, processes=processes)
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_loss_falls_when_the_network_is_shown_a_layer():
    torch.manual_seed(0)
    network = drawn_weights(1).network.train()
    batch = make_batch([_plain_course(800.0)], [np.random.default_rng(0)], is_varied=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = loss_of(network.follow(batch.step_looks, batch.step_facts, batch.looks, batch.facts), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_batch_without_any_truth_has_a_loss_that_is_finite_and_so_have_its_gradients():
    nowhere = np.full(PROFILE_COUNT, np.nan, np.float32)
    course = replace(_plain_course(800.0), mixing_height_m=nowhere, sky=np.full(PROFILE_COUNT, -1, np.int8))
    silent = replace(_plain_course(800.0), is_there=np.zeros(PROFILE_COUNT, np.bool_))
    network = drawn_weights(1).network.train()
    batch = make_batch([course, silent], [np.random.default_rng(0)] * 2, is_varied=False)
    loss = loss_of(network.follow(batch.step_looks, batch.step_facts, batch.looks, batch.facts), batch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_the_ranked_probability_score_is_the_distance_where_the_answer_is_sure():
    logits = torch.full((1, GATE_COUNT), -60.0)
    logits[0, 60] = 0
    near, far = (ranked_probability_score_m(logits, torch.tensor([height])) for height in (CENTRES_M[60], 3000.0))
    assert float(near) < 30
    assert float(far) == pytest.approx(3000 - CENTRES_M[60], abs=60)


def test_courses_vary_in_training_and_stay_as_they_are_in_tests():
    course = _plain_course(800.0)
    plain = make_batch([course], [np.random.default_rng(3)], is_varied=False)
    again = make_batch([course], [np.random.default_rng(3)], is_varied=False)
    assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(plain, again, strict=True))
    varied = [make_batch([course], [np.random.default_rng(seed)], is_varied=True).looks for seed in range(3)]
    assert not torch.equal(varied[0], varied[1])


def test_an_interval_that_is_too_narrow_is_widened():
    weights = drawn_weights(2)
    sharp = weights.network
    with torch.no_grad():
        sharp.where.weight[0] *= 40  # sure of itself, and of nonsense
    few = [_plain_course(top_m, seed) for seed, top_m in enumerate((300.0, 900.0, 1800.0))]
    assert calibrate(sharp, few, 3).interval_temperature > 1
    assert measure(sharp, few, 3).coverage_90 < 0.9


def test_a_climate_comes_back_from_its_file_and_anything_else_is_refused():
    assert climate_from_json(climate_to_json(TRAINING)) == TRAINING
    for broken in ("", "[]", '{"latitude_deg": [0, 1]}'):
        with pytest.raises(InvalidRequestError):
            climate_from_json(broken)


def test_references_come_back_from_their_file(tmp_path):
    write_references(tmp_path / "references.npz", [_plain_course(500.0), _plain_course(900.0)])
    again = read_references(tmp_path / "references.npz")
    assert [float(course.mixing_height_m[0]) for course in again] == [500.0, 900.0]


def test_a_course_is_simulated_once(tmp_path):
    told = []
    first = gather_courses(tmp_path, range(2), TRAINING, on_done=lambda *counts: told.append(counts))
    stamps = [path.stat().st_mtime_ns for path in first]
    assert gather_courses(tmp_path, range(2), TRAINING) == first
    assert [path.stat().st_mtime_ns for path in first] == stamps
    assert told[-1] == (2, 2)
    assert np.isfinite(Course.load(first[0]).beta).all()


def test_a_run_that_is_killed_goes_on_and_ends_where_it_would_have(tmp_path, courses):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _run(whole, courses)
    process = subprocess.Popen(
        _command(cut, courses), env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (cut / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = _run(cut, courses)
    if not (cut / "metrics.json").exists() or "going on after epoch" not in said:
        assert "epoch 1/3" not in said
    one, other = (Weights.from_bytes((each / "weights.safetensors").read_bytes()).network for each in (whole, cut))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert (whole / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_two_processes_find_what_one_finds_and_one_that_dies_is_started_again(tmp_path, courses):
    alone, together = tmp_path / "alone", tmp_path / "together"
    _run(alone, courses)
    command = _command(together, courses, processes=2)
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (together / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if children:  # otherwise it was already done
        os.kill(int(children[-1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    one, two = (json.loads((each / "metrics.json").read_text()) for each in (alone, together))
    assert two["processes"] == 2
    assert two["provenance"]["data_sha256"] == one["provenance"]["data_sha256"]
    for before, after in zip(one["history"], two["history"], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.02)
