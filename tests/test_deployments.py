"""The catalogue of deployments, and what becomes of one that an upgrade and an operator both changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from deployed_flows import define
from hypothesis import given
from hypothesis import strategies as st
from prefect.settings.models.root import Settings
from prefect.types import MAX_VARIABLE_VALUE_LENGTH
from pydantic import BaseModel, ConfigDict, Field

from flows.deployments.catalogue import CATALOGUE, DeploymentDefinition, to_prefect_yaml
from flows.deployments.loading import load_flow, load_params
from flows.deployments.merging import ABSENT, list_changes, merge, merge_mappings
from flows.deployments.standing import fit, say_code

ROOT = Path(__file__).resolve().parent.parent

values = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.lists(st.integers(0, 2), max_size=2))
trees = st.recursive(values, lambda each: st.dictionaries(st.sampled_from("abc"), each, max_size=3), max_leaves=8)
SCHEDULED, PAUSED = {"s": {"rule": "x", "active": True}}, {"s": {"rule": "x", "active": False}}

mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(mappings, mappings)
def test_what_nobody_touched_follows_the_code(base: dict[str, Any], code: dict[str, Any]) -> None:
    assert merge(base, base, code) == code


@given(mappings, mappings)
def test_without_an_upgrade_all_stays_as_it_is_live(live: dict[str, Any], code: dict[str, Any]) -> None:
    assert merge(code, live, code) == live


@given(mappings, mappings, mappings)
def test_merging_twice_changes_nothing_more(base: dict[str, Any], live: dict[str, Any], code: dict[str, Any]) -> None:
    once = merge_mappings(base, live, code)
    assert merge_mappings(code, once, code) == once


@given(mappings, mappings)
def test_of_what_is_live_nothing_is_lost_where_nothing_is_known(live: dict[str, Any], code: dict[str, Any]) -> None:
    merged = merge_mappings(ABSENT, live, code)
    assert {*merged} == {*live, *code}
    assert all(merged[name] == live[name] for name in live if not isinstance(live[name], dict))


@pytest.mark.parametrize(
    ("base", "live", "code", "merged"),
    [
        ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": 5}, {"a": 2}, {"a": 5}),
        ({"a": 1}, {"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 1, "mine": 3}, {"a": 2}, {"a": 2, "mine": 3}),
        ({"a": 1, "b": 1}, {"b": 1}, {"a": 2, "b": 2}, {"b": 2}),
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": 1}, {"a": 1, "b": 7}, {"a": 1}, {"a": 1, "b": 7}),
        (SCHEDULED, PAUSED, {}, PAUSED),
        (SCHEDULED, PAUSED, {"s": {"rule": "y", "active": True}}, {"s": {"rule": "y", "active": False}}),
    ],
    ids=[
        "code-changed-it", "both-changed-it", "code-added-it", "operator-added-it", "operator-deleted-it",
        "code-dropped-it", "code-dropped-what-the-operator-changed", "a-paused-schedule-that-the-code-dropped-is-whole",
        "each-changed-another-field",
    ],
)  # fmt: skip
def test_each_keeps_what_only_they_changed(base: Any, live: Any, code: Any, merged: Any) -> None:
    assert merge(base, live, code) == merged


def test_changes_are_named_by_their_place() -> None:
    code = {"paused": False, "schedules": {"nightly": {"rule": "a", "active": True}}, "tags": {"archive": True}}
    merged = {"paused": True, "schedules": {"nightly": {"rule": "b", "active": True}}, "tags": {}}
    assert list_changes(code, merged) == ["paused", "schedules.nightly.rule", "tags.archive"]


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    days: int = Field(default=1, ge=1, le=30)
    mode: Literal["all", "new"] = "all"


@pytest.mark.parametrize(
    ("given_params", "fitted", "given_up"),
    [
        ({"days": 7, "mode": "new"}, {"days": 7, "mode": "new"}, []),
        ({"days": 365, "mode": "new"}, {"days": 14, "mode": "new"}, ["days"]),
        ({"mode": "new"}, {"mode": "new"}, []),
        ({"days": 7, "mode": "some", "gone": 3}, {"days": 7}, ["gone", "mode"]),
    ],
)
def test_parameters_that_an_upgrade_no_longer_takes_are_given_up_and_named(
    given_params: dict[str, Any], fitted: dict[str, Any], given_up: list[str]
) -> None:
    assert fit(_Params, given_params, {"days": 14}) == (fitted, given_up)


def test_prefect_yaml_says_what_the_catalogue_says() -> None:
    file = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())
    assert file["deployments"] == [to_prefect_yaml(each) for each in CATALOGUE]
    assert file["pull"] == []


@pytest.mark.parametrize("definition", CATALOGUE, ids=lambda each: each.full_name)
def test_every_entrypoint_is_a_flow_that_takes_its_parameters(definition: DeploymentDefinition) -> None:
    flow = load_flow(definition)
    assert flow.name == definition.flow
    assert [*flow.parameters.properties] == ["params"]
    given_params = say_code(definition, "UTC", to_pool=False)["parameters"].get("params", {})
    assert fit(load_params(definition), given_params, {}) == (given_params, [])


@pytest.mark.parametrize("definition", CATALOGUE, ids=lambda each: each.full_name)
def test_every_question_of_a_form_says_what_it_asks(definition: DeploymentDefinition) -> None:
    model = load_params(definition)
    assert model.__doc__
    assert [*model.model_fields] == sorted(model.model_fields, key=lambda name: _position(model, name))
    for name, field in model.model_fields.items():
        assert field.title and field.description, name
        schema = model.model_json_schema()["properties"][name]
        kinds = {each.get("type") for each in schema.get("anyOf", [schema])}
        if kinds & {"integer", "number"}:
            bounded = next(each for each in schema.get("anyOf", [schema]) if each.get("type") in {"integer", "number"})
            assert {"minimum", "exclusiveMinimum"} & set(bounded) and {"maximum", "exclusiveMaximum"} & set(bounded), (
                name
            )


def _position(model: type[BaseModel], name: str) -> int:
    extra = model.model_fields[name].json_schema_extra
    assert isinstance(extra, dict), name
    position = extra["position"]
    assert isinstance(position, int)
    return position


@pytest.mark.parametrize("definition", CATALOGUE, ids=lambda each: each.full_name)
def test_a_description_tells_what_a_run_changes_takes_and_leaves(definition: DeploymentDefinition) -> None:
    for heading in ("**Changes:**", "**By itself:**", "**Takes:**", "**Look at afterwards:**"):
        assert heading in definition.description
    assert ("never" in definition.description.partition("**By itself:**")[2][:10]) == (not definition.schedules)


def test_what_is_remembered_of_a_deployment_fits_into_a_variable() -> None:
    for each in [*CATALOGUE, define()]:
        assert (
            len(json.dumps(say_code(each, "America/Argentina/Buenos_Aires", to_pool=True))) < MAX_VARIABLE_VALUE_LENGTH
        )


def test_schedules_are_in_the_time_zone_of_the_network() -> None:
    for each in CATALOGUE:
        for rule in say_code(each, "Europe/Berlin", to_pool=False)["schedules"].values():
            assert json.loads(rule["rule"])["timezone"] == "Europe/Berlin"


def test_prefect_reads_our_settings_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT / "deploy")
    settings = Settings()
    assert settings.api.url == "http://127.0.0.1:4200/api"
    assert set(settings.logging.extra_loggers or []) == {"fieldpost", "server", "flows"}
    assert (settings.server.analytics_enabled, settings.server.ui.v2_enabled) == (False, False)
    assert settings.server.ui.api_url == "/api"
    assert settings.runner.poll_frequency == 2
    assert settings.server.services.db_vacuum.enabled == {"events", "flow_runs"}
