"""The backfill flow: any model version predicts any past range, beside live work, and is compared before it is active.

A table of contents: what is done stands in flows/backfilling. A run that was ended is run again, and goes on.
"""

from __future__ import annotations

from typing import Any

from prefect import State, Task, flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import exponential_backoff

from fieldpost.errors import BrokenStateError, RejectedError
from flows.backfilling.parameters import BackfillParams
from flows.backfilling.plan import Plan, find_version, make_plan
from flows.backfilling.report import (
    to_agreement_rows,
    to_markdown,
    to_picture_markdown,
    to_plan_page,
    to_plan_rows,
    to_plan_text,
    to_progress_text,
    to_rows,
)
from flows.backfilling.review import Review, begin_review
from flows.backfilling.run import Standing, carry_out
from flows.limits import array_write
from flows.progress import Progress
from flows.site import Site, open_site


def name_run() -> str:
    """What the run is called on Prefect's page."""
    params = BackfillParams.model_validate(runtime.flow_run.parameters["params"])
    return f"backfill {params.analysis}@{params.model_version}, {params.first_day} to {params.last_day}"


@flow(name="backfill", flow_run_name=name_run)
def backfill(params: BackfillParams) -> None:
    """Lets a model version predict a past range, and compares it with the active one.

    It computes with what live work leaves. Running it again is harmless: what is predicted already is left as it is.
    """
    params.check()
    with open_site(params.settings_file, is_repeatable=True) as site:
        plan = look(site, params)
        if params.dry_run:
            get_run_logger().info("a dry run: nothing was predicted")
            return
        review = begin_review(site, plan) if params.compare else None
        standing = predict(site, params, plan, review)
        tell(plan, standing, review)
        if standing.tally.unreadable_count:
            raise BrokenStateError(
                f"{standing.tally.unreadable_count} payloads could not be read; all others are predicted",
                hint="the log names them; run the scrub flow, restore what it finds, and run this again",
            )


def is_worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """A full disk or a busy database passes; damage and wrong parameters do not."""
    return not isinstance(state.result(raise_on_failure=False), RejectedError | BrokenStateError)


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=10, retry_condition_fn=is_worth_retrying)
def look(site: Site, params: BackfillParams) -> Plan:
    """Shows what there is to do before anything is done."""
    plan = make_plan(site, params, find_version(site, params.analysis, params.model_version))
    rows = to_plan_rows(plan)
    create_markdown_artifact(to_plan_page(plan, rows), key="backfill-plan", description="What there is to do")
    create_table_artifact(rows, key="backfill-pieces", description="The pieces of the range, and what waits in each")
    get_run_logger().info("%s", to_plan_text(plan))
    return plan


@task(
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=10),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
def predict(site: Site, params: BackfillParams, plan: Plan, review: Review | None) -> Standing:
    """Has everything predicted that waits; one that was interrupted looks anew at what is left."""
    if runtime.task_run.run_count > 1:
        plan = make_plan(site, params, plan.version)
    progress = Progress("backfill-progress", f"Backfill of {plan.version.card.key}")

    def on_progress(standing: Standing) -> None:
        progress(standing.share, to_progress_text(standing), left_s=standing.left_s)

    if review is None:
        return carry_out(site, params, plan, on_progress, turn=array_write)
    return carry_out(site, params, plan, on_progress, on_predicted=review.look, turn=array_write)


@task(cache_policy=NO_CACHE)
def tell(plan: Plan, standing: Standing, review: Review | None) -> None:
    """Keeps the counts, the comparison and the pictures as artifacts."""
    key = plan.version.card.key
    create_table_artifact(to_rows(plan, standing), key="backfill-counts", description=str(key))
    if review is not None:
        review.look([each.span for each in plan.planned if each.left_because and not each.is_archived])
        rows, active = to_agreement_rows(review.agreements), review.active.key
        create_table_artifact(rows, key="backfill-comparison", description=f"{key} minus {active}, which is active")
        for picture in review.pictures:
            name = f"backfill-{picture.day.station}-{picture.day.instrument}"
            page = to_picture_markdown(picture, key, active)
            create_markdown_artifact(page, key=name, description=f"{picture.day}: before and after")
    page = to_markdown(plan, standing, None if review is None else review.active.key)
    create_markdown_artifact(page, key="backfill", description=f"{key}, {plan.first_day} to {plan.last_day}")
