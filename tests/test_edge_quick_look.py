"""The quick look: real child processes, real LiteRT, real signatures; models that are wrong, slow or dead."""

from __future__ import annotations

import io
import itertools
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge_agent.capture import Capture, observation_of
from edge_agent.framing import Framed, frame
from edge_agent.quick_look import judgement as judgement_module
from edge_agent.quick_look.judgement import (
    FAULTS_IN_A_ROW_MAX,
    PROBATION_FAILURES_MAX,
    PROBATION_OBSERVATIONS,
    Judgement,
    Probation,
)
from edge_agent.quick_look.messages import MessageBuffer, pack
from edge_agent.quick_look.model_store import Model, ModelStore
from edge_agent.quick_look.package import MEMBER_BYTES_MAX, SHIPPED, describe, label, read_package, write_package
from edge_agent.quick_look.profile_input import to_input
from edge_agent.quick_look.quick_look import QuickLook
from edge_agent.quick_look.signing import main as signing_main
from edge_agent.quick_look.signing import make_key, sign
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.simulation import SimulatedCl51
from fieldpost.telegrams import Profiles
from fieldpost.v1 import observation_pb2 as pb

pytest.importorskip("ai_edge_litert", reason="the quick look needs pip install 'fieldpost[quick-look]'")
import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from edge_agent.quick_look.estimator import Estimator, decode_telegram

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


# --- estimates ---


def test_a_telegram_gets_a_height_near_the_truth_and_names_its_model(start: Callable[..., QuickLook]) -> None:
    quick_look = start()
    wait_for_look(quick_look)
    observations = look_at(quick_look, *TELEGRAMS)
    true_m = INSTRUMENT.atmosphere.truth(NOON_UNIX_S + 60 * np.arange(len(TELEGRAMS))).mixing_height_m
    looks = [observation.header.quick_look for observation in observations]
    assert np.median([abs(look.mixing_layer_height_m - m) for look, m in zip(looks, true_m, strict=True)]) < 100
    assert {look.model for look in looks} == {quick_look.model} == {describe(SHIPPED)["model"]}
    assert all(0 < look.duration_ms < BUDGET_MS for look in looks)
    assert quick_look.problem == ""


def test_noise_alone_and_a_hidden_sky_are_bad_and_have_no_height(start: Callable[..., QuickLook]) -> None:
    from fieldpost.simulation.telegram import GATE_COUNT, quantise, write_telegram

    height_m = (np.arange(GATE_COUNT) + 0.5) * 10
    noise = np.random.default_rng(1).normal(0, 3e-12, GATE_COUNT) * height_m**2
    telegram = write_telegram(quantise(noise), unit="1")
    quick_look = start()
    look = wait_for_look(quick_look, telegram)
    assert look.quality == pb.QUICK_LOOK_QUALITY_BAD
    assert not look.HasField("mixing_layer_height_m")


def test_a_file_of_telegrams_waits_for_the_child_and_all_of_them_get_an_estimate(
    start: Callable[..., QuickLook],
) -> None:
    contents = TELEGRAMS * 20
    observations = look_at(start(), *contents)
    assert [o.header.HasField("quick_look") for o in observations] == [True] * len(contents)


def test_other_formats_are_left_alone_and_start_no_process(start: Callable[..., QuickLook]) -> None:
    quick_look = start()
    observations = observe(b"CDF\x01", payload_format="netcdf")
    quick_look.add(observations, [b"CDF\x01"])
    assert not observations[0].header.HasField("quick_look")
    assert not workers()


def test_a_damaged_telegram_goes_without_and_is_not_blamed_on_the_model(start: Callable[..., QuickLook]) -> None:
    quick_look = start()
    wait_for_look(quick_look)
    pid = worker().pid
    observations = look_at(quick_look, b"CL010126\x02\r\nnonsense", TELEGRAMS[0])
    assert [o.header.HasField("quick_look") for o in observations] == [False, True]
    assert worker().pid == pid
    assert quick_look.problem == ""


