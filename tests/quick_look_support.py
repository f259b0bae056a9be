"""What the tests of the quick look share: telegrams, models that are wrong or slow, and quick looks that are closed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge_agent.capture import Capture, observation_of
from edge_agent.quick_look import judgement as judgement_module
from edge_agent.quick_look.package import SHIPPED, read_package, write_package
from edge_agent.quick_look.quick_look import QuickLook
from edge_agent.quick_look.signing import make_key
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb

pytest.importorskip("ai_edge_litert", reason="the quick look needs pip install 'fieldpost[quick-look]'")
import flatbuffers
from ai_edge_litert import schema_py_generated as schema

ROOT = Path(__file__).resolve().parent.parent
INSTRUMENT = SimulatedCl51(seed=77)
NOON_UNIX_S = 1_750_075_200.0
TELEGRAMS = [INSTRUMENT.telegram(NOON_UNIX_S + 60 * index) for index in range(8)]
BUDGET_MS = 2000
"""Of the tests that are not about time: this machine may be busy."""


def observe(*contents: bytes, payload_format: str = "vaisala-cl") -> list[pb.Observation]:
    return [observation_of(Capture("cl51", payload_format, content, "test", i)) for i, content in enumerate(contents)]


def look_at(quick_look: QuickLook, *contents: bytes) -> list[pb.Observation]:
    observations = observe(*contents)
    quick_look.add(observations, contents)
    return observations


def wait_until(is_true: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def wait_for_look(quick_look: QuickLook, telegram: bytes = TELEGRAMS[0]) -> pb.QuickLook:
    """The first quick look that comes; observations before it went without."""
    looks: list[pb.QuickLook] = []

    def has_come() -> bool:
        (observation,) = look_at(quick_look, telegram)
        looks.append(observation.header.quick_look)
        return observation.header.HasField("quick_look")

    wait_until(has_come)
    return looks[-1]


def workers() -> list[psutil.Process]:
    """The children that run a model."""
    return [p for p in psutil.Process().children() if "edge_agent.quick_look.worker" in p.cmdline()]


def worker() -> psutil.Process:
    """The one child that runs a model."""
    (found,) = workers()
    return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A private key, and the file with its public one."""
    private, public = make_key()
    path = tmp_path_factory.mktemp("keys") / "model-key.pub.pem"
    path.write_bytes(public)
    return private, path


@pytest.fixture
def start(tmp_path: Path, keys: tuple[bytes, Path]) -> Iterator[Callable[..., QuickLook]]:
    """Starts quick looks on one folder; closes them after the test."""
    started: list[QuickLook] = []

    def start_one(budget_ms: int = BUDGET_MS, *, shipped: Path = SHIPPED, has_key: bool = True) -> QuickLook:
        key_file = keys[1] if has_key else None
        started.append(QuickLook(tmp_path / "models", budget_ms=budget_ms, key_file=key_file, shipped=shipped))
        return started[-1]

    yield start_one
    for quick_look in started:
        quick_look.close()


@pytest.fixture
def fast_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps in less time."""
    monkeypatch.setattr(judgement_module, "BACKOFF_FIRST_S", 0.001)


def repacked(*, name: str = "other", model: bytes | None = None, samples: dict[str, bytes] | None = None) -> bytes:
    """The shipped package with something else in it."""
    shipped = read_package(SHIPPED.read_bytes())
    manifest = type(shipped.manifest)(
        **{field: getattr(shipped.manifest, field) for field in shipped.manifest.__slots__} | {"name": name}
    )
    return write_package(manifest, model or shipped.model, {**shipped.samples, **(samples or {})})


def slowed_model(copies: int) -> bytes:
    """The shipped model with one of its convolutions done many times over: slow by nature, with the same answers."""
    model = unpacked_model()
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    operators = model.subgraphs[0].operators
    place = next(i for i, o in enumerate(operators) if codes[o.opcodeIndex] == schema.BuiltinOperator.CONV_2D)
    model.subgraphs[0].operators = operators[:place] + [operators[place]] * copies + operators[place:]
    return packed_model(model)


def model_without_numbers() -> bytes:
    """The shipped model with weights that are no numbers: those added just before the probabilities."""
    model = unpacked_model()
    for tensor in model.subgraphs[0].tensors:
        buffer = model.buffers[tensor.buffer]
        if tensor.type == schema.TensorType.FLOAT32 and list(tensor.shape) == [3] and buffer.data is not None:
            buffer.data = np.full(3, np.nan, "<f4").view(np.uint8)
    return packed_model(model)


def unpacked_model() -> Any:
    return schema.ModelT.InitFromPackedBuf(read_package(SHIPPED.read_bytes()).model, 0)


def packed_model(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()
