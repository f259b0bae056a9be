"""Faults of a whole server: workers killed and hung, payloads that break a model, a database and a disk that go.

What was sent is known, and is held against what the server says it holds and has predicted. The steps of a server's
life on its disk are killed one by one in faults/server_steps.py.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, skip_or_fail
from faults.library import compiler
from model_support import floats, make_model, weights
from onnx import TensorProto, helper
from small_disk import small_disk
from whole_support import WholeServer, until

from demo.postgres import Postgres, find_postgres
from fieldpost import Client, Outbox, TryAgainError
from fieldpost.v1 import prediction_pb2

ANALYSIS = "count"
TIMEOUT_S = 1.0
BREAKS, HANGS = 1.0, 1e12
MANIFEST = f"""
analysis = "{ANALYSIS}"
instrument_models = ["counter"]
timeout_s = {TIMEOUT_S}

[input]
decode = "tensor"
stored_dtype = "float32"
shape = [3]

[[outputs]]
name = "y"
kind = "values"
variables = [{{ name = "count", unit = "1" }}]
"""
START = datetime(2025, 6, 1, 12, tzinfo=UTC)
SLOW = 3e4
"""Turns of the model's loop that take a tenth of a second for a batch."""


def make_moody_model() -> bytes:
    """Of (value, turns, odd) it says the value, after so many turns of a loop; where odd is 1, it breaks."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "nothing"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("v", "b", 1),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), floats("v2", "b", 1)],
    )
    nodes = [
        helper.make_node("Split", ["x"], ["value", "turns", "odd"], axis=1, num_outputs=3),
        helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
        helper.make_node("Constant", [], ["yes"], value=weights("c", np.array(True))),
        helper.make_node("Loop", ["count", "yes", "value"], ["looped"], body=body),
        helper.make_node("Cast", ["odd"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["zero"]),
        helper.make_node("Add", ["looped", "zero"], ["y"]),
    ]
    constants = [weights("nothing", np.zeros(1, np.float32)), weights("table", np.zeros(1, np.float32))]
    model = make_model(nodes, [floats("x", "b", 3)], [floats("y", "b", 1)], constants)
    return bytes(model.SerializeToString())


def payload(value: float, turns: float = 0.0, odd: float = 0.0) -> bytes:
    return np.array([value, turns, odd], "<f4").tobytes()


class Sent:
    """What a station sends, and what the server must say of it in the end: for each sequence a value, or None."""

    def __init__(self, server: WholeServer) -> None:
        self._server = server
        self.outbox = Outbox("lindenberg", epoch=f"{time.time_ns():032x}")
        self.wanted: dict[int, float | None] = {}

    def send(self, client: Client, payloads: list[bytes], start: datetime = START) -> None:
        """Sends them, measured one second after the other; again where it is told to try again."""
        times = (start + timedelta(seconds=each) for each in range(len(payloads)))
        wave = list(self.outbox.number(("counter", *each) for each in zip(payloads, times, strict=True)))
        for observation, content in zip(wave, payloads, strict=True):
            value, turns, odd = np.frombuffer(content, "<f4")
            self.wanted[observation.header.sequence] = None if odd or turns >= HANGS else float(value)
        while True:
            try:
                report = client.send(wave)
            except TryAgainError:
                time.sleep(0.05)
            else:
                assert not report.refused and not report.undecided
                return

    def predictions(self, client: Client) -> list[prediction_pb2.Prediction]:
        """Of what was sent, in the order in which they were stored."""
        try:
            found = list(client.iter_predictions(analysis=ANALYSIS))
        except TryAgainError:
            return []
        return sorted((each for each in found if each.epoch == self.outbox.epoch), key=lambda each: each.prediction_id)

    def hold(self, client: Client, *, is_in_order: bool = True) -> None:
        """Waits until all is predicted, and counts: each held once, predicted once, rightly, in order of arrival.

        Not in order where bundles were refused: what was sent behind one may have been taken before it came again.
        """
        until(lambda: len(self.predictions(client)) >= len(self.wanted))
        held = Counter(each.header.sequence for each in client.iter_observations() if self._is_mine(each.header.epoch))
        assert held == Counter(self.wanted.keys())
        predictions = self.predictions(client)
        if not is_in_order:
            predictions.sort(key=lambda each: each.sequence)
        assert [each.sequence for each in predictions] == sorted(self.wanted)
        for each in predictions:
            value = each.variables[0].values[0] if each.variables else None
            assert value == self.wanted[each.sequence], each

    def _is_mine(self, epoch: str) -> bool:
        return epoch == self.outbox.epoch


def bring_model(client: Client, folder: Path) -> None:
    model = folder / "moody.onnx"
    model.write_bytes(make_moody_model())
    submitted = client.models.submit(model, manifest=MANIFEST, sample=payload(7)).model
    client.models.activate(ANALYSIS, submitted.model_version)
    client.predict(ANALYSIS, payload(1))  # it is loaded


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    if find_postgres() is None:
        skip_or_fail("PostgreSQL is not installed (make postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="fieldpost-"))
    folder.chmod(0o755)
    server = Postgres(folder / "pg")
    server.start()
    yield server
    server.stop(mode="immediate")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(own_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    url = own_postgres.create_database("fieldpost")
    folder = tmp_path_factory.mktemp("whole")
    running = WholeServer(folder, {"lindenberg/counter": "counter"}, f'database_url = "{url}"\n')
    try:
        with running.client() as client:
            bring_model(client, folder)
        yield running
        running.stop()
    finally:
        running.close()


@pytest.fixture
def client(server: WholeServer) -> Iterator[Client]:
    with server.client() as asking:
        yield asking


def test_a_worker_that_is_killed_in_the_middle_of_its_batches_costs_no_prediction(
    server: WholeServer, client: Client
) -> None:
    sent = Sent(server)
    for _ in range(3):
        before = len(sent.predictions(client))
        sent.send(client, [payload(each, SLOW) for each in range(200)])
        until(lambda count=before: len(sent.predictions(client)) > count)  # type: ignore[misc]
        server.signal_workers("onnx", signal.SIGKILL)
    sent.hold(client)
    deaths = server.logged("worker died")
    assert any("SIGKILL" in each["reason"] and each["job_count"] for each in deaths), deaths


def test_a_worker_that_stands_still_is_replaced_after_the_time_that_its_model_may_take(
    server: WholeServer, client: Client
) -> None:
    sent = Sent(server)
    before = len(server.logged("worker died"))
    sent.send(client, [payload(each, SLOW) for each in range(100)])
    until(lambda: sent.predictions(client))
    (stopped,) = until(lambda: server.worker_ids("onnx"))
    server.signal_workers("onnx", signal.SIGSTOP)
    sent.send(client, [payload(each) for each in range(5)])
    sent.hold(client)
    (death,) = server.logged("worker died")[before:]
    assert "it hung" in death["reason"] and f"longer than {TIMEOUT_S:g} s" in death["reason"]
    assert stopped not in until(lambda: server.worker_ids("onnx"))


def test_what_breaks_or_hangs_a_model_is_set_aside_with_its_reason_and_tried_again_when_somebody_says_so(
    server: WholeServer, client: Client
) -> None:
    sent = Sent(server)
    odd = {17: payload(17, odd=BREAKS), 40: payload(40, turns=HANGS)}
    start = START + timedelta(days=1)  # nothing else was measured on that day
    sent.send(client, [odd.get(each, payload(each)) for each in range(64)], start)
    sent.hold(client)
    first = failures(sent.predictions(client))
    assert set(first) == {18, 41}, "sequences begin at 1"
    assert "indices element out of data bounds" in first[18].failure
    assert "it hung" in first[41].failure
    since, until_ = (each.isoformat() for each in (start, start + timedelta(seconds=30)))
    retried = server.cli("retry", "--analysis", ANALYSIS, "--since", since, "--until", until_)
    assert retried.returncode == 0, retried.stderr
    again = until(
        lambda: (found := failures(sent.predictions(client))).get(18, first[18]) != first[18] and found,
    )
    assert again[18].failure == first[18].failure, "it is as odd as it was"
    assert again[41] == first[41], "nobody asked for that one"
    assert len(sent.predictions(client)) == 64


def failures(predictions: list[prediction_pb2.Prediction]) -> dict[int, prediction_pb2.Prediction]:
    return {each.sequence: each for each in predictions if each.failure}


def restart(postgres: Postgres) -> None:
    """As after a power cut. In a process of its own: PostgreSQL runs as another user, and gRPC survives no fork."""
    program = (
        "import pathlib, sys; from demo.postgres import Postgres; server = Postgres(pathlib.Path(sys.argv[1])); "
        "server.stop(mode='immediate'); server.start()"
    )
    subprocess.run([sys.executable, "-c", program, str(postgres.folder)], cwd=ROOT, check=True)


def test_a_database_that_goes_and_comes_back_under_load_costs_nothing(
    server: WholeServer, client: Client, own_postgres: Postgres
) -> None:
    sent = Sent(server)
    is_over = threading.Event()

    def send() -> None:
        while not is_over.is_set():
            sent.send(client, [payload(each) for each in range(20)])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(2):
            before = len(sent.predictions(client))
            until(lambda count=before: len(sent.predictions(client)) > count + 40)  # type: ignore[misc]
            restart(own_postgres)
    finally:
        is_over.set()
        sender.join()
    sent.hold(client)
    assert server.process.poll() is None


def test_a_server_that_is_killed_with_all_its_workers_busy_goes_on_where_it_was(
    server: WholeServer, client: Client
) -> None:
    sent = Sent(server)
    sent.send(client, [payload(each, SLOW) for each in range(200)])
    until(lambda: sent.predictions(client))
    workers = server.worker_ids("onnx") + server.worker_ids("built-in")
    server.close()
    until(lambda: not any((Path("/proc") / str(each) / "exe").exists() for each in workers))
    server.start()
    sent.send(client, [payload(each) for each in range(20)])
    sent.hold(client)


def test_a_full_disk_costs_receipts_while_it_is_full_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24 << 20) as disk:
        server = WholeServer(
            tmp_path / "server", {"lindenberg/counter": "counter"}, f'data_folder = "{disk / "data"}"\n'
        )
        try:
            with server.client() as client:
                bring_model(client, tmp_path)
                sent = Sent(server)
                sent.send(client, [payload(each) for each in range(50)])
                ballast = disk / "ballast"
                with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                    while True:
                        file.write(bytes(4096))
                sender = threading.Thread(target=sent.send, args=(client, [payload(each) for each in range(2000)]))
                sender.start()
                until(lambda: server.logged("write refused"))
                assert sender.is_alive()
                ballast.unlink()
                sender.join()
                sent.hold(client, is_in_order=False)
            server.stop()
        finally:
            server.close()


def test_a_fault_at_any_step_of_a_server_loses_nothing_and_repeats_nothing() -> None:
    if compiler() is None:
        skip_or_fail("there is no C compiler (apt install gcc): the library of faults cannot be built")
    command = [sys.executable, "-m", "faults.server_steps", "--every", "24", "--json"]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=110)
    outcome = json.loads(done.stdout)
    assert outcome["steps"] > 30, "the library counts next to nothing"
    assert not outcome["wrong"], "\n\n".join(f"{step}: {why}" for step, why in outcome["wrong"].items())