def test_several_sources_at_once_all_get_their_estimates(start: Callable[..., QuickLook]) -> None:
    quick_look = start()
    wait_for_look(quick_look)
    found: list[pb.Observation] = []
    threads = [
        threading.Thread(target=lambda: found.extend(look_at(quick_look, *TELEGRAMS, *TELEGRAMS))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * 2 * len(TELEGRAMS)
    assert all(o.header.HasField("quick_look") for o in found)


def test_every_real_telegram_gives_a_plausible_height_or_none(shared_data: Path) -> None:
    estimator = Estimator(read_package(SHIPPED.read_bytes()))
    telegrams = [
        part.raw
        for path in sorted((shared_data / "ceilometer" / "vaisala").iterdir())
        for part in frame("vaisala-cl", path.read_bytes())
        if isinstance(part, Framed)
    ]
    assert len(telegrams) > 15
    estimates = [estimator.estimate(telegram) for telegram in telegrams]
    assert all(e.height_m is None or 20 < e.height_m < 4000 for e in estimates)
    assert all((e.height_m is None) == (e.quality == "bad") for e in estimates)
    assert {"good", "bad"} <= {e.quality for e in estimates}


@pytest.mark.parametrize(("gate_m", "gate_count"), [(5, 1500), (10, 770), (20, 385), (30, 256)])
def test_the_same_sky_looks_the_same_to_the_model_in_every_resolution(gate_m: int, gate_count: int) -> None:
    grid = read_package(SHIPPED.read_bytes()).manifest.grid

    def seen(width_m: float, count: int) -> np.ndarray:
        height_m = (np.arange(count) + 0.5) * width_m
        beta = (1e-6 * np.exp(-height_m / 1500)).astype(np.float32)[None]
        nothing = np.full((1, 3), np.nan, np.float32)
        return to_input(Profiles(np.zeros(1, np.int64), height_m, beta, nothing, np.zeros(1, np.bool_)), grid)[0, 0]

    np.testing.assert_allclose(seen(gate_m, gate_count), seen(10, 1540), atol=0.01)


# --- a child that fails ---


def test_a_child_that_is_stopped_delays_an_observation_by_no_more_than_the_budget(
    start: Callable[..., QuickLook], fast_backoff: None
) -> None:
    quick_look = start(budget_ms=300)
    wait_for_look(quick_look)
    stopped = worker()
    stopped.send_signal(signal.SIGSTOP)
    start_s = time.monotonic()
    (observation,) = look_at(quick_look, TELEGRAMS[0])
    assert time.monotonic() - start_s < 0.3 + 0.5  # killing and collecting it takes a moment
    assert not observation.header.HasField("quick_look")
    assert not stopped.is_running()
    wait_for_look(quick_look)
    assert worker().pid != stopped.pid


def test_a_child_that_is_stopped_before_it_reads_a_large_group_blocks_nobody(start: Callable[..., QuickLook]) -> None:
    quick_look = start(budget_ms=5)
    observations = observe(*TELEGRAMS * 5)
    wait_until(lambda: bool(look_at(quick_look, TELEGRAMS[0])) and bool(workers()))
    worker().send_signal(signal.SIGSTOP)
    start_s = time.monotonic()
    quick_look.add(observations, TELEGRAMS * 5)
    assert time.monotonic() - start_s < 40 * 0.005 + 2


def test_a_child_that_was_killed_is_started_again(start: Callable[..., QuickLook], fast_backoff: None) -> None:
    quick_look = start()
    wait_for_look(quick_look)
    worker().kill()
    (observation,) = look_at(quick_look, TELEGRAMS[0])
    assert not observation.header.HasField("quick_look")
    assert wait_for_look(quick_look).model == quick_look.model
    assert quick_look.problem == ""


def test_with_the_breaker_open_observations_cost_nothing_and_a_problem_is_told(
    start: Callable[..., QuickLook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement_module, "BACKOFF_FIRST_S", 0.05)
    shipped = tmp_path / "boundary-layer.fpmodel"
    shipped.write_bytes(repacked(model=b"no flatbuffer" * 100))
    quick_look = start(shipped=shipped)
    wait_until(lambda: bool(look_at(quick_look, TELEGRAMS[0])) and quick_look.problem != "")
    assert "expected a model that LiteRT can read" in quick_look.problem
    start_s = time.monotonic()
    for telegram in TELEGRAMS:
        look_at(quick_look, telegram)
    assert time.monotonic() - start_s < len(TELEGRAMS) * 0.2, "less than its budget for each"
    assert not workers()


def test_without_any_model_observations_flow_on(start: Callable[..., QuickLook], tmp_path: Path) -> None:
    quick_look = start(shipped=tmp_path / "absent.fpmodel")
    assert quick_look.model == ""
    observations = look_at(quick_look, *TELEGRAMS)
    assert not any(o.header.HasField("quick_look") for o in observations)


def test_a_child_whose_agent_was_killed_ends_by_itself(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edge_agent.quick_look.quick_look import QuickLook\n"
        "quick_look = QuickLook(Path(sys.argv[1]), budget_ms=10, key_file=None)\n"
        "from edge_agent.capture import Capture, observation_of\n"
        "quick_look.add([observation_of(Capture('a', 'vaisala-cl', b'x', 'o', 0))], [b'x'])\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, cwd=ROOT) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"started\n"
        (child,) = psutil.Process(agent.pid).children()
        agent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_child_knows_no_secret_gives_way_and_may_not_grow(
    start: Callable[..., QuickLook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDPOST_AGENT_SECRET", "hush")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    quick_look = start()
    wait_for_look(quick_look)
    child = worker()
    assert not {"FIELDPOST_AGENT_SECRET", "NOTIFY_SOCKET"} & set(child.environ())
    assert child.nice() == psutil.Process().nice() + 10
    assert child.rlimit(psutil.RLIMIT_DATA)[1] == 256 << 20
    assert child.rlimit(psutil.RLIMIT_FSIZE)[1] == 0
    assert child.num_threads() == 1


def test_a_model_that_wants_more_memory_than_it_may_have_gets_an_error_and_the_station_keeps_its_own() -> None:
    program = "from edge_agent.quick_look.confinement import confine; confine(); bytearray(300 << 20)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "MemoryError" in done.stderr


def test_what_the_agent_imports_of_it_is_light() -> None:
    program = "import edge_agent.quick_look.quick_look, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "cryptography", "ai_edge_litert"}
    assert "importlib.metadata" not in done.stdout.split()


# --- taking a model ---


def test_a_signed_model_is_tried_and_taken_and_is_still_there_after_a_restart(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path]
) -> None:
    package = repacked()
    quick_look = start()
    wait_for_look(quick_look)
    name = quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    assert name == quick_look.model == read_package(package).label
    assert name.startswith("other@")
    assert wait_for_look(quick_look).model == name
    assert quick_look.take(package, b"", []) == name  # a command that comes twice
    assert start().model == name


def broken_packages() -> Iterator[tuple[str, bytes, str]]:
    """What is wrong, the package, and what the station says of it."""
    shipped = read_package(SHIPPED.read_bytes())
    height_m = np.load(io.BytesIO(shipped.samples["height_m"])) + 100
    yield "a model that is none", repacked(model=b"TFL3" * 1000), "LiteRT can read"
    yield "a model that is cut", repacked(model=shipped.model[:-20_000]), "expected"
    yield "another sample output", repacked(samples={"height_m": npy(height_m)}), "expected the sample's"
    yield (
        "a pickle",
        repacked(samples={"height_m": npy(np.array([print], object), allow_pickle=True)}),
        "expected an array",
    )
    yield "a model that gives no numbers", repacked(model=model_without_numbers()), "expected finite numbers"
    yield "no zip file", b"PK" * 1000, "expected a zip file"


@pytest.mark.parametrize(("package", "words"), [pytest.param(p, w, id=name) for name, p, w in broken_packages()])
def test_a_model_that_fails_its_trial_is_refused_and_the_old_one_goes_on(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], package: bytes, words: str
) -> None:
    quick_look = start()
    old = quick_look.model
    with pytest.raises(InvalidRequestError, match=words):
        quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    assert quick_look.model == start().model == old


def test_a_model_that_is_too_slow_on_the_stations_own_telegrams_is_refused(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path]
) -> None:
    package = repacked(model=slowed_model(8_000))
    with pytest.raises(InvalidRequestError, match="expected an estimate within 20 ms, but 4 of 4"):
        start(budget_ms=20).take(package, sign(package, keys[0]), TELEGRAMS[:4])


def test_a_model_that_is_not_signed_by_the_stations_key_is_refused(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path]
) -> None:
    package = repacked()
    other, _ = make_key()
    quick_look = start()
    for signature in (b"", sign(package, other), sign(package + b"x", keys[0])):
        with pytest.raises(InvalidRequestError, match="expected a signature of 64 bytes"):
            quick_look.take(package, signature, [])
    with pytest.raises(InvalidRequestError, match="model_key_file, but it is absent"):
        start(has_key=False).take(package, sign(package, keys[0]), [])


def test_a_model_that_is_slow_on_probation_is_rolled_back_told_of_and_not_taken_again(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], fast_backoff: None
) -> None:
    quick_look = start(budget_ms=20)
    old = quick_look.model
    package = repacked(model=slowed_model(8_000))
    # without telegrams the trial cannot see that it is slow
    taken = quick_look.take(package, sign(package, keys[0]), [])
    assert quick_look.model == taken
    wait_until(lambda: bool(look_at(quick_look, TELEGRAMS[0])) and quick_look.model == old)
    assert "longer than it may" in quick_look.problem
    assert taken in quick_look.problem
    again = start(budget_ms=BUDGET_MS)
    assert wait_for_look(again).model == old
    assert taken in again.problem
    with pytest.raises(InvalidRequestError, match="taken before and given up"):
        again.take(package, sign(package, keys[0]), [])


def test_a_model_whose_process_dies_on_probation_gives_way_to_the_one_taken_before_it(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], fast_backoff: None
) -> None:
    quick_look = start()
    first, second = repacked(name="first"), repacked(name="second")
    first_name = quick_look.take(first, sign(first, keys[0]), TELEGRAMS)
    look_at(quick_look, *TELEGRAMS * 10)  # it proves itself
    second_name = quick_look.take(second, sign(second, keys[0]), TELEGRAMS)
    for _ in range(PROBATION_FAILURES_MAX + 1):
        assert wait_for_look(quick_look).model == second_name
        worker().kill()
        look_at(quick_look, TELEGRAMS[0])
    assert wait_for_look(quick_look).model == quick_look.model == first_name
    assert "SIGKILL" in quick_look.problem
    third = repacked(name="third")
    quick_look.take(third, sign(third, keys[0]), TELEGRAMS)
    assert quick_look.problem == ""


