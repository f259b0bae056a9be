"""A trial tells an honest model's cost, what does not fit, and how its process ended; nothing of it stays."""

from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_support import (
    CLASSIFIER_MANIFEST,
    PROFILE_MANIFEST,
    make_classifier,
    make_image,
    make_profile,
    make_profile_model,
)

from fieldpost.errors import BrokenStateError, InvalidRequestError
from server.models.card import Trial
from server.models.trial import TrialLimits, try_model
from server.workers.jobs import ModelKey, ModelPackage

QUICK = TrialLimits(measure_s=0.2)


def _try(manifest: str, content: bytes, sample: bytes, limits: TrialLimits = QUICK) -> Trial:
    return asyncio.run(try_model(ModelPackage(ModelKey("some", 1), manifest, content), sample, limits))


def test_an_honest_model_passes_and_its_cost_is_known() -> None:
    found = _try(CLASSIFIER_MANIFEST, make_classifier(), make_image((200, 10, 10)))
    assert found.batch_fixed_s + found.observation_s > 0
    assert 1 <= found.max_batch_count <= 64
    assert found.memory_peak_bytes > 20_000_000
    assert math.isnan(found.difference_max_ratio)
    assert {"system call filter", "memory limit", "CPU limit"} <= set(found.confinements)


def test_expected_outputs_are_compared_and_their_difference_is_told() -> None:
    manifest = PROFILE_MANIFEST + "expected = [3.001]\n"
    found = _try(manifest, make_profile_model(), make_profile(3.0))
    assert found.difference_max_ratio == pytest.approx(0.001 / 3.001, rel=1e-2)


def test_a_fixed_batch_is_filled_up() -> None:
    for batch in (1, 5):
        found = _try(PROFILE_MANIFEST, make_profile_model(batch=batch), make_profile())
        assert found.max_batch_count >= 1


def test_a_model_that_takes_longer_than_its_manifest_says_is_refused() -> None:
    model = onnx.ModelProto.FromString(make_profile_model())
    nodes = [onnx.helper.make_node("MatMul", ["big", "big"], ["product"])]
    nodes += [onnx.helper.make_node("MatMul", ["product", "product"], ["product2"])]
    nodes += [onnx.helper.make_node("ReduceMean", ["product2"], ["one"], keepdims=0)]
    random = onnx.helper.make_node("RandomUniform", [], ["big"], shape=[2500, 2500])
    last = onnx.helper.make_node("Mul", ["m", "zero"], ["m0"])
    model.graph.node[0].output[0] = "m"
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    model.graph.initializer.append(zero)
    scaled = onnx.helper.make_node("Mul", ["one", "zero"], ["nothing"])
    add = onnx.helper.make_node("Add", ["m0", "nothing"], ["y"])
    model.graph.node.extend([random, *nodes, last, scaled, add])
    manifest = "timeout_s = 0.1\n" + PROFILE_MANIFEST
    with pytest.raises(InvalidRequestError, match=r"time: expected the sample within timeout_s = 0\.1"):
        _try(manifest, model.SerializeToString(), make_profile())


def test_a_trial_whose_process_cannot_start_says_nothing_about_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BrokenStateError, match=r"did not start \(status 1\)"):
        _try(PROFILE_MANIFEST, make_profile_model(), make_profile())


def test_a_trial_that_is_cancelled_ends_its_process() -> None:
    async def cancel() -> None:
        package = ModelPackage(ModelKey("some", 1), PROFILE_MANIFEST, make_profile_model())
        running = asyncio.create_task(try_model(package, make_profile(), QUICK))
        while not _children():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not _children()

    asyncio.run(cancel())


def _children() -> list[str]:
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        for each in path.read_text().split():
            if "trial_child" in Path(f"/proc/{each}/cmdline").read_text():
                found.append(each)
    return found
