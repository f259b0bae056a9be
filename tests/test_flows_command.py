"""`python -m flows` on a terminal: an option for each question of a form, and one clear line for each mistake."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from deployed_flows import define
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import BaseModel, Field

from fieldpost.errors import InvalidRequestError
from flows.__main__ import main
from flows.deployments.catalogue import CATALOGUE
from flows.deployments.listing import list_deployments, to_json, to_text
from flows.deployments.serving import apply, bring
from flows.options import add_options, read_options
from flows.parameters import Station, make_params

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Serving sends the log to a standard output that pytest closes after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Sky(Enum):
    CLEAR = "clear sky"
    CLOUDY = "clouds"


class Params(BaseModel):
    first_day: date | None = Field(default=None, title="First day", description="UTC day.")
    days: int = Field(default=1, ge=1, le=9, title="Days", description="So many, not 100 %.")
    mode: Literal["skip", "replace"] = Field(default="skip", title="Mode", description="What to do.")
    sky: Sky | None = Field(default=None, title="Sky", description="Which.")
    dry_run: bool = Field(default=True, title="Dry run", description="Only look.")
    stations: tuple[str, ...] = Field(default=(), title="Stations", description="Which.")
    station: Station = Field(default=None)
    folder: Path | None = Field(default=None, title="Folder", description="Where.")


def parse(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_options(parser, Params)
    return read_options(parser.parse_args(arguments), Params)


def test_every_kind_of_question_has_its_option() -> None:
    arguments = ["--first-day", "2025-06-15", "--days", "3", "--mode", "replace", "--sky", "clouds", "--no-dry-run"]
    arguments += ["--stations", "a", "--stations", "b", "--station", "lindenberg", "--folder", "/data"]
    assert make_params(Params, **parse(*arguments)) == Params(
        first_day=date(2025, 6, 15),
        days=3,
        mode="replace",
        sky=Sky.CLOUDY,
        dry_run=False,
        stations=("a", "b"),
        station="lindenberg",
        folder=Path("/data"),
    )


def test_what_is_not_given_has_the_default_of_the_form() -> None:
    assert parse() == {}
    assert make_params(Params, **parse()) == Params()


def test_every_wrong_parameter_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"wrong: days: Input should be less than .*; station: String should"):
        make_params(Params, **parse("--days", "10", "--station", "No Such"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["archive", "--local", "--first-day", "2025-13-01"], "expected a day as YYYY-MM-DD, but got '2025-13-01'"),
        (["retrain", "--start-from", "somewhere"], "invalid choice: 'somewhere'"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_every_flow_can_be_asked_for_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for each in CATALOGUE:
        with pytest.raises(SystemExit) as caught:
            main([each.flow, "--help"])
        assert caught.value.code == 0
        assert "--settings-file" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["archive"], ["serve"], ["deploy"], ["list"]])
def test_without_a_prefect_server_nothing_is_started(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main(arguments) == 2
    what, what_to_do = capsys.readouterr().err.splitlines()
    assert "expected the address of a Prefect server in PREFECT_API_URL" in what
    assert "--local" in what_to_do


@pytest.mark.parametrize("arguments", [["archive"], ["serve", "--wait-s", "0.1"], ["list"]])
def test_a_prefect_server_that_does_not_answer_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    url = f"http://127.0.0.1:{free_port}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        assert main(arguments) == 75
    what, what_to_do = capsys.readouterr().err.splitlines()
    assert what.startswith(f"no Prefect server answers at {url}")
    assert "start it" in what_to_do


def test_the_command_line_is_there_without_importing_prefect_or_torch() -> None:
    program = (
        "import sys; from flows.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print({*sys.modules} & {'prefect', 'torch'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr


def test_deployments_are_listed_for_people_and_for_scripts(prefect_api: str) -> None:
    listed = define(name="listed")
    bring([listed], apply, time_zone="UTC", to_pool=False)
    rows = list_deployments([listed, define(name="never-registered")])
    (there, absent) = json.loads(to_json(rows))
    assert (there["deployment"], there["status"], there["running"]) == ("count/listed", "active", 0)
    assert absent["status"] == "absent"
    header, *lines = to_text(rows).splitlines()
    assert header.split() == ["deployment", "status", "next", "run", "running", "last", "ended", "as"]
    assert [line.split()[:2] for line in lines] == [["count/listed", "active"], ["count/never-registered", "absent"]]