def test_a_model_that_proved_itself_is_not_rolled_back_later(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], fast_backoff: None
) -> None:
    quick_look = start()
    package = repacked()
    name = quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    look_at(quick_look, *TELEGRAMS * 10)
    for _ in range(PROBATION_FAILURES_MAX + 1):
        wait_for_look(quick_look)
        worker().kill()
        look_at(quick_look, TELEGRAMS[0])
    assert quick_look.model == start().model == name


def test_a_taken_model_whose_file_is_damaged_gives_way_but_may_be_taken_again(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], tmp_path: Path
) -> None:
    package = repacked()
    name = start().take(package, sign(package, keys[0]), TELEGRAMS)
    (path,) = (tmp_path / "models").glob("*.fpmodel")
    for damaged in (package[:1000], repacked(name="stranger")):
        path.write_bytes(damaged)
        quick_look = start()
        assert quick_look.model == name
        assert wait_for_look(quick_look).model == label("boundary-layer", describe(SHIPPED)["sha256"])
        assert name in quick_look.problem
        assert quick_look.take(package, sign(package, keys[0]), TELEGRAMS) == name


# --- the disk ---

KILL_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from edge_agent.quick_look.model_store import Model, ModelStore

folder, kill_at = Path(sys.argv[1]), 0

def die_at(function, *, after):
    def counted(*arguments, **named):
        global steps
        steps += 1
        if steps == kill_at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if steps == kill_at and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted

