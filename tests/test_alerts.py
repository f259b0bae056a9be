"""What is told when something goes wrong: Prometheus' rules over metrics that exist, and Prefect's automations."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from server_support import EPOCH, make_observation, open_store
from sqlalchemy import delete, insert, update
from whole_support import until

from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import station_pb2
from flows.deployments.automations import EXAMPLES, ZOMBIE_RUNS
from flows.events import tell
from server.ingest.core import Ingest
from server.operation.readings import read_archive, read_gaps, read_stations
from server.storage.store import Store
from server.storage.tables import bags, observations, stations
from server.telemetry.metrics import METRICS, PREFIX

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "prometheus" / "fieldpost.rules.yml"
AUTOMATIONS = ROOT / "deploy" / "automations.yaml"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


# --- Prometheus ---


def test_every_alert_stands_on_metrics_of_the_server_and_on_their_labels() -> None:
    labels_by_metric = {PREFIX + each.name: set(each.labels) for each in METRICS}
    for rule in rules():
        named = re.findall(r"fieldpost_\w+", rule["expr"])
        assert named and set(named) <= set(labels_by_metric), rule["alert"]
        texts = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", texts)) <= labels_by_metric[named[0]], rule["alert"]
        assert {"summary", "description"} == set(rule["annotations"])


def test_every_alert_has_a_name_of_its_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 7


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_itself_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    desk = Ingest(opened, payload_bytes_max=2**25, on_stored=lambda: None)
    desk.submit(pb.Bundle(observations=[make_observation(each) for each in range(1, 11)])).result(10)
    desk.close()
    status = station_pb2.StationStatus(epoch=EPOCH, is_online=True, last_sequence=12, backlog_count=2)
    values = {"status": status.SerializeToString(), "status_unix_nanos": time.time_ns() - 60 * 10**9}
    opened.write(lambda connection: connection.execute(update(stations).values(**values))).result(10)
    yield opened
    opened.close()


def test_the_server_says_how_each_station_is(store: Store) -> None:
    said = {name: list(samples) for name, samples in read_stations(store)().items()}
    assert said["station_backlog_observations"] == [(("lindenberg",), 2)]
    ((labels, age_s),) = said["station_last_seen_seconds"]
    assert (labels, 60 <= age_s < 90) == (("lindenberg",), True)
    ((labels, age_s),) = said["instrument_last_measured_seconds"]
    assert (labels, age_s > 0) == (("lindenberg", "cl51"), True)


def test_the_server_counts_what_is_missing_a_bounded_piece_at_each_visit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.operation.readings.SEQUENCES_PER_VISIT", 5)
    gone = observations.c.sequence.in_([3, 8])
    store.write(lambda connection: connection.execute(delete(observations).where(gone))).result(10)
    read = read_gaps(store)
    counts = [next(iter(read()["station_gap_observations"]))[1] for _ in range(4)]
    assert counts == [0, 0, 2, 2], "3 and 8 are missing; 11 and 12 are on their way"


def test_the_server_says_how_the_archive_stands(store: Store) -> None:
    assert read_archive(store)() == {"archive_days_without_bag": [((), 0)], "archive_damaged_bags": [((), 0)]}
    row = {"instrument_id": 1, "day": "2025-06-15", "version": 1, "path": "a", "manifest_sha256": "b"}
    row |= {"observation_count": 1, "prediction_count": 0, "archive_unix_nanos": time.time_ns(), "damage": "a bit"}
    store.write(lambda connection: connection.execute(insert(bags).values(**row))).result(10)
    said = read_archive(store)()
    assert list(said["archive_damaged_bags"]) == [((), 1)]
    ((_, age_s),) = said["archive_newest_bag_seconds"]
    assert 0 <= age_s < 60


# --- Prefect ---


def test_the_file_of_automations_holds_what_the_code_says_and_prefect_can_read_it() -> None:
    listed = yaml.safe_load(AUTOMATIONS.read_text())["automations"]
    assert listed == [ZOMBIE_RUNS, *EXAMPLES]
    for each in listed:
        AutomationCore.model_validate(each)


def test_every_event_that_we_tell_of_is_in_an_example() -> None:
    told = set()
    for path in set((ROOT / "flows").rglob("*.py")) - {ROOT / "flows" / "deployments" / "automations.py"}:
        told |= set(re.findall(r'"(fieldpost\.[a-z]+\.[a-z]+|fieldpost\.drift)"', path.read_text()))
    expected = {event for each in EXAMPLES for event in each["trigger"]["expect"]}
    assert told == expected | {"fieldpost.drift"}


@flow(name="retrain-in-a-test")
def tiny() -> None:
    """Never run here: that a run of it is scheduled is what is looked for."""


def test_an_event_starts_a_run(prefect_api: str) -> None:
    analysis = f"fieldpost.analysis.{uuid4()}"
    trigger = DeploymentEventTrigger(expect={"fieldpost.drift"}, match={"prefect.resource.id": analysis})
    deployment_id = RunnerDeployment.from_flow(tiny, name=str(uuid4()), triggers=[trigger]).apply()
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
    with get_client(sync_client=True) as client:

        def is_told_and_started() -> bool:
            # The trigger is loaded a moment after it was made: what was told before that is not heard.
            assert tell("fieldpost.drift", analysis, {"analysis": "boundary-layer-height"})
            time.sleep(0.5)
            return bool(client.read_flow_runs(deployment_filter=mine))

        until(is_told_and_started, 20)
        client.delete_deployment(deployment_id)


def test_a_prefect_server_that_is_away_costs_the_event_and_nothing_else(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port}/api"}):
        assert not tell("fieldpost.drift", "fieldpost.analysis.none", {})
    with temporary_settings({PREFECT_API_URL: None}):
        assert not tell("fieldpost.drift", "fieldpost.analysis.none", {})
    assert caplog.text.count("events not told") == 2
