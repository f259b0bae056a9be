"""A user's own model from its file to predictions, at the front doors of a whole server with real workers."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hostile_models import AT_WORK, STATIC
from model_support import PROFILE_MANIFEST, floats, make_image, make_model, make_profile, weights
from onnx import helper
from whole_support import WholeServer, until

from fieldpost import Client, InvalidRequestError, Outbox, UnknownModelError
from fieldpost.v1 import prediction_pb2
from fieldpost.v1.model_pb2 import ModelState

RED, BLUE = (220, 30, 20), (20, 30, 220)
MANIFEST = """
analysis = "tissue"
instrument_models = ["camera"]

[input]
decode = "image"
resize = { width = 8, height = 8 }
scale = 0.00392156862745098

[[outputs]]
name = "scores"
kind = "class"
activation = "softmax"
variable = "tissue"
labels = ["burnt", "sound"]
probability = "tissue_probability"
"""


LIMITS = "trial_max_s = 10\ntrial_memory_bytes_max = 1073741824\n"


def make_classifier(*, gain: float = 20.0, breaks_on_blue: bool = False) -> bytes:
    """Two scores of an image: how red it is, and how blue. It can be made to break on what is more blue than red."""
    turn = np.array([[1, 0], [0, 0], [0, 1]], np.float32) * gain
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "turn"], ["told"]),
        helper.make_node("ArgMax", ["told"], ["which"], axis=1, keepdims=1),
        helper.make_node("Gather", ["table", "which"], ["nothing"]),
        helper.make_node("Add", ["told", "nothing"], ["scores"]),
    ]
    table = weights("table", np.zeros(1 if breaks_on_blue else 2, np.float32))
    model = make_model(
        nodes, [floats("image", "b", 3, 8, 8)], [floats("scores", "b", 2)], [weights("turn", turn), table]
    )
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    cameras = {"ward-1/camera": "camera", "ward-2/camera": "camera"}
    running = WholeServer(tmp_path_factory.mktemp("models"), cameras, LIMITS)
    yield running
    running.stop()
    running.close()


@pytest.fixture
def client(server: WholeServer) -> Iterator[Client]:
    with server.client() as asking:
        yield asking


def submit(client: Client, folder: Path, analysis: str, content: bytes) -> int:
    """Brings a version of an analysis of its own; returns its number."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    manifest = MANIFEST.replace('analysis = "tissue"', f'analysis = "{analysis}"')
    return client.models.submit(path, manifest=manifest, sample=make_image(RED)).model.model_version


def send(client: Client, *colours: tuple[int, int, int], station: str = "ward-1") -> str:
    """Sends an image of each colour; returns the epoch."""
    outbox = Outbox(station)
    report = client.send(outbox.number([("camera", make_image(each), None) for each in colours]))
    assert report.held_count == len(colours)
    return outbox.epoch


def find(client: Client, analysis: str, epoch: str) -> list[prediction_pb2.Prediction]:
    """What is served of an analysis about what was sent under an epoch."""
    return [each for each in client.iter_predictions(analysis=analysis) if each.epoch == epoch]


def labels(predictions: list[prediction_pb2.Prediction]) -> list[str]:
    found = sorted(predictions, key=lambda each: each.sequence)
    return [each.variables[0].flag_meanings[int(each.variables[0].values[0])] for each in found]


