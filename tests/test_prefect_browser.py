"""What a person sees of Prefect's page, in a real browser: every form, a run started from one, and its artifacts.

FIELDPOST_SCREENSHOTS names a folder for the pictures, to be looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from archive_support import DAY, ingest_all, open_site, predict, recorded
from conftest import skip_or_fail
from playwright.sync_api import Page, expect, sync_playwright
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactCollectionFilter,
    ArtifactCollectionFilterKey,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from server_support import START_NANOS, make_observation

from fieldpost.simulation import SimulatedCl51
from flows.deployments.catalogue import ARCHIVE, CATALOGUE, DeploymentDefinition
from flows.deployments.loading import load_params
from flows.deployments.memory import PREFIX

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_S = 60.0
READ_FORM = """
() => [...document.querySelectorAll('.schema-form-properties .schema-form-properties > .schema-form-property')].map(
  each => {
    const body = each.querySelector(':scope > .p-label__body');
    const has = name => body.querySelector(name) !== null;
    const text = name => (each.querySelector(name)?.innerText ?? '').trim();
    const types = [...body.querySelectorAll(':scope > .p-button-group button')].map(type => type.innerText);
    return {
      title: text('.schema-form-property__label').replace(' (Optional)', ''),
      description: text('.p-label__description'),
      kind: types.length ? 'or nothing'
        : has('.p-toggle') ? 'switch'
        : has('.p-date-input') ? 'day'
        : has('.p-number-input') ? 'number'
        : has('.p-select') ? 'choice'
        : has('textarea') ? 'text' : 'several'
    };
  }
)
"""


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Telegrams of a simulated CL51, and their predictions."""
    folder = tmp_path_factory.mktemp("browser") / "data"
    instrument = SimulatedCl51(seed=5)
    store = open_site(folder)
    contents = [instrument.telegram(START_NANOS / 1e9 + 15 * each) for each in range(1, 13)]
    ingest_all(store, [make_observation(place, content) for place, content in enumerate(contents, 1)])
    predict(store, *range(1, 13))
    store.close()
    return folder


@pytest.fixture(scope="module")
def client(prefect_url: str, prefect_limits: None, data_folder: Path) -> Iterator[SyncPrefectClient]:
    """A server whose deployments `python -m flows serve` runs, with the server's settings in its environment."""
    from prefect_support import use_prefect

    home = data_folder.parent
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_url,
        "PREFECT_HOME": str(home / "home"),
        "DO_NOT_TRACK": "1",
        "FIELDPOST_DATA_FOLDER": str(data_folder),
        "FIELDPOST_TIME_ZONE": "Europe/Berlin",
    }
    command = [sys.executable, "-m", "flows", "serve"]
    with (home / "serve.log").open("wb") as log:
        runner = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    with use_prefect(prefect_url), get_client(sync_client=True) as client:
        wait_until_served(client, home / "serve.log")
        yield client
        runner.terminate()
        runner.wait(60)
        for each in CATALOGUE:
            client.delete_deployment(client.read_deployment_by_name(each.full_name).id)
            client.delete_variable_by_name(f"{PREFIX}deployment-{each.flow}-{each.name}")


@pytest.fixture(scope="module")
def page(client: SyncPrefectClient) -> Iterator[Page]:
    """A tab of a real Chromium; whatever it asks for lies on this machine."""
    if CHROMIUM is None:
        skip_or_fail("Chromium is not installed (make chromium)")
    asked: list[str] = []
    failed: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 1400})
        tab.set_default_timeout(1000 * PATIENCE_S)
        expect.set_options(timeout=1000 * PATIENCE_S)
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("requestfailed", lambda request: failed.append(f"{request.url}: {request.failure}"))
        yield tab
        browser.close()
    addresses = {url.removeprefix("blob:") for url in asked if not url.startswith("data:")}
    elsewhere = {url for url in addresses if urlsplit(url).hostname != "127.0.0.1"}
    assert asked
    assert not elsewhere
    assert not [each for each in failed if "ERR_ABORTED" not in each]  # aborted: the page was left before it came


