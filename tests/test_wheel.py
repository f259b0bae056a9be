"""What strangers and stations install: the wheel, built and installed as they would."""

from __future__ import annotations

import configparser
import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What makes the server heavy; a Raspberry Pi Zero 2 must not need it.
NOT_AT_A_STATION = {"torch", "prefect", "sqlmodel", "sqlalchemy", "pydantic", "matplotlib", "netCDF4", "grpc", "server"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_sdk_and_the_station_and_nothing_else(unpacked: Path) -> None:
    top = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"fieldpost", "edge_agent"}
    strange = [path for path in unpacked.rglob("*") if path.suffix in {".pyc", ".proto", ".nc", ".toml", ".db"}]
    assert strange == []


def test_the_wheel_holds_every_module_of_both(unpacked: Path) -> None:
    for package in ("fieldpost", "edge_agent"):
        here = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert {path.relative_to(unpacked) for path in (unpacked / package).rglob("*.py")} == here
    assert (unpacked / "edge_agent" / "operation" / "fieldpost-agent.service").exists()
    assert (unpacked / "edge_agent" / "quick_look" / "boundary-layer.fpmodel").exists()


def test_the_wheel_says_that_it_is_typed_and_under_which_licence(unpacked: Path) -> None:
    assert (unpacked / "fieldpost" / "py.typed").exists()
    (info,) = unpacked.glob("*.dist-info")
    metadata = email.message_from_string((info / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text()


def test_the_base_install_needs_little(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    needs = email.message_from_string((info / "METADATA").read_text()).get_all("Requires-Dist", [])
    base = {need.split(">")[0].strip() for need in needs if "extra ==" not in need}
    assert base == {"fastcrc", "grpcio", "numpy", "protobuf", "typer", "zstandard"}


def test_every_console_script_of_the_wheel_can_be_imported_from_it(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    scripts = configparser.ConfigParser()
    scripts.read(info / "entry_points.txt")
    assert set(scripts["console_scripts"]) == {"fieldpost", "fieldpost-agent", "fieldpost-server"}
    for entry_point in scripts["console_scripts"].values():
        module, _, function = entry_point.partition(":")
        run(f"from {module} import {function}; import {module.partition('.')[0]} as p; print(p.__file__)", unpacked)


def test_the_station_imports_nothing_that_is_too_heavy_for_it(unpacked: Path) -> None:
    modules = [
        ".".join(path.relative_to(unpacked).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((unpacked / "edge_agent").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    printed = run(f"import {', '.join(modules)}; import sys; print(*sys.modules)", unpacked)
    assert not {name.partition(".")[0] for name in printed.split()} & NOT_AT_A_STATION


def run(program: str, folder: Path) -> str:
    """Runs a program that sees the unpacked wheel in the place of the checkout."""
    others = f"[path for path in sys.path if path not in ('', {str(ROOT)!r})]"
    first = f"import sys; sys.path = [{str(folder)!r}, *{others}]"
    done = subprocess.run(
        [sys.executable, "-c", f"{first}; {program}"], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_agent_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(f'station = "a"\nbroker_urls = ["mqtt://127.0.0.1:1"]\nbuffer_folder = "{tmp_path}/b"\n')
    script = (
        "import sys; sys.modules['paho'] = None\n"
        "from edge_agent.cli import run\n"
        f"sys.exit(run(['run', '--config', {str(config)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "paho" in done.stderr
    assert "pip install 'fieldpost[edge]'" in done.stderr
    assert "Traceback" not in done.stderr
