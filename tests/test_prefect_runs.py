"""Runs on a real Prefect server: schedules fire, what is killed is noticed, and the next run does the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archive_support import DAY, ingest_telegrams, open_site, recorded
from deployed_flows import STEPS
from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.events.schemas.automations import AutomationCore
from prefect.states import Running
from prefect_support import PrefectServer, use_prefect

from flows.deployments.automations import ZOMBIE_RUNS
from flows.events import tell

ROOT = Path(__file__).resolve().parent.parent
SERVE = """
import sys
from pathlib import Path
from deployed_flows import define
from flows.deployments.catalogue import Schedule
from flows.deployments.serving import serve
often = define(
    name="often", schedules=(Schedule(slug="often", every_s=2.0),), parameters={"params": {"folder": sys.argv[1]}}
)
asked = define(name="asked", schedules=())
serve([often, asked], time_zone="UTC")
"""


@contextmanager
def serving(url: str, folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real runner with a deployment that is due every two seconds, and one that is asked for."""
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(log.parent), "DO_NOT_TRACK": "1"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    with log.open("wb") as output:
        command = [sys.executable, "-c", SERVE, str(folder)]
        runner = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        yield runner
    finally:
        runner.terminate()
        runner.wait(60)


def wait_for(find: Callable[[], Any], runner: subprocess.Popen[bytes], log: Path, timeout_s: float = 90.0) -> Any:
    """What is found in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and runner.poll() is None:
        if found := find():
            return found
        time.sleep(0.1)
    pytest.fail(f"nothing came: {log.read_text()[-3000:]}")


def ask(client: SyncPrefectClient, folder: Path, step_s: float) -> FlowRun:
    """Starts a run as the page's form does."""
    deployment = client.read_deployment_by_name("count/asked")
    params = {"folder": str(folder), "step_s": step_s}
    return client.create_flow_run_from_deployment(deployment.id, parameters={"params": params})


@pytest.mark.timeout(240)
def test_a_schedule_fires_and_the_next_run_does_what_a_killed_one_left(prefect_url: str, tmp_path: Path) -> None:
    often, asked, log = tmp_path / "often", tmp_path / "asked", tmp_path / "serve.log"
    often.mkdir()
    asked.mkdir()
    heartbeat_at_once: dict[str, Any] = {**ZOMBIE_RUNS, "trigger": {**ZOMBIE_RUNS["trigger"], "within": 10}}
    with use_prefect(prefect_url), get_client(sync_client=True) as client, serving(prefect_url, often, log) as runner:

        def state(run: FlowRun) -> str:
            return client.read_flow_run(run.id).state_name or ""

        lost = client.create_flow_run(Flow(lambda: None, name="lost"), state=Running())
        heartbeat_at_once["trigger"]["match"] = {"prefect.resource.id": [f"prefect.flow-run.{lost.id}"]}
        automation_id = client.create_automation(AutomationCore.model_validate(heartbeat_at_once))
        time.sleep(1)
        assert tell("prefect.flow-run.heartbeat", f"prefect.flow-run.{lost.id}", {})

        wait_for(lambda: len([*often.glob("*.step")]) == STEPS, runner, log)
        served = client.read_deployment_by_name("count/often")
        client.update_deployment_schedule(served.id, served.schedules[0].id, active=False)
        killed = ask(client, asked, 0.5)
        wait_for(lambda: [*asked.glob("*.step")], runner, log)
        os.kill(int((asked / "process-id").read_text()), signal.SIGKILL)
        wait_for(lambda: state(killed) == "Crashed", runner, log)
        done = {each.name: each.read_text() for each in asked.glob("*.step")}
        assert 0 < len(done) < STEPS
        following = ask(client, asked, 0.0)
        wait_for(lambda: state(following) == "Completed", runner, log)
        after = {each.name: each.read_text() for each in asked.glob("*.step")}
        assert len(after) == STEPS
        assert done.items() <= after.items()  # what the killed run did was not done again
        wait_for(lambda: state(lost) == "Crashed", runner, log)
        client.delete_automation(automation_id)


@pytest.mark.timeout(240)
def test_what_runs_while_the_prefect_server_dies_is_done_by_the_end_of_the_next_run(tmp_path: Path) -> None:
    instruments = tuple(f"i{number}" for number in range(5))
    store = open_site(tmp_path / "data", instruments=instruments)
    for number, instrument in enumerate(instruments):
        ingest_telegrams(store, *range(10 * number + 1, 10 * number + 11), instrument=instrument)
    (tmp_path / "prefect").mkdir()
    server = PrefectServer(tmp_path / "prefect")
    server.start()
    environment = {
        **os.environ,
        "PREFECT_API_URL": server.url,
        "PREFECT_HOME": str(tmp_path / "home"),
        "FIELDPOST_DATA_FOLDER": str(tmp_path / "data"),
    }
    command = [sys.executable, "-m", "flows", "archive", "--first-day", str(DAY), "--last-day", str(DAY)]
    try:
        with (tmp_path / "run.log").open("wb") as log:
            run = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: recorded(store), run, tmp_path / "run.log")
        server.kill()
        before = recorded(store)
        assert 0 < len(before) < len(instruments)
        server.start()
        run.wait(120)
        following = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert following.returncode == 0, following.stdout + following.stderr
    finally:
        server.stop()
    after = recorded(store)
    store.close()
    assert after == sorted((f"lindenberg/{each}/2025/{DAY}.v1", 1) for each in instruments)  # each once, none twice