def wait_until_served(client: SyncPrefectClient, log: Path) -> None:
    """The last of the catalogue comes last."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            client.read_deployment_by_name(CATALOGUE[-1].full_name)
            return
        except ObjectNotFound:
            time.sleep(0.2)
    pytest.fail(f"nothing is served: {log.read_text()[-3000:]}")


def base(client: SyncPrefectClient) -> str:
    return str(client.api_url).removesuffix("/").removesuffix("/api")


def keep(page: Page, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("FIELDPOST_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def open_form(page: Page, client: SyncPrefectClient, definition: DeploymentDefinition) -> None:
    deployment = client.read_deployment_by_name(definition.full_name)
    page.goto(f"{base(client)}/deployments/deployment/{deployment.id}/run", wait_until="commit")
    page.get_by_text("Validate parameters").wait_for()


def describe(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, str]:
    """What is to be drawn of a question, from its JSON schema."""
    of_type = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    kinds = {"boolean": "switch", "integer": "number", "number": "number", "array": "several", "string": "text"}
    kind = "choice" if "enum" in of_type else kinds.get(str(of_type.get("type")), "or nothing")
    if of_type.get("format") == "date":
        kind = "day"
    return {"title": schema["title"], "description": schema["description"].replace("`", ""), "kind": kind}


@pytest.mark.timeout(240)
def test_every_form_is_drawn_as_its_parameters_say(client: SyncPrefectClient, page: Page, tmp_path: Path) -> None:
    for definition in CATALOGUE:
        open_form(page, client, definition)
        schema = load_params(definition).model_json_schema()
        expected = [describe(each, schema.get("$defs", {})) for each in schema["properties"].values()]
        deadline_s = time.monotonic() + 10.0
        while (drawn := page.evaluate(READ_FORM)) != expected and time.monotonic() < deadline_s:
            page.wait_for_timeout(50)  # descriptions are drawn one by one
        assert drawn == expected, definition.full_name
        keep(page, f"form-{definition.flow}", tmp_path)


@pytest.mark.timeout(240)
def test_a_run_is_started_from_its_form_and_shows_its_table_and_picture(
    client: SyncPrefectClient, page: Page, data_folder: Path, tmp_path: Path
) -> None:
    open_form(page, client, ARCHIVE)
    look_back = page.locator("input[type=number]").first
    look_back.fill("99999")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text(re.compile("less than or equal to|maximum", re.IGNORECASE)).first).to_be_visible()
    keep(page, "form-archive-refused", tmp_path)
    look_back.fill("3000")  # reaches the day that the store has
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile("/runs/flow-run/|/deployments/deployment/[^/]+$"))
    keep(page, "submitted", tmp_path)
    run_id = find_run(client)
    page.goto(f"{base(client)}/runs/flow-run/{run_id}", wait_until="commit")
    expect(page.locator(".p-tag, .state-badge").filter(has_text=re.compile("^Completed$")).first).to_be_visible()
    keep(page, "run", tmp_path)
    show_artifact(page, client, "archive")
    for words in (f"{DAY}", "archived", "verified hashes"):
        expect(page.get_by_text(words).first).to_be_visible()
    keep(page, "artifact-table", tmp_path)
    show_artifact(page, client, f"archive-lindenberg-cl51-{DAY}-boundary-layer-height")
    picture = page.locator("img[src^='data:image/png']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300
    keep(page, "artifact-picture", tmp_path)
    store = open_site(data_folder)
    assert recorded(store) == [(f"lindenberg/cl51/2025/{DAY}.v1", 1)]
    store.close()


def find_run(client: SyncPrefectClient) -> str:
    """The run that was started from the form."""
    deployment = client.read_deployment_by_name(ARCHIVE.full_name)
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return str(runs[0].id)


def show_artifact(page: Page, client: SyncPrefectClient, key: str) -> None:
    """Opens the newest artifact of a key."""
    (artifact,) = client.read_latest_artifacts(
        artifact_filter=ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[key]))
    )
    page.goto(f"{base(client)}/artifacts/artifact/{artifact.latest_id}", wait_until="commit")
    page.get_by_text(key).first.wait_for()