def change(folder):
    store = ModelStore(folder)
    store.activate(b"second" * 5000, Model("22", "second"))

for after in (False, True):
    for kill_at in range(1, 100):
        here = folder / f"{after}-{kill_at}"
        ModelStore(here).activate(b"first" * 5000, Model("11", "first"))
        ModelStore(here).confirm()
        child = os.fork()
        if child == 0:
            steps = 0
            for module, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "open"), (os, "open")):
                setattr(module, name, die_at(getattr(module, name), after=after))
            change(here)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
"""


def test_a_kill_at_any_step_of_taking_a_model_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILL_EVERY_STEP, tmp_path], check=True, cwd=ROOT, timeout=60)
    found = []
    for folder in tmp_path.iterdir():
        store = ModelStore(folder)
        assert store.damage == ""
        assert store.active_path.read_bytes() == store.state.active.name.encode() * 5000
        found.append(store.state.active.name)
        # and whatever was left behind is no hindrance to taking it again
        store.activate(b"second" * 5000, Model("22", "second"))
        assert {path.name for path in folder.iterdir()} <= {"active.json", "11.fpmodel", "22.fpmodel"}
    assert len(found) > 16
    assert set(found) == {"first", "second"}


def test_a_damaged_record_of_the_active_model_means_that_of_the_software_and_is_told(
    start: Callable[..., QuickLook], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "active.json").write_bytes(b'{"active": {"sha')
    quick_look = start()
    assert quick_look.model == describe(SHIPPED)["model"]
    assert "active.json is damaged" in quick_look.problem


# --- packages and keys ---


def test_the_shipped_model_is_small_and_says_what_it_is() -> None:
    described = describe(SHIPPED)
    assert described["model_bytes"] <= 100_000
    assert described["model"] == label(SHIPPED.stem, described["sha256"])
    scores = described["metrics"]["quick_look"]
    assert {"night", "growth", "mature", "decay", "all", "flag good"} == set(scores)


def test_the_same_content_makes_the_same_package() -> None:
    assert repacked() == repacked()


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"../../evil": b"x"}, "expected the files"),
        ({"model.tflite": b"\0" * (MEMBER_BYTES_MAX["model.tflite"] + 1)}, "stored or deflated"),
        ({"manifest.json": b"{"}, "expected JSON"),
        ({"manifest.json": b'{"format": 2}'}, "expected the keys"),
    ],
    ids=["a strange name", "a bomb", "half a manifest", "a manifest of another format"],
)
def test_a_package_with_anything_unexpected_is_refused(change: dict[str, bytes], words: str) -> None:
    with zipfile.ZipFile(SHIPPED) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert read_package(zip_of(members)).manifest.name == "boundary-layer"
    with pytest.raises(InvalidRequestError, match=words):
        read_package(zip_of({**members, **change}))
    with pytest.raises(InvalidRequestError, match="stored or deflated"):
        read_package(zip_of(members, zipfile.ZIP_LZMA))


def test_a_package_of_which_any_byte_was_changed_is_refused_or_says_the_same() -> None:
    content = SHIPPED.read_bytes()
    whole = read_package(content)
    for place in range(0, len(content), 997):
        changed = bytearray(content)
        changed[place] ^= 0x10
        try:
            package = read_package(bytes(changed))
        except InvalidRequestError:
            continue
        assert (package.manifest, package.model) == (whole.manifest, whole.model)


def test_keys_and_signatures_are_made_on_the_command_line(
    start: Callable[..., QuickLook], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, package = tmp_path / "key.pem", tmp_path / "new.fpmodel"
    package.write_bytes(repacked())
    assert signing_main(["keygen", str(key)]) == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert signing_main(["sign", str(package), "--key", str(key)]) == 0
    quick_look = QuickLook(tmp_path / "models", budget_ms=BUDGET_MS, key_file=tmp_path / "key.pub.pem")
    signature = (tmp_path / "new.fpmodel.sig").read_bytes()
    assert quick_look.take(package.read_bytes(), signature, TELEGRAMS).startswith("other@")
    assert signing_main(["keygen", str(key)]) == 1  # never over a key that is there
    assert "File exists" in capsys.readouterr().err


# --- pure ---


def test_messages_come_out_whole_however_they_are_cut() -> None:
    messages = [({"a": 1}, [b"", b"xyz", bytes(3000)]), ({"b": None}, [])]
    stream = b"".join(pack(head, blobs) for head, blobs in messages)
    for size in (1, 7, len(stream)):
        buffer, found = MessageBuffer(), []
        for first in range(0, len(stream), size):
            buffer.feed(stream[first : first + size])
            while (message := buffer.next()) is not None:
                found.append(message)
        assert found == messages


@pytest.mark.parametrize("content", [b"\xff" * 8, b"\0\0\0\4\0\0\0\0", b"\0\0\0\x0a\0\0\0\1\0\0\0\2[]"])
def test_bytes_that_are_no_message_are_an_error(content: bytes) -> None:
    buffer = MessageBuffer()
    buffer.feed(content)
    with pytest.raises(BrokenStateError, match="expected a message"):
        buffer.next()


def test_after_each_failure_nothing_is_asked_for_twice_as_long_up_to_five_minutes() -> None:
    judgement, now_s, waits_s = Judgement(is_on_probation=False), 0.0, []
    for _ in range(12):
        judgement.failed("died", now_s)
        wait_s = next(s for s in itertools.count() if judgement.may_ask(now_s + s))
        waits_s.append(wait_s)
        now_s += wait_s
    assert waits_s == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    judgement.answered()
    judgement.failed("died", now_s)
    assert judgement.may_ask(now_s + 1)


def test_a_problem_is_told_after_three_failures_in_a_row_and_ends_with_an_answer() -> None:
    judgement = Judgement(is_on_probation=False)
    told = []
    for _ in range(3):
        judgement.failed("died by SIGILL", 0)
        told.append("SIGILL" in judgement.problem)
    assert told == [False, False, True]
    judgement.answered()
    assert judgement.problem == ""


def test_probation_is_passed_with_a_few_failures_and_failed_with_more() -> None:
    passed, failed = Judgement(is_on_probation=True), Judgement(is_on_probation=True)
    for _ in range(PROBATION_FAILURES_MAX):
        passed.failed("late", 0)
        failed.failed("late", 0)
    for _ in range(PROBATION_OBSERVATIONS):
        assert passed.probation is Probation.RUNNING
        passed.answered()
    assert passed.probation is Probation.PASSED
    failed.faulted("no number", 0)
    assert failed.probation is Probation.FAILED


def test_a_model_that_gives_no_numbers_for_long_is_a_failure_even_after_its_probation() -> None:
    judgement = Judgement(is_on_probation=False)
    for _ in range(FAULTS_IN_A_ROW_MAX):
        assert judgement.may_ask(0)
        judgement.faulted("nan m", 0)
    assert not judgement.may_ask(0)


def test_a_telegram_is_decoded_by_its_own_header_line() -> None:
    assert len(decode_telegram(TELEGRAMS[0]).height_m) == 1540
