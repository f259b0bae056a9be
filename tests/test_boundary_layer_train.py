"""The training: that it learns, that it goes on after a kill, and that several processes find what one finds."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from learned_support import drawn_weights

from benchmarks.boundary_layer_training import compare
from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from fieldpost.simulation.climates import TRAINING
from server.analyses.boundary_layer.learned.grid import CENTRES_M, GATE_COUNT
from server.analyses.boundary_layer.learned.network import NetworkConfig
from server.analyses.boundary_layer.learned.weights import Weights
from server.analyses.boundary_layer.train import run_training
from server.analyses.boundary_layer.training.batches import Batch, make_batch
from server.analyses.boundary_layer.training.calibrate import calibrate, measure
from server.analyses.boundary_layer.training.checkpoint import make_folder, read_checkpoint, write_checkpoint
from server.analyses.boundary_layer.training.courses import (
    PROFILE_COUNT,
    Course,
    climate_from_json,
    climate_to_json,
    gather_courses,
)
from server.analyses.boundary_layer.training.losses import count_looks, loss_of, ranked_probability_score_m
from server.analyses.boundary_layer.training.options import add_arguments, to_run
from server.analyses.boundary_layer.training.references import read_references, write_references

EPOCHS = 4
SMALL = ("--days", "4", "--epochs", str(EPOCHS), "--batch", "4", "--validation-days", "1", "--calibration-days", "1")
SMALL_NETWORK = ("--widths", "4", "4", "4", "--memory", "4")


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
    network = drawn_weights(1, NetworkConfig((6, 8, 8), 6)).network.train()
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


def _wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    """Returns once the first epoch is over, and with it the training is not: the last one of many is far away."""
    deadline = time.monotonic() + 100
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, courses) -> Path:
    """A run by one process that nobody has disturbed."""
    out = tmp_path_factory.mktemp("whole")
    _run(out, courses)
    return out


def test_a_run_that_is_killed_goes_on_and_ends_where_it_would_have(tmp_path, courses, whole):
    command = _command(tmp_path, courses)
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        _wait_for_checkpoint(tmp_path, process)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL  # it was in the middle
    assert not (tmp_path / "weights.safetensors").exists()
    said = _run(tmp_path, courses)
    assert "going on after epoch" in said and f"epoch 1/{EPOCHS}" not in said
    one, other = (Weights.from_bytes((each / "weights.safetensors").read_bytes()).network for each in (whole, tmp_path))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert (whole / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.timeout(240)
def test_three_processes_find_what_one_finds_and_one_that_dies_is_started_again(tmp_path, courses, whole):
    """A step has four courses: of three processes one has two of them, and still each course counts alike."""
    command = _command(tmp_path, courses, processes=3)
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _wait_for_checkpoint(tmp_path, process)
        workers = [each for each in psutil.Process(process.pid).children() if "--out" in each.cmdline()]
        workers[-1].kill()
        said, _ = process.communicate(timeout=200)
    finally:
        for each in (*psutil.Process(process.pid).children(), process) if process.poll() is None else ():
            each.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "going on after epoch" in said
    one, three = (json.loads((each / "metrics.json").read_text()) for each in (whole, tmp_path))
    assert three["processes"] == 3
    assert three["provenance"]["data_sha256"] == one["provenance"]["data_sha256"]
    for before, after in zip(one["history"], three["history"], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-3)
        assert after["rmse_m"] == pytest.approx(before["rmse_m"], rel=0.01)
    assert not any(each.is_running() for each in workers)


def test_unequal_shares_of_a_batch_make_the_gradients_of_the_whole_batch():
    network = drawn_weights(1, NetworkConfig((6, 8, 8), 6)).network.train()
    sparse = replace(_plain_course(500.0), is_there=np.arange(PROFILE_COUNT) % 50 == 0)
    courses = [_plain_course(800.0), _plain_course(1500.0, 1), sparse]
    random = [np.random.default_rng(place) for place in range(3)]
    whole = make_batch(courses, random, is_varied=False)
    shares = [Batch(*(each[some] for each in whole)) for some in (slice(0, 2), slice(2, 3))]
    mean_counts = (count_looks(shares[0]) + count_looks(shares[1])) / 2

    def gradient(*batches: Batch, counts: torch.Tensor | None) -> torch.Tensor:
        network.zero_grad()
        for batch in batches:
            answers = network.follow(batch.step_looks, batch.step_facts, batch.looks, batch.facts)
            (loss_of(answers, batch, counts) / len(batches)).backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    alone = gradient(whole, counts=None)
    torch.testing.assert_close(gradient(*shares, counts=mean_counts), alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(gradient(*shares, counts=None), alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--days", "0"), "expected at least 1, but got 0 .days"),
        (("--epochs", "-1"), "expected at least 1, but got -1 .epochs"),
        (("--learning-rate", "nan"), "expected a learning rate above 0, but got nan"),
        (("--climate", "{missing}"), "expected a climate, .*missing: No such file"),
        (("--climate", "{none}"), "expected a climate as JSON"),
        (("--start-from", "{missing}"), "expected weights to begin with, but got .*missing: No such file"),
        (("--start-from", "{none}"), "expected weights of the boundary-layer network"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_begins(tmp_path, options, expected):
    (tmp_path / "none").write_text("latitude")
    names = {"missing": tmp_path / "missing", "none": tmp_path / "none"}
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(InvalidRequestError, match=expected):
        to_run(parser.parse_args(["--out", str(tmp_path), *(each.format(**names) for each in options)]))


def test_a_network_that_is_named_no_shape_has_that_of_the_weights_it_begins_with(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(drawn_weights(0, NetworkConfig((6, 8, 8), 6)).to_bytes())
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = ["--out", str(tmp_path), "--start-from", str(weights)]
    settings = to_run(parser.parse_args(arguments)).settings
    assert (settings.widths, settings.memory) == ((6, 8, 8), 6)
    other = to_run(parser.parse_args([*arguments, "--widths", "4", "4", "4"]))
    with pytest.raises(InvalidRequestError, match=r"expected weights .*\(4, 4, 4\).* but got .*\(6, 8, 8\)"):
        run_training(other)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError, match=r"expected a folder that can be written to, but got .*file/run"):
        make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("kept", [0, 1, 200, -1])
def test_a_checkpoint_that_was_cut_short_is_none(tmp_path, kept):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"seed": 1}, {"history": [{"loss": 1.0}], "network": {"weight": torch.ones(500)}})
    assert read_checkpoint(path, {"seed": 1}, "cpu")["history"] == [{"loss": 1.0}]
    path.write_bytes(path.read_bytes()[:kept])
    assert read_checkpoint(path, {"seed": 1}, "cpu") is None


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path):
    write_checkpoint(tmp_path / "checkpoint.pt", {"seed": 1, "climate": "a"}, {})
    with pytest.raises(InvalidRequestError, match="expected the checkpoint of a run with the same climate, but"):
        read_checkpoint(tmp_path / "checkpoint.pt", {"seed": 1, "climate": "b"}, "cpu")


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {}, {"epoch": 1})
    path.with_suffix(".part").symlink_to("/dev/full")
    with pytest.raises(TryAgainError, match=r"expected room for .*checkpoint.pt"):
        write_checkpoint(path, {}, {"weight": torch.ones(100_000)})
    assert read_checkpoint(path, {}, "cpu") == {"epoch": 1}


def test_a_course_that_was_cut_short_is_simulated_again_and_a_damaged_one_is_named(tmp_path):
    (path,) = gather_courses(tmp_path, [1], TRAINING)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert gather_courses(tmp_path, [1], TRAINING) == [path]
    assert path.read_bytes() == content
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(BrokenStateError, match=r"expected a course in .*but got: Bad CRC-32"):
        Course.load(path)


def test_two_trainings_are_timed_until_a_score_that_both_reach():
    one = [{"rmse_m": rmse_m, "epoch_s": 10.0} for rmse_m in (300.0, 150.0, 100.0)]
    two = [{"rmse_m": rmse_m, "epoch_s": 6.0} for rmse_m in (310.0, 190.0, 160.0)]
    found = compare(one, two)
    assert (found["fixed_rmse_m"], found["seconds_1"], found["seconds_2"]) == (160.0, 20.0, 18.0)
    assert found["score_drop_m"] == 60.0


@pytest.mark.timeout(240)
def test_training_on_ray_goes_on_after_a_worker_was_killed(tmp_path, courses, whole):
    pytest.importorskip("ray.train.torch", reason="the extra ray-train is not installed")
    command = _command(tmp_path, courses)
    command[command.index("server.analyses.boundary_layer.train")] = "server.analyses.boundary_layer.train_ray"
    command += ["--workers", "2", "--address", "local"]
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = []
    try:
        _wait_for_checkpoint(tmp_path, process)
        started = psutil.Process(process.pid).children(recursive=True)
        workers = [each for each in started if "ray::" in each.name() and "RayTrainWorker" in " ".join(each.cmdline())]
        workers[-1].kill()
        said, _ = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
        for each in started:
            if each.is_running():
                each.kill()
    assert process.returncode == 0, said
    assert "going on after epoch" in said
    one, two = (json.loads((each / "metrics.json").read_text()) for each in (whole, tmp_path))
    assert two["processes"] == 2
    losses = [[each["loss"] for each in metrics["history"]] for metrics in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
