"""A confined process can compute and nothing else. Each probe runs in a child, once free and once confined."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PERMISSION_MISSING = f"errno {errno.EPERM}"

FORBIDDEN = """open for reading; open for writing; list a folder; make a folder; remove a file; rename a file;
    link a file; change a mode; make a socket; make a pair of sockets; make a pipe; make a file in memory; fork;
    execute; signal the parent; signal everyone; signal a thread elsewhere; name an owner for signals; unshare;
    memory that can be executed; set a limit; change priority; become a user"""
REFUSED_CALLS = "openat2; io_uring; bpf; keyctl; perf events; userfaultfd; ptrace; mount; memory of others"


def _names(text: str) -> list[str]:
    return [" ".join(each.split()) for each in text.split(";")]


def _probe(folder: Path, mode: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "sandbox_probe.py"), str(folder), mode]
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    done = subprocess.run(
        command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _probe(tmp_path_factory.mktemp("confined"), "confined")


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _probe(tmp_path_factory.mktemp("free"), "free")


@pytest.mark.parametrize("name", _names(FORBIDDEN))
def test_what_a_free_process_may_do_a_confined_one_may_not(
    name: str, free: dict[str, Any], confined: dict[str, Any]
) -> None:
    assert free["results"][name] == "done"
    assert confined["results"][name] == PERMISSION_MISSING or "not allowed" in confined["results"][name]


@pytest.mark.parametrize("name", _names(REFUSED_CALLS))
def test_a_call_that_is_not_allowed_is_refused_before_its_arguments_are_looked_at(
    name: str, confined: dict[str, Any]
) -> None:
    assert confined["results"][name] == PERMISSION_MISSING


@pytest.mark.parametrize("name", ["threads", "arithmetic", "models"])
def test_a_confined_process_still_computes(name: str, confined: dict[str, Any]) -> None:
    assert confined["results"][name] == "done"


def test_a_confined_process_gets_no_more_memory_than_it_may_have(
    free: dict[str, Any], confined: dict[str, Any]
) -> None:
    assert free["results"]["memory"] == "done"
    assert "MemoryError" in confined["results"]["memory"]


def test_confining_says_what_holds(confined: dict[str, Any]) -> None:
    holds = confined["holds"]
    assert {"system call filter", "no new privileges", "memory limit", "CPU limit", "no file growth"} <= set(holds)
    is_root = os.geteuid() == 0
    assert ("unprivileged user" in holds) == is_root
    assert confined["results"]["uid"] != "0"
