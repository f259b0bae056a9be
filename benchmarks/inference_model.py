"""The model that everybody serves in the inference benchmark: convolution, convolution, LSTM, linear, on one profile.

Its weights come from a fixed seed: it knows nothing, and costs what a small profile model costs. Knows no server.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]

PROFILE_LENGTH = 1024
OUTPUT_COUNT = 4
INPUT, OUTPUT = "profile", "heights"
SEED = 20_260_101
IR_VERSION, OPSET = 9, 17
"""Old enough for the runtime of every peer."""


def build_model() -> bytes:
    """The ONNX file: (N, 1, 1024) float32 in, (N, 4) float32 out."""
    random = np.random.default_rng(SEED)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(random.normal(0, scale, shape).astype(np.float32), name)

    parts = [
        weights("conv1.weight", 16, 1, 7),
        weights("conv1.bias", 16),
        weights("conv2.weight", 16, 16, 5),
        weights("conv2.bias", 16),
        weights("lstm.input", 1, 128, 16),
        weights("lstm.recurrent", 1, 128, 32),
        weights("lstm.bias", 1, 256),
        weights("linear.weight", OUTPUT_COUNT, 32),
        weights("linear.bias", OUTPUT_COUNT),
        numpy_helper.from_array(np.array([0], dtype=np.int64), "first"),
    ]
    nodes = [
        helper.make_node(
            "Conv", [INPUT, "conv1.weight", "conv1.bias"], ["a"], strides=[4], pads=[3, 3]
        ),  # (N, 16, 256)
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv2.weight", "conv2.bias"], ["c"], strides=[4], pads=[2, 2]),  # (N, 16, 64)
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[2, 0, 1]),  # (64, N, 16): time first
        helper.make_node("LSTM", ["e", "lstm.input", "lstm.recurrent", "lstm.bias"], ["", "f"], hidden_size=32),
        helper.make_node("Squeeze", ["f", "first"], ["g"]),  # the last hidden state: (N, 32)
        helper.make_node("Gemm", ["g", "linear.weight", "linear.bias"], [OUTPUT], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "profile-heights",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 1, PROFILE_LENGTH])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", OUTPUT_COUNT])],
        parts,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def make_profiles(count: int) -> Floats:
    """Different inputs: (count, 1, 1024)."""
    return np.random.default_rng(SEED + 1).normal(0, 1, (count, 1, PROFILE_LENGTH)).astype(np.float32)


def open_session(model: bytes, device: str = "cpu") -> onnxruntime.InferenceSession:
    """The model at work, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise SystemExit(f"expected {provider} of onnxruntime for device {device}, but it is not installed")
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def predict(session: onnxruntime.InferenceSession, profiles: Floats) -> Floats:
    """(N, 1, 1024) in, (N, 4) out."""
    (heights,) = session.run([OUTPUT], {INPUT: profiles})
    return np.asarray(heights, dtype=np.float32)


def measure_bare_loop(batch: int, duration_s: float, device: str = "cpu") -> dict[str, float]:
    """The model in a loop in a process of its own, and nothing else: what no server can beat on one core."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_loop, args=(theirs, batch, duration_s, device), daemon=True)
    process.start()
    theirs.close()
    try:
        count, took_s, cpu_s = ours.recv()
    finally:
        process.join()
        ours.close()
    return {"requests_per_s": count / took_s, "cpu_ms": cpu_s * 1000 / count}


def _loop(pipe: Connection, batch: int, duration_s: float, device: str) -> None:
    session = open_session(build_model(), device)
    payloads = [profile.tobytes() for profile in make_profiles(batch)]
    for _ in range(10):
        _answer(session, payloads)
    count = 0
    started, started_cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < duration_s:
        _answer(session, payloads)
        count += batch
    pipe.send((count, time.perf_counter() - started, time.process_time() - started_cpu_s))


def _answer(session: onnxruntime.InferenceSession, payloads: list[bytes]) -> list[bytes]:
    """Bytes in, bytes out, as a server would be asked."""
    profiles = np.frombuffer(b"".join(payloads), np.float32).reshape(-1, 1, PROFILE_LENGTH)
    return [each.tobytes() for each in predict(session, profiles)]
