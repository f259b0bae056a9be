"""The quick look: real child processes and real LiteRT; telegrams of all kinds, and a child that is late or dead."""

# ruff: noqa: F401, F811  (fixtures are found by their imported names)

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from quick_look_support import (
    BUDGET_MS,
    INSTRUMENT,
    NOON_UNIX_S,
    ROOT,
    TELEGRAMS,
    fast_backoff,
    keys,
    look_at,
    observe,
    repacked,
    start,
    wait_for_look,
    wait_until,
    worker,
    workers,
)

from edge_agent.framing import Framed, frame
from edge_agent.quick_look import judgement as judgement_module
from edge_agent.quick_look.estimator import Estimator, decode_telegram
from edge_agent.quick_look.judgement import (
    FAULTS_IN_A_ROW_MAX,
    PROBATION_FAILURES_MAX,
    PROBATION_OBSERVATIONS,
    Judgement,
    Probation,
)
from edge_agent.quick_look.messages import MessageBuffer, pack
from edge_agent.quick_look.package import SHIPPED, describe, read_package
from edge_agent.quick_look.profile_input import to_input
from edge_agent.quick_look.quick_look import QuickLook
from fieldpost.errors import BrokenStateError
from fieldpost.telegrams import Profiles
from fieldpost.v1 import observation_pb2 as pb

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
    assert child.nice() == min(psutil.Process().nice() + 10, 19)
    assert child.rlimit(psutil.RLIMIT_DATA)[1] == 256 << 20
    assert child.rlimit(psutil.RLIMIT_FSIZE)[1] == 0
    assert child.num_threads() == 1


def test_a_model_that_wants_more_memory_than_it_may_have_gets_an_error_and_the_station_keeps_its_own() -> None:
    program = "from edge_agent.quick_look.confinement import confine; confine(); bytearray(300 << 20)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "MemoryError" in done.stderr


def test_a_trial_whose_agent_was_killed_is_ended_by_the_kernel() -> None:
    program = (
        "from edge_agent.quick_look import confinement; confinement.DEAD_AFTER_S = 0.1\n"
        "from edge_agent.quick_look import trial; trial.main()"
    )
    # nobody writes the request to the end, and nobody kills it
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=ROOT) as process:
        assert process.wait(30) == -signal.SIGALRM


def test_what_the_agent_imports_of_it_is_light() -> None:
    program = "import edge_agent.quick_look.quick_look, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "cryptography", "ai_edge_litert"}
    assert "importlib.metadata" not in done.stdout.split()


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
