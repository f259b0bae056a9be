"""What `import fieldpost` offers, and what it does not drag in."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import fieldpost

HEAVY = ("torch", "prefect", "paho", "sqlmodel", "sqlalchemy", "pydantic", "typer", "matplotlib", "netCDF4")


def loaded_after(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_every_public_name_is_there_and_in_dir() -> None:
    for name in fieldpost.__all__:
        assert getattr(fieldpost, name) is not None
    assert set(fieldpost.__all__) <= set(dir(fieldpost))
    assert fieldpost.__all__ == sorted(fieldpost.__all__)


def test_the_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse(Path(str(fieldpost.__file__)).read_text())
    declared = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert declared | {"__version__"} == set(fieldpost.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        fieldpost.Clinet  # noqa: B018


def test_the_version_is_that_of_the_installed_package() -> None:
    assert fieldpost.__version__ == version("fieldpost")


def test_the_client_pulls_in_nothing_heavy() -> None:
    assert not loaded_after("import fieldpost; fieldpost.Client; fieldpost.AsyncClient") & set(HEAVY)


def test_what_a_station_imports_pulls_in_neither_grpc_nor_numpy() -> None:
    loaded = loaded_after("import fieldpost.payload, fieldpost.names, fieldpost.ranges, fieldpost.logs")
    assert not loaded & {"grpc", "numpy", *HEAVY}