def test_the_lines_of_the_readme_bring_a_model_and_print_what_it_says(server: WholeServer, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(24):
        (tmp_path / "images" / f"{number:02}.png").write_bytes(make_image(BLUE if number % 3 else RED))
    (tmp_path / "tissue.onnx").write_bytes(make_classifier())
    (tmp_path / "tissue.toml").write_text(MANIFEST)
    section = (ROOT / "README.md").read_text().partition("## Bring your own model")[2]
    (lines,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.S)
    assert "127.0.0.1:50051" in lines
    printed = io.StringIO()
    with chdir(tmp_path), redirect_stdout(printed):
        exec(compile(lines.replace("127.0.0.1:50051", server.address), "README.md", "exec"), {})
    *watched, at_once = printed.getvalue().splitlines()
    assert Counter(watched) == Counter(f"{n:02}.png {'sound' if n % 3 else 'burnt'}" for n in range(24))
    assert at_once == "['burnt']"


def test_a_second_version_is_compared_then_active_then_rolled_back(
    server: WholeServer, client: Client, tmp_path: Path
) -> None:
    analysis = "second-look"
    first = submit(client, tmp_path, analysis, make_classifier())
    client.models.activate(analysis, first)
    second = submit(client, tmp_path, analysis, make_classifier(gain=-20.0))  # it sees everything the other way round
    client.models.shadow(analysis, second)
    epoch = send(client, RED, BLUE, RED, BLUE)
    until(lambda: len(find(client, analysis, epoch)) == 4)
    until(lambda: client.models.get(analysis, second).comparison.observation_count >= 4)
    assert labels(find(client, analysis, epoch)) == ["burnt", "sound", "burnt", "sound"], "a shadow is never served"
    shown = server.cli("models", "show", f"{analysis}@{second}")
    assert shown.returncode == 0 and "compared with the active version over" in shown.stdout, shown.stdout
    (tissue,) = (each for each in client.models.get(analysis, second).comparison.variables if each.name == "tissue")
    assert tissue.mean_absolute_difference == 1.0
    client.models.activate(analysis, second)
    until(lambda: client.predict(analysis, make_image(RED)).model_version == second)
    later = send(client, RED, BLUE)
    until(lambda: len(find(client, analysis, later)) == 2)
    assert labels(find(client, analysis, later)) == ["sound", "burnt"]
    client.models.roll_back(analysis, reason="it sees everything the other way round")
    until(lambda: client.predict(analysis, make_image(RED)).labels("tissue") == ["burnt"])
    last = send(client, RED, BLUE)
    until(lambda: len(find(client, analysis, last)) == 2)
    assert labels(find(client, analysis, last)) == ["burnt", "sound"]
    assert client.models.get(analysis, first).events[-1].reason == "it sees everything the other way round"


def test_a_version_that_fails_in_the_field_is_rolled_back_by_itself_and_what_it_failed_on_is_predicted(
    client: Client, tmp_path: Path
) -> None:
    analysis = "in-the-field"
    first = submit(client, tmp_path, analysis, make_classifier())
    client.models.activate(analysis, first)
    before = send(client, *[BLUE] * 30)
    until(lambda: len(find(client, analysis, before)) == 30)
    second = submit(client, tmp_path, analysis, make_classifier(breaks_on_blue=True))  # its sample was red
    client.models.activate(analysis, second)
    until(lambda: client.predict(analysis, make_image(RED)).model_version == second)
    epoch = send(client, *[BLUE] * 40)
    until(lambda: len(find(client, analysis, epoch)) >= 40)
    until(lambda: client.models.get(analysis, first).state == ModelState.MODEL_STATE_ACTIVE)
    event = client.models.get(analysis, first).events[-1]
    assert event.actor == "server" and event.reason.startswith("failed on"), event
    until(lambda: len(good(find(client, analysis, epoch))) == 40)
    assert {each.model_version for each in good(find(client, analysis, epoch))} == {first}
    assert client.predict(analysis, make_image(BLUE)).labels("tissue") == ["sound"]


def good(predictions: list[prediction_pb2.Prediction]) -> list[prediction_pb2.Prediction]:
    return [each for each in predictions if not each.failure]


def test_a_version_predicts_for_whom_it_may_and_retired_for_nobody(client: Client, tmp_path: Path) -> None:
    analysis = "only-here"
    version = submit(client, tmp_path, analysis, make_classifier())
    client.models.restrict(analysis, version, instruments=["ward-2/camera"])
    client.models.activate(analysis, version)
    client.predict(analysis, make_image(RED))  # it is loaded
    elsewhere, here = send(client, RED, RED), send(client, RED, BLUE, station="ward-2")
    until(lambda: len(find(client, analysis, here)) == 2)
    assert not find(client, analysis, elsewhere)
    client.models.restrict(analysis, version, stations=["ward-1", "ward-2"])
    until(lambda: len(find(client, analysis, elsewhere)) == 2)  # it goes back for what it may predict now
    client.models.retire(analysis, version)
    until(lambda: refuses(client, analysis))
    after = send(client, RED, station="ward-2")
    until(lambda: find(client, "tissue", after) or not client.models.list("tissue"))  # others went on meanwhile
    assert not find(client, analysis, after)
    assert labels(find(client, analysis, here)) == ["burnt", "sound"], "what it said is still served"


def refuses(client: Client, analysis: str) -> bool:
    try:
        client.predict(analysis, make_image(RED))
    except UnknownModelError:
        return True
    return False


@pytest.mark.parametrize(
    "name",
    ["a torch archive", "a pickle", "external data anywhere", "a deep protobuf", "an endless loop", "a giant tile"],
)
def test_a_hostile_model_is_refused_with_its_reason_and_the_server_goes_on(
    name: str, server: WholeServer, client: Client, tmp_path: Path
) -> None:
    hostile = {**STATIC, **AT_WORK}[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(hostile.make())
    with pytest.raises(InvalidRequestError) as refusal:
        client.models.submit(path, manifest=PROFILE_MANIFEST + hostile.extra, sample=make_profile())
    assert f": {hostile.rule}: expected " in str(refusal.value), refusal.value
    assert refusal.value.hint
    assert server.process.poll() is None
    assert client.models.list("boundary-layer-height")
    assert not client.models.list("layer-height")
