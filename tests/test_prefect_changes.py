"""What an operator changes at a real Prefect server survives restarts and upgrades, until it is reset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from deployed_flows import define
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound

from fieldpost.errors import InvalidRequestError
from flows.deployments.automations import ZOMBIE_RUNS
from flows.deployments.bootstrap import AUTOMATIONS, LIMITS
from flows.deployments.catalogue import DeploymentDefinition, Schedule
from flows.deployments.memory import PREFIX
from flows.deployments.serving import apply, bring, deploy
from flows.limits import ARRAY_WRITE, ARRAY_WRITES_MAX

BEFORE = define(event="fieldpost.drift")
AFTER = define(
    event="fieldpost.drift",
    description="Counts better.",
    schedules=(
        Schedule(slug="nightly", cron="45 1 * * *"),
        Schedule(slug="weekly", cron="0 4 * * 0"),
        Schedule(slug="monthly", cron="0 5 1 * *"),
    ),
    parameters={"params": {"late_days": 60, "step_s": 0.5}},
    tags=("counting", "better"),
    concurrency_limit=2,
)
ON_DRIFT = "count/nightly on fieldpost.drift"


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    """The client of a server that has none of our deployments."""
    with get_client(sync_client=True) as client:
        yield client
        for name in [f"{PREFIX}deployment-count-nightly", PREFIX + LIMITS, PREFIX + AUTOMATIONS]:
            if client.read_variable_by_name(name) is not None:
                client.delete_variable_by_name(name)
        for name in [ON_DRIFT, ZOMBIE_RUNS["name"]]:
            for each in client.read_automations_by_name(name):
                client.delete_automation(each.id)
        client.upsert_global_concurrency_limit_by_name(ARRAY_WRITE, ARRAY_WRITES_MAX)
        with suppress(ObjectNotFound):
            client.delete_deployment(client.read_deployment_by_name("count/nightly").id)


def register(definition: DeploymentDefinition, *resets: str, time_zone: str = "UTC") -> None:
    bring([definition], apply, time_zone=time_zone, to_pool=False, resets=resets)


def read(client: SyncPrefectClient) -> DeploymentResponse:
    return client.read_deployment_by_name("count/nightly")


def read_times(deployment: DeploymentResponse) -> dict[str | None, tuple[str, bool]]:
    return {each.slug: (getattr(each.schedule, "cron", ""), bool(each.active)) for each in deployment.schedules}


def test_what_nobody_touched_follows_an_upgrade(client: SyncPrefectClient) -> None:
    register(BEFORE)
    register(AFTER, time_zone="Europe/Berlin")
    after = read(client)
    assert (after.description, sorted(after.tags)) == ("Counts better.", ["better", "counting"])
    assert after.parameters == {"params": {"late_days": 60, "step_s": 0.5}}
    assert read_times(after) == {
        "nightly": ("45 1 * * *", True),
        "weekly": ("0 4 * * 0", True),
        "monthly": ("0 5 1 * *", True),
    }
    assert {each.schedule.timezone for each in after.schedules if not hasattr(each.schedule, "rrule")} == {
        "Europe/Berlin"
    }
    assert after.global_concurrency_limit is not None and after.global_concurrency_limit.limit == 2
    register(BEFORE)
    assert set(read_times(read(client))) == {"nightly", "weekly"}  # what the code dropped goes


def test_everything_that_an_operator_changed_survives_a_restart_and_an_upgrade(client: SyncPrefectClient) -> None:
    register(BEFORE)
    deployment = read(client)
    nightly, weekly = sorted(deployment.schedules, key=lambda each: str(each.slug))
    client.update_deployment(
        deployment.id,
        DeploymentUpdate(
            description="Mine.",
            tags=["mine"],
            paused=True,
            parameters={"params": {"late_days": 7}},
            concurrency_limit=3,
            concurrency_options=ConcurrencyOptions(collision_strategy="CANCEL_NEW"),
        ),
    )
    client.update_deployment_schedule(
        deployment.id, nightly.id, active=False, schedule=CronSchedule(cron="5 4 * * *", timezone="Europe/Berlin")
    )
    client.delete_deployment_schedule(deployment.id, weekly.id)
    hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=3600), parameters={"params": {"late_days": 1}})
    client.create_deployment_schedules(deployment.id, [hourly])
    for definition in (BEFORE, AFTER, AFTER):
        register(definition)
    after = read(client)
    assert (after.description, after.paused) == ("Mine.", True)
    assert sorted(after.tags) == ["better", "mine"]  # counting was taken away, better is new
    assert after.parameters == {"params": {"late_days": 7, "step_s": 0.5}}
    assert after.global_concurrency_limit is not None and after.global_concurrency_limit.limit == 3
    assert after.concurrency_options is not None and after.concurrency_options.collision_strategy == "CANCEL_NEW"
    times = read_times(after)
    assert times.pop("nightly") == ("5 4 * * *", False)
    assert times.pop("monthly") == ("0 5 1 * *", True)
    ((added, (_, is_active)),) = times.items()
    assert added is not None and added.startswith("added-") and is_active
    (own,) = (each for each in after.schedules if each.slug == added)
    assert isinstance(own.schedule, IntervalSchedule) and own.schedule.interval.total_seconds() == 3600
    assert own.parameters == {"params": {"late_days": 1}}
    register(AFTER, "count/nightly")
    reset = read(client)
    assert (reset.description, reset.paused, sorted(reset.tags)) == ("Counts better.", False, ["better", "counting"])
    assert set(read_times(reset)) == {"nightly", "weekly", "monthly"}


def test_what_an_operator_deleted_stays_deleted_until_it_is_reset(
    client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    register(BEFORE)
    (zombies,) = client.read_automations_by_name(ZOMBIE_RUNS["name"])
    (on_drift,) = client.read_automations_by_name(ON_DRIFT)
    client.delete_automation(zombies.id)
    client.pause_automation(on_drift.id)
    client.delete_global_concurrency_limit_by_name(ARRAY_WRITE)
    register(AFTER)
    assert client.read_automations_by_name(ZOMBIE_RUNS["name"]) == []
    (paused,) = client.read_automations_by_name(ON_DRIFT)
    assert (paused.id, paused.enabled) == (on_drift.id, False)
    with pytest.raises(ObjectNotFound):
        client.read_global_concurrency_limit_by_name(ARRAY_WRITE)
    client.delete_deployment(read(client).id)
    register(AFTER)
    with pytest.raises(ObjectNotFound):
        read(client)
    assert "deleted at the Prefect server" in caplog.text
    register(AFTER, "all")
    assert set(read_times(read(client))) == {"nightly", "weekly", "monthly"}
    assert client.read_automations_by_name(ZOMBIE_RUNS["name"])[0].enabled
    assert client.read_automations_by_name(ON_DRIFT)[0].enabled
    assert client.read_global_concurrency_limit_by_name(ARRAY_WRITE).limit == ARRAY_WRITES_MAX


def test_an_event_starts_the_deployment_that_waits_for_it(client: SyncPrefectClient) -> None:
    register(BEFORE)
    (automation,) = client.read_automations_by_name(ON_DRIFT)
    assert automation.owner_resource is None
    (action,) = automation.actions
    assert getattr(action, "deployment_id", None) == read(client).id


def test_workers_get_pools_and_the_pool_that_an_operator_chose_stays(client: SyncPrefectClient) -> None:
    deploy([BEFORE], time_zone="UTC")
    deployment = read(client)
    assert (deployment.work_pool_name, deployment.path, deployment.pull_steps) == ("cpu", None, [])
    assert client.read_work_pool("cpu").type == "process"
    deploy([define(work_pool="gpu")], time_zone="UTC")
    assert read(client).work_pool_name == "gpu"
    client.update_deployment(deployment.id, DeploymentUpdate(work_pool_name="cpu", tags=deployment.tags))
    deploy([define(work_pool="gpu", description="Newer.")], time_zone="UTC")
    after = read(client)
    assert (after.work_pool_name, after.description) == ("cpu", "Newer.")
    register(BEFORE)
    assert read(client).work_pool_name is None  # serve runs it itself


def test_a_deployment_that_is_none_cannot_be_reset(prefect_api: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"one of count/nightly, but got archive/daily"):
        register(BEFORE, "archive/daily")


def test_parameters_set_on_the_page_that_the_form_no_longer_has_do_not_keep_an_upgrade(
    client: SyncPrefectClient,
) -> None:
    register(BEFORE)
    deployment: Any = read(client)
    client.update_deployment(
        deployment.id,
        DeploymentUpdate(
            parameters={"params": {"late_days": -4, "step_s": 0.25}}, enforce_parameter_schema=False, tags=[]
        ),
    )
    register(AFTER)
    assert read(client).parameters == {"params": {"late_days": 60, "step_s": 0.25}}
