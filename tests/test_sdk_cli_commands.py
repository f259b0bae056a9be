"""The commands that send, read, predict and keep models, against a real server; in this process, which is faster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fieldpost._observation_requests import read_request
from fieldpost._sent_files import SentFiles, state_folder
from fieldpost._uploading import FileObservation
from fieldpost.cli import app
from fieldpost.errors import BrokenStateError, InvalidRequestError, RejectedError
from fieldpost.testing import RecordingServer, make_prediction
from fieldpost.v1 import capacity_service_pb2 as capacity_pb2
from fieldpost.v1 import model_pb2
from fieldpost.v1.prediction_pb2 import Variable

MIB = 1024 * 1024
MANIFEST = 'analysis = "burns"\ninstrument_models = ["camera"]\n'


def classify(analysis: str, payload: bytes) -> list[Variable]:
    if payload == b"bad":
        raise RejectedError("expected an image, but got bad")
    depth = Variable(name="burn_depth", unit="mm", values=[len(payload) / 2])
    return [depth, Variable(name="tissue", unit="1", values=[1], flag_meanings=["healthy", "burnt"])]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingServer]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with RecordingServer(predict=classify) as running:
        monkeypatch.setenv("FIELDPOST_SERVER", running.address)
        yield running


def run(*words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == status, result.output
    return result


def files(folder: Path, *contents: bytes) -> list[str]:
    paths = [folder / f"{number}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return [str(path) for path in paths]


SEND = ("send", "--station", "ward-1", "--instrument", "camera")


def test_files_are_sent_and_sending_them_again_stores_nothing_twice(server: RecordingServer, tmp_path: Path) -> None:
    first, second, large = files(tmp_path, b"one", b"two", os.urandom(9 * MIB))
    assert "1 of 1 held, 0 of them before" in run(*SEND, first).output
    assert "3 of 3 held, 1 of them before" in run(*SEND, second, large, first).output
    assert json.loads(run(*SEND, "--json", first, second, large).output)["duplicate_count"] == 3
    assert [each.header.sequence for each in server.observations] == [1, 2, 3]
    assert {each.header.origin for each in server.observations} == {"0.png", "1.png", "2.png"}
    Path(first).write_bytes(b"changed")
    assert "1 of 1 held, 0 of them before" in run(*SEND, first).output
    assert len({each.header.epoch for each in server.observations}) == 1 and len(server.observations) == 4


def test_a_send_that_was_cut_goes_on_under_the_same_identities(server: RecordingServer, tmp_path: Path) -> None:
    names = files(tmp_path, *(bytes([n]) * 100 for n in range(20)))
    server.stop()
    assert "try again" in run(*SEND, *names, status=75).stderr
    server.start()
    for _ in range(100):
        if (result := CliRunner().invoke(app, [*SEND, *reversed(names)])).exit_code == 0:
            break
    assert "20 of 20 held, 0 of them before" in result.output
    assert [each.header.origin for each in server.observations] == [f"{n}.png" for n in range(20)]


def test_when_a_file_was_measured_is_said_or_taken_from_the_file(server: RecordingServer, tmp_path: Path) -> None:
    first, second, third = files(tmp_path, b"one", b"two", b"three")
    os.utime(first, (1_750_000_000, 1_750_000_000))
    run(*SEND, "--measured", "mtime", first)
    run(*SEND, "--measured", "2025-06-01T12:00Z", "--format", "png", second)
    run(*SEND, third)
    headers = [each.header for each in server.observations]
    assert headers[0].measure_time.seconds == 1_750_000_000
    assert headers[1].measure_time.ToJsonString() == "2025-06-01T12:00:00Z" and headers[1].payload_format == "png"
    assert not headers[2].HasField("measure_time")


def test_a_refused_file_is_named_and_the_command_fails(server: RecordingServer, tmp_path: Path) -> None:
    server.registered = frozenset()
    (name,) = files(tmp_path, b"one")
    result = run(*SEND, name, status=1)
    assert f"refused: {name}: ward-1/camera is not registered" in result.stderr


def test_two_who_send_for_one_station_at_once_do_not_share_numbers(tmp_path: Path) -> None:
    with SentFiles(tmp_path, "ward-1"), pytest.raises(InvalidRequestError, match="another process"):
        SentFiles(tmp_path, "ward-1")


def test_a_journal_that_was_cut_in_the_middle_of_a_line_is_read_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    with SentFiles(tmp_path, "ward-1") as sent:
        assert sent.number("camera", [path]) == [(1, path)]
        epoch = sent.epoch
    with sent.path.open("a") as journal:
        journal.write('{"sequence": 2, "instr')
    with SentFiles(tmp_path, "ward-1") as sent:
        assert sent.epoch == epoch
        assert sent.number("camera", [path]) == [(1, path)]
        assert sent.number("microscope", [path]) == [(2, path)]
    sent.path.write_text("{}\n")
    with pytest.raises(BrokenStateError, match=r"ward-1\.jsonl"):
        SentFiles(tmp_path, "ward-1")


def test_a_large_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "volume.raw"
    path.write_bytes(bytes(9 * MIB))
    with SentFiles(tmp_path, "ward-1") as sent:
        (observation,) = sent.observations("ct", sent.number("ct", [path]), {}, "")
    assert isinstance(observation, FileObservation)


def test_the_folder_for_state_is_that_of_the_person() -> None:
    assert state_folder({"HOME": "/home/a"}) == Path("/home/a/.local/state/fieldpost/sent")
    assert state_folder({"HOME": "/home/a", "XDG_STATE_HOME": "/s"}) == Path("/s/fieldpost/sent")


def test_observations_are_listed_and_read_back(server: RecordingServer, tmp_path: Path) -> None:
    (name,) = files(tmp_path, b"one")
    run(*SEND, "--measured", "2025-06-01T12:00Z", name)
    head, line = run("observations", "--station", "ward-1").output.splitlines()
    assert head.split()[0] == "measured" and line.split() == [
        *("2025-06-01T12:00:00Z", "ward-1", "camera", "1", "1", "3", "B")
    ]
    fact = json.loads(run("observations", "--json").output)
    assert fact["observation_id"] == 1 and fact["header"]["sequence"] == 1 and fact["header"]["payload_bytes"] == 3
    assert fact["header"]["sha256"] == server.observations[0].header.sha256.hex()
    run("read", "1", "-o", str(tmp_path / "back.png"))
    assert (tmp_path / "back.png").read_bytes() == b"one"
    assert not (tmp_path / "back.png.part").exists()
    assert run("read", "1").stdout_bytes == b"one"
    assert "no observations match" in run("observations", "--station", "nowhere").stderr


def test_what_cannot_be_read_leaves_no_file(server: RecordingServer, tmp_path: Path) -> None:
    assert "no observation 9" in run("read", "9", "-o", str(tmp_path / "back.png"), status=1).stderr
    assert list(tmp_path.glob("back*")) == []
    assert read_request(9).observation_id == 9


def test_files_are_predicted_into_a_table_and_json(server: RecordingServer, tmp_path: Path) -> None:
    names = files(tmp_path, b"1234", b"12")
    head, first, second = run("predict", *names, "--analysis", "burns").output.splitlines()
    assert head.split() == ["file", "model", "burn_depth", "(mm)", "tissue"]
    assert first.split()[1:] == ["burns@1", "2", "burnt"] and second.split()[2] == "1"
    rows = [json.loads(line) for line in run("predict", *names, "--analysis", "burns", "--json").output.splitlines()]
    assert [(row["file"], row["burn_depth"], row["tissue"]) for row in rows] == [
        (names[0], 2.0, "burnt"),
        (names[1], 1.0, "burnt"),
    ]


def test_a_file_that_the_model_refuses_is_named_and_the_others_are_predicted(
    server: RecordingServer, tmp_path: Path
) -> None:
    names = files(tmp_path, b"1234", b"bad")
    result = run("predict", *names, "--analysis", "burns", status=1)
    assert "burns@1" in result.stdout and "refused:" in result.stderr and "but got bad" in result.stderr


def test_the_life_of_a_model_from_the_command_line(server: RecordingServer, tmp_path: Path) -> None:
    model, manifest = tmp_path / "model.onnx", tmp_path / "manifest.toml"
    model.write_bytes(bytes(2_000_000))
    manifest.write_text(MANIFEST)
    submit = ("models", "submit", str(model), "--manifest", str(manifest), "--provenance", "trained on A")
    assert "burns@1 is ready" in run(*submit).output
    assert "burns@1 was there before" in run(*submit).output
    assert "active" in run("models", "activate", "burns@1", "--reason", "the first").output
    model.write_bytes(b"2")
    assert json.loads(run(*submit, "--json").output)["model_version"] == 2
    assert "shadow" in run("models", "shadow", "burns@2").output
    run("models", "activate", "burns@2")
    assert "burns@1  active" in run("models", "roll-back", "burns").output
    assert "retired" in run("models", "retire", "burns@2").output
    head, *lines = run("models", "list").output.splitlines()
    assert head.split()[:2] == ["model", "state"]
    assert [line.split()[:2] for line in lines] == [["burns@1", "active"], ["burns@2", "retired"]]
    assert [json.loads(line)["model_version"] for line in run("models", "list", "--json").output.splitlines()] == [1, 2]
    run("models", "restrict", "burns@1", "--station", "ward-1", "--instrument", "ward-2/camera")
    assert "ward-1, ward-2/camera" in run("models", "show", "burns@1").output
    unrestricted = run("models", "restrict", "burns@1", "--everywhere").output.splitlines()
    assert ["predicts", "for", "all"] in [line.split() for line in unrestricted]


def test_a_model_is_shown_with_its_trial_events_and_comparison(server: RecordingServer) -> None:
    model = model_pb2.Model(
        analysis="burns",
        model_version=2,
        state=model_pb2.MODEL_STATE_SHADOW,
        kind=model_pb2.MODEL_KIND_ONNX,
        manifest=MANIFEST,
        trial=model_pb2.ModelTrial(
            batch_fixed_s=0.002, observation_s=0.0005, max_batch_count=32, difference_max_ratio=float("nan")
        ),
        events=[model_pb2.ModelEvent(state=model_pb2.MODEL_STATE_SHADOW, actor="ada", reason="to be compared")],
        comparison=model_pb2.ModelComparison(
            observation_count=100,
            only_shadow_failed_count=1,
            variables=[
                model_pb2.VariableComparison(name="burn_depth", unit="mm", sample_count=99, mean_difference=0.5)
            ],
        ),
    )
    server.models.append(model)
    shown = run("models", "show", "burns@2").output
    for part in (
        *("2 ms, and 0.5 ms for each", "nothing was expected", "kept in by", "ada", "to be compared"),
        *("over 100 observations: only this one failed on 1", "burn_depth", "0.5", 'analysis = "burns"'),
    ):
        assert part in shown
    fact = json.loads(run("models", "show", "burns@2", "--json").output)
    assert fact["trial"]["difference_max_ratio"] is None and fact["trial"]["max_batch_count"] == 32


@pytest.mark.parametrize(
    "words",
    [
        ["models", "show", "burns"],
        ["models", "show", "burns@new"],
        ["models", "restrict", "burns@1"],
        ["models", "restrict", "burns@1", "--everywhere", "--station", "a"],
        ["models", "submit", "nothing.onnx", "--manifest", "nothing.toml"],
        ["predict", "nothing.png", "--analysis", "a"],
        ["retry"],
        ["stations", "--token-file", "nothing"],
    ],
)
def test_wrong_usage_has_status_2(server: RecordingServer, words: list[str]) -> None:
    assert run(*words, status=2).stderr


def test_a_token_is_read_from_a_file_and_is_not_sent_in_the_clear(server: RecordingServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    result = run("stations", "--token-file", str(token), status=2)
    assert "TLS" in result.stderr and "secret" not in result.output


def test_failures_are_tried_again(server: RecordingServer) -> None:
    failed = server.add_prediction(make_prediction(["2025-06-01"], {}))
    failed.failure = "too dark"
    assert "1 observations will be predicted again" in run("retry", "--analysis", "boundary-layer-height").output


def test_capacity_is_told_for_people_and_for_programs(server: RecordingServer) -> None:
    server.capacity.workers.append(capacity_pb2.WorkerCapacity(worker="onnx-1", device="cpu", is_ready=True))
    server.capacity.queues.append(capacity_pb2.ModelQueue(analysis="burns", model_version=1, live_count=7))
    server.capacity.machine.memory_free_bytes = 1_500_000_000
    printed = run("capacity").output
    assert "1.5 GB of memory free" in printed and "onnx-1" in printed and "burns@1" in printed
    assert json.loads(run("capacity", "--json").output)["queues"][0]["live_count"] == 7


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(server: RecordingServer, tmp_path: Path) -> None:
    names = files(tmp_path, b"1", b"2")
    command = [sys.executable, "-c", "from fieldpost.cli import main; main()", *SEND, *names]
    quiet = subprocess.run(command, capture_output=True, timeout=60)
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    leader, follower = os.openpty()
    try:
        shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, timeout=60)
        assert shown.returncode == 0 and b"sending" in os.read(leader, 4096)
    finally:
        os.close(leader)
        os.close(follower)
