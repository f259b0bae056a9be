"""The documents hold what the code does: examples run, help is current, all settings are there."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import fieldpost.errors
from docs import from_code
from fieldpost import Client
from fieldpost._models import Models
from fieldpost.testing import RecordingServer, Variable, make_prediction

ROOT = Path(__file__).resolve().parent.parent
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = '"127.0.0.1:50051"'


MANIFEST = 'analysis = "tissue"\ninstrument_models = ["camera"]\n'
MIB = 1024 * 1024


def classify(analysis: str, payload: bytes) -> list[Variable]:
    assert analysis == "tissue"
    depth = Variable(name="burn_depth", unit="mm", values=[len(payload)])
    return [Variable(name="tissue", unit="1", values=[1], flag_meanings=["healthy", "burnt"]), depth]


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(predict=classify) as running:
        running.add_prediction(
            make_prediction(["2025-06-01T12:00Z"], {("atmosphere_boundary_layer_thickness", "m"): [812.0]})
        )
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples find where they are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tissue.onnx").write_bytes(b"an ONNX file")
    (tmp_path / "tissue.toml").write_text(MANIFEST)
    (tmp_path / "image.png").write_bytes(b"an image")
    (tmp_path / "volume.raw").write_bytes(bytes(9 * MIB))
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"an image" * number)
    return tmp_path


def run_examples(name: str, blocks: list[str], server: RecordingServer) -> dict[str, object]:
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        program = block.replace(ADDRESS, repr(server.address))
        exec(compile(program, f"{name}, example {number}", "exec"), names)
    return names


def test_every_example_of_the_sdk_page_runs(
    server: RecordingServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "sdk.md").read_text()
    blocks = PYTHON_BLOCK.findall(page)
    assert len(blocks) == page.count("```python") > 15
    names = run_examples("docs/sdk.md", blocks, server)
    printed = capsys.readouterr().out
    assert "atmosphere_boundary_layer_thickness (m)" in printed and "812.0" in printed
    assert "1 held, 0 of them before" in printed
    assert f"{9 * MIB} bytes on the server's disk" in printed
    assert "['burnt'] [8.] mm 1" in printed
    assert "(3, 1, 10, 1)" in printed
    assert (folder / "copy.raw").read_bytes() == (folder / "volume.raw").read_bytes()
    connect_with_token = names["connect_with_token"]
    (folder / "ca.crt").write_text("no certificate")
    (folder / "token").write_text("secret\n")
    assert callable(connect_with_token)
    connect_with_token(folder).close()


def test_every_call_is_on_the_sdk_page() -> None:
    page = (ROOT / "docs" / "sdk.md").read_text()
    calls = [name for name in vars(Client) if not name.startswith("_") and name != "close"]
    assert [name for name in calls if f"`{name}`" not in page and f"`{name}(" not in page] == []
    assert [name for name in vars(Models) if not name.startswith("_") and f"models.{name}" not in page] == []
    errors = [name for name in vars(fieldpost.errors) if name.endswith("Error")]
    assert [name for name in errors if name != "FieldpostError" and f"`{name}`" not in page] == []


def predict_what_comes(server: RecordingServer, count: int) -> None:
    """Does for a RecordingServer what a real one does by itself."""
    with server.changed:
        server.changed.wait_for(lambda: len(server.observations) == count, timeout=30)
    for observation in server.observations:
        prediction = make_prediction(
            ["2025-06-01T12:00Z"],
            {("tissue", "1"): [1.0]},
            station="ward-1",
            analysis="tissue",
            sequence=observation.header.sequence,
        )
        prediction.variables[0].flag_meanings.extend(["healthy", "burnt"])
        server.add_prediction(prediction)


def test_the_examples_of_the_readme_run(
    server: RecordingServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add_prediction(
        make_prediction([datetime.now(UTC)], {("atmosphere_boundary_layer_thickness", "m"): [640.0]}, station="payerne")
    )
    blocks = PYTHON_BLOCK.findall((ROOT / "README.md").read_text())
    assert len(blocks) == 2
    helper = threading.Thread(target=predict_what_comes, args=(server, 3))
    helper.start()
    run_examples("README.md", blocks, server)
    helper.join()
    printed = capsys.readouterr().out
    assert "640.0 m above ground" in printed
    assert "0.png burnt\n1.png burnt\n2.png burnt\n['burnt']\n" in printed


def test_the_documents_are_as_the_code_makes_them() -> None:
    stale = [path.name for path, content in from_code.generate_docs().items() if path.read_bytes() != content]
    assert stale == [], "run `make docs`"


def test_all_settings_are_documented_with_what_they_are() -> None:
    from edge_agent.settings import AgentSettings, describe_settings
    from server.settings import Settings

    page = from_code.settings_page()
    rows = [*describe_settings(), *from_code.server_settings(Settings)]
    declared = {field.name for field in dataclasses.fields(AgentSettings)} - {"instruments"} | set(
        Settings.model_fields
    )
    assert declared <= {name for name, *_ in rows}
    for name, kind, _, description in rows:
        assert f"| `{name}` |" in page
        assert kind and description.rstrip().endswith("."), f"{name} is described as {description!r}"


def test_help_is_put_into_its_place_and_the_second_time_changes_nothing() -> None:
    page = "before\n<!-- begin: fieldpost stations --help -->\nout of date\n<!-- end -->\nafter\n"
    once = from_code.fill("page.md", page)
    assert "out of date" not in once
    assert "Usage: fieldpost stations" in once
    assert once.startswith("before\n<!-- begin:") and once.endswith("<!-- end -->\nafter\n")
    assert from_code.fill("page.md", once) == once
    assert max(len(line) for line in once.splitlines()) <= from_code.WIDTH


@pytest.mark.parametrize("command", ["fieldpots --help", "fieldpost nonsense --help", "fieldpost stations", "rm -rf x"])
def test_a_place_for_a_command_that_does_not_exist_fails_and_names_the_page(command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        from_code.fill("page.md", f"<!-- begin: {command} -->\n<!-- end -->\n")
    assert "page.md" in str(caught.value)


def test_a_place_without_an_end_fails() -> None:
    with pytest.raises(SystemExit, match="end"):
        from_code.fill("page.md", "<!-- begin: fieldpost --help -->\n")
