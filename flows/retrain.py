"""The retrain flow: a new version from the network's own days, compared with the active one, activated where better.

A table of contents: what is done stands in the files that it names. A run that was ended is taken up where it was.
"""

from __future__ import annotations

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from fieldpost.errors import BrokenStateError
from flows.archive import due_day
from flows.archiving.picture import shrink
from flows.progress import Progress
from flows.retraining.decision import Decision
from flows.retraining.folder import finish
from flows.retraining.parameters import RetrainParams
from flows.retraining.report import to_day_rows, to_markdown, to_rows, to_text
from flows.retraining.run import RetrainRun
from flows.retraining.stations import convert, offer
from flows.retraining.versions import open_retrain, promote, register
from server.analyses.retraining import DayScore
from server.workers.jobs import ModelKey

USUAL = RetrainParams()
PICTURE_BYTES_MAX = 95_000
"""Two of them lie in one artifact, in Prefect's database."""


def name_run() -> str:
    """What the run is called on Prefect's page."""
    return f"retrain {due_day()}"


@flow(name="retrain", flow_run_name=name_run)
def retrain(params: RetrainParams = USUAL) -> None:
    """Trains a version on days like the network's, and activates it where it is better beyond noise.

    Whatever is decided, the version is registered with all that is known of it, and the artifacts say why.
    """
    with open_retrain(params, due_day()) as run:
        look_at_days(run)
        train(run)
        decision = run.decide(evaluate(run))
        key, outcome = settle(run, decision)
        files = export(run)
        tell(run, decision, key, outcome, files)
        if outcome == "active" and params.offer_to:
            offer_to_stations(params)
        run.clean()
        finish(run.folder, str(key.version))


@task(cache_policy=NO_CACHE)
def look_at_days(run: RetrainRun) -> None:
    """Describes the network's days, and makes of them what is trained on."""
    days = run.describe_days()
    get_run_logger().info("%d instrument-days of the network looked at", len(days))
    create_table_artifact(to_day_rows(days), key="retrain-days", description="The network's days, in numbers")
    run.prepare()


@task(cache_policy=NO_CACHE)
def train(run: RetrainRun) -> None:
    """Trains in processes of their own; what they write is in this run's log."""
    logger, progress = get_run_logger(), Progress("retrain-training", "The training")

    def on_line(line: str) -> None:
        logger.info("%s", line)
        share = run.hooks.read_progress(line)
        if share is not None:
            progress(share)

    run.train(on_line)


@task(cache_policy=NO_CACHE)
def evaluate(run: RetrainRun) -> list[DayScore]:
    """Scores the trained and the active version on held-out days."""
    return run.evaluate(Progress("retrain-comparison", "The comparison on held-out days"))


@task(cache_policy=NO_CACHE)
def settle(run: RetrainRun, decision: Decision) -> tuple[ModelKey, str]:
    """Registers the version, and activates it where that was decided."""
    key = register(run, decision)
    outcome = promote(run, key, decision)
    get_run_logger().info("%s", to_text(decision, key, run.parent, outcome))
    return key, outcome


@task(cache_policy=NO_CACHE)
def export(run: RetrainRun) -> list[str]:
    """Exports the network for other runtimes; returns in words what there is."""
    onnx = run.export_onnx()
    return [f"ONNX: {onnx.name}, {onnx.stat().st_size} bytes", convert(run, get_run_logger().info)]


@task(cache_policy=NO_CACHE)
def tell(run: RetrainRun, decision: Decision, key: ModelKey, outcome: str, files: list[str]) -> None:
    """Keeps the scores, the decision and the pictures as artifacts."""
    create_table_artifact(to_rows(decision), key="retrain-scores", description=f"{run.parent} and {key}")
    pictures = [(title, shrink(png, PICTURE_BYTES_MAX)) for title, png in run.draw()]
    page = to_markdown(to_text(decision, key, run.parent, outcome), key, files, pictures)
    create_markdown_artifact(page, key="retrain", description=f"{key}: {outcome}")


@task(cache_policy=NO_CACHE)
def offer_to_stations(params: RetrainParams) -> None:
    """Asks the stations to take the model package; one that refuses does not keep the others."""
    refusals = offer(params, get_run_logger().info)
    if refusals:
        raise BrokenStateError(f"{len(refusals)} of {len(params.offer_to)} stations did not: {'; '.join(refusals)}")
