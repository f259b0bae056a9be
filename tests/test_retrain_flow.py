"""The retrain flow on a real Prefect server, small enough for every run of the tests; and the drift that starts it."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from archive_support import DAY, ingest_all, open_site
from learned_support import drawn_weights
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from server_support import START_NANOS, make_observation

from fieldpost.errors import BrokenStateError
from fieldpost.simulation import SimulatedCl51
from flows.drift import DriftParams, drift
from flows.retrain import retrain
from flows.retraining.decision import Decision
from flows.retraining.parameters import RetrainParams
from flows.retraining.run import METRICS
from flows.retraining.versions import open_retrain, promote, register
from server.analyses import find_analyses, load_analysis
from server.analyses.boundary_layer import SHIPPED_WEIGHTS
from server.analyses.boundary_layer.learned.network import NetworkConfig
from server.models import catalogue
from server.models.card import ModelKind, ModelState
from server.models.files import ModelFiles
from server.models.trained import register_trained
from server.storage.store import Store
from server.workers.jobs import ModelKey

ROOT = Path(__file__).resolve().parent.parent
ANALYSIS = "boundary-layer-height"
SMALL = ("--batch", "2", "--validation-days", "1", "--calibration-days", "1")
SMALLEST = (*SMALL, "--widths", "4", "4", "4", "--memory", "4")
DUE = DAY + timedelta(days=1)
DECIDED = Decision(True, ("better beyond noise",), ())

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::FutureWarning"),  # the exporter's own
]


@dataclass
class Network:
    """A server's data folder with an hour of a simulated CL51."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        return self.folder / "server.toml"

    @property
    def runs(self) -> Path:
        return self.folder / "data" / "retrain" / ANALYSIS

    def params(self, **changed: object) -> RetrainParams:
        small = {"training_days": 2, "epochs": 2, "start_from": "nothing", "train_options": SMALLEST}
        return RetrainParams(**{**small, "settings_file": self.settings_file, "seed": 7, **changed})  # type: ignore[arg-type]

    def open(self) -> Store:
        return open_site(self.folder / "data")

    def states(self) -> dict[int, tuple[str, str]]:
        """Kind and state of the active version and of the trained ones."""
        store = self.open()
        with store.read() as connection:
            rows = catalogue.list_rows(connection, ANALYSIS)
        store.close()
        return {row.version: (row.kind, row.state) for row in rows if row.version > 1000 or row.state == "active"}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    (tmp_path / "server.toml").write_text(f'data_folder = "{tmp_path / "data"}"\n')
    store = open_site(tmp_path / "data")
    store.write(lambda connection: catalogue.register_built_in(connection, find_analyses())).result(10)
    instrument = SimulatedCl51(seed=5)
    contents = [instrument.telegram(START_NANOS / 1e9 + 15 * each) for each in range(1, 13)]
    ingest_all(store, [make_observation(place, content) for place, content in enumerate(contents, 1)])
    store.close()
    return Network(tmp_path)


def read_artifacts(prefix: str) -> dict[str, Any]:
    async def read() -> list[Any]:
        async with get_client() as client:
            key = ArtifactFilterKey(like_=f"{prefix}%")
            return await client.read_artifacts(artifact_filter=ArtifactFilter(key=key))

    return {each.key: each for each in asyncio.run(read())}


def make_untrained() -> bytes:
    """A version that was never trained: mostly silent, and where it speaks, sure of nonsense."""
    weights = drawn_weights(1, NetworkConfig((4, 4, 4), 4))
    with torch.no_grad():
        weights.network.where.weight[0] *= 20
        weights.network.sky_2.bias[0] += 20
    return weights.to_bytes()


def activate(network: Network, content: bytes, provenance: dict[str, object]) -> int:
    """Lets a version with this content be the one at work."""
    store, files = network.open(), ModelFiles(network.folder / "data" / "models")
    key = store.write(lambda c: register_trained(c, files, ANALYSIS, content, provenance, "anna", 1)).result(10)
    store.write(lambda c: catalogue.change_state(c, key, ModelState.ACTIVE, "anna", "", 1)).result(10)
    store.close()
    return key.version


def test_a_run_trains_compares_and_promotes_what_is_better_and_says_why(prefect_api: str, network: Network) -> None:
    parent = activate(network, make_untrained(), {})
    begin = (*SMALL, "--start-from", str(SHIPPED_WEIGHTS))
    retrain(network.params(epochs=1, held_out_days=4, train_options=begin))
    assert network.states()[1002] == (ModelKind.TRAINED, ModelState.ACTIVE)
    done = network.runs / "1002"
    assert not (network.runs / "unfinished").exists()
    assert not (done / "training" / "courses").exists()
    store = network.open()
    with store.read() as connection:
        row = catalogue.get_row(connection, ModelKey(ANALYSIS, 1002))
    store.close()
    content = ModelFiles(network.folder / "data" / "models").read(row.sha256, ".safetensors")
    assert load_analysis(ANALYSIS, 1002, content).version == 1002
    facts = json.loads(row.provenance)
    assert (facts["parent"], facts["seed"], facts["data"]["real_days"]) == (f"{ANALYSIS}@{parent}", 7, 0)
    assert facts["decision"]["reasons"][0].startswith("better beyond noise: RMSE (all, 8 days): ")
    assert facts["training"]["provenance"]["data_sha256"]
    session = onnxruntime.InferenceSession(done / "model.onnx")
    shapes = {each.name: [2, *each.shape[1:]] for each in session.get_inputs()}
    answers = session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert all(len(answer) == 2 and np.isfinite(answer).all() for answer in answers)

    artifacts = read_artifacts("retrain")
    page = artifacts["retrain"].data
    assert f"{ANALYSIS}@1002, compared with {ANALYSIS}@{parent}: active." in page
    assert "better beyond noise: wrong layer" in page
    assert "LiteRT: not converted; name the converter's Python" in page
    pictures = [each.partition(")")[0] for each in page.split("data:image/png;base64,")[1:]]
    assert len(pictures) == 2 and all(base64.b64decode(each).startswith(b"\x89PNG") for each in pictures)
    rows = json.loads(artifacts["retrain-scores"].data)
    assert {"all", "the network's climate", "another climate", "night"} <= {row["group"] for row in rows}
    assert {"retrain-training", "retrain-comparison"} <= set(artifacts)


def test_a_run_that_was_killed_is_taken_up_and_registers_once(network: Network) -> None:
    program = (
        "import sys; from datetime import date; from pathlib import Path\n"
        "from flows.retraining.parameters import RetrainParams; from flows.retraining.versions import open_retrain\n"
        "params = RetrainParams.model_validate_json(sys.argv[1])\n"
        "with open_retrain(params, date.fromisoformat(sys.argv[2])) as run:\n"
        "    run.describe_days(); run.prepare(); run.train(lambda line: print(line, flush=True))\n"
    )
    params = network.params(epochs=4)
    command = [sys.executable, "-c", program, params.model_dump_json(), str(DUE)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert any(line.startswith("epoch 1/4") for line in first.stdout)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert (network.runs / "unfinished" / "training" / "checkpoint.pt").exists()

    lines: list[str] = []
    with open_retrain(params.model_copy(update={"seed": 7}), DUE + timedelta(days=7)) as run:
        assert run.first_day == DUE - timedelta(days=28)  # as it began, a week ago
        run.train(lines.append)
        key = register(run, DECIDED)
        assert register(run, DECIDED) == key == ModelKey(ANALYSIS, 1001)
    assert any(line.startswith("going on after epoch ") for line in lines)
    assert not any(line.startswith("epoch 1/4") for line in lines)
    assert [version for version in network.states() if version > 1000] == [1001]


def make_trained(network: Network) -> None:
    """Leaves an unfinished run whose training is done: the folder as the training leaves it."""
    with open_retrain(network.params(epochs=1), DUE) as run:
        run.prepare()
        run.training.mkdir()
        run.weights.write_bytes(make_untrained())
        (run.training / METRICS).write_text("{}")


def test_a_better_version_takes_the_place_of_its_parent_unless_a_person_was_faster(network: Network) -> None:
    (parent,) = network.states()
    make_trained(network)
    with open_retrain(network.params(epochs=1), DUE) as run:
        assert promote(run, register(run, Decision(False, ("worse",), ())), Decision(False, ("worse",), ())).startswith(
            "rejected"
        )
        key = register(run, DECIDED)
        silent = open_params(run, promote=False)
        assert promote(silent, key, DECIDED) == "better, but not activated: the parameters leave that to you"
        assert promote(run, key, DECIDED) == "active"
        assert network.states()[1001] == (ModelKind.TRAINED, ModelState.ACTIVE)
        assert promote(run, key, DECIDED) == "active"
        back = ModelKey(ANALYSIS, parent)
        run.store.write(lambda c: catalogue.change_state(c, back, ModelState.ACTIVE, "anna", "", 1)).result(10)
        assert promote(run, key, DECIDED) == "better, but not activated: it was active before, and somebody went back"


def open_params(run: Any, **changed: object) -> Any:
    """The run with other parameters."""
    from dataclasses import replace

    return replace(run, params=run.params.model_copy(update=changed))


def test_a_training_that_fails_fails_the_run_with_its_last_lines(network: Network) -> None:
    with (
        open_retrain(network.params(training_days=1), DUE) as run,
        pytest.raises(BrokenStateError, match=r"expected at least 2 courses, one batch, but got 1"),
    ):
        run.prepare()
        run.train(lambda line: None)
    assert [version for version in network.states() if version > 1000] == []


def test_days_unlike_the_training_are_told_by_one_event(prefect_api: str, network: Network) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    activate(network, make_untrained(), {"usual": {"cl51": {"noise_low": (-20.0, 0.1), "cloud_share": (0.5, 1.0)}}})
    instrument, store = SimulatedCl51(seed=5), network.open()
    sent = []
    for place in range(72):
        unix_s = today.timestamp() - 3600 * (72 - place)
        observation = make_observation(place + 1, instrument.telegram(unix_s), epoch="d" * 32)
        observation.header.measure_time.FromNanoseconds(round(unix_s * 1e9))
        observation.header.capture_clock.wall_time.FromNanoseconds(round(unix_s * 1e9))
        sent.append(observation)
    ingest_all(store, sent)
    store.close()
    drift(DriftParams(settings_file=network.settings_file))
    (row,) = json.loads(read_artifacts("drift")["drift"].data)
    assert (row["station"], row["instrument"], row["statistic"], row["days"]) == ("lindenberg", "cl51", "noise_low", 3)
    (event,) = wait_for_events(prefect_api, "fieldpost.drift", f"fieldpost.analysis.{ANALYSIS}")
    assert event["payload"]["deviations"] == [row]


def wait_for_events(url: str, name: str, resource: str) -> list[Any]:
    """What the server has heard of this name about a resource; events come by a way of their own, a moment later."""
    wanted = json.dumps({"filter": {"event": {"name": [name]}, "resource": {"id": [resource]}}}).encode()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        request = urllib.request.Request(f"{url}/events/filter", wanted, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            events: list[Any] = json.load(answer)["events"]
        if events:
            return events
        time.sleep(0.1)
    return []
