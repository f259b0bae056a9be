"""Brings the catalogue to a Prefect server: `serve` runs what is due itself, `deploy` leaves that to workers.

Knows nothing of the flows but where they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import TerminationSignal
from prefect.runner import Runner

from fieldpost.errors import InvalidRequestError
from flows.deployments.bootstrap import make_automations, make_limits, make_pools
from flows.deployments.catalogue import DeploymentDefinition
from flows.deployments.registering import register

logger = logging.getLogger(__name__)

POLL_S = 2
EVERYTHING = "all"
RUNS_EXTRA = 8
"""Room for runs beyond one of each deployment, where an operator has raised a limit."""


def serve(catalogue: Sequence[DeploymentDefinition], *, time_zone: str, resets: Collection[str] = ()) -> None:
    """Registers the deployments and runs them until SIGTERM or SIGINT, which end their runs too.

    There is room for a run of every deployment at once: a backfill of many hours never keeps the archive waiting.

    Args:
        catalogue: What to serve.
        time_zone: IANA name: where schedules are due.
        resets: Names of deployments that go back to the code, or `all`.
    """
    runs_max = sum(each.concurrency_limit for each in catalogue) + RUNS_EXTRA
    runner = Runner(name="fieldpost", limit=runs_max, pause_on_shutdown=False, query_seconds=POLL_S)
    bring(catalogue, lambda each: _done(runner.add_deployment(each)), time_zone=time_zone, to_pool=False, resets=resets)
    try:
        asyncio.run(runner.start())
    except (KeyboardInterrupt, TerminationSignal):
        logger.info("ended; so are its runs")


def deploy(catalogue: Sequence[DeploymentDefinition], *, time_zone: str, resets: Collection[str] = ()) -> None:
    """The same for workers: makes their pools, registers the deployments, and returns."""
    with get_client(sync_client=True) as client:
        make_pools(client, sorted({each.work_pool for each in catalogue}))
    bring(catalogue, apply, time_zone=time_zone, to_pool=True, resets=resets)


def apply(deployment: RunnerDeployment) -> UUID:
    """Registers one deployment; returns its id."""
    return _done(deployment.apply())


def bring(
    catalogue: Sequence[DeploymentDefinition],
    apply: Callable[[RunnerDeployment], UUID],
    *,
    time_zone: str,
    to_pool: bool,
    resets: Collection[str] = (),
) -> None:
    """Sees to all that a Prefect server has to know: limits, deployments, automations.

    Args:
        catalogue: What there is to be.
        apply: Hands one deployment to Prefect; returns its id.
        time_zone: IANA name: where schedules are due.
        to_pool: Whether workers run them.
        resets: Names of deployments that go back to the code, or `all`.

    Raises:
        InvalidRequestError: No deployment has a name that is to be reset.
    """
    names = {each.full_name for each in catalogue}
    if unknown := sorted(set(resets) - names - {EVERYTHING}):
        raise InvalidRequestError(
            f"expected a deployment to reset, one of {', '.join(sorted(names))}, but got {', '.join(unknown)}",
            hint="without a name, --reset is for all",
        )
    is_all = EVERYTHING in resets
    make_limits(is_reset=is_all)
    with get_client(sync_client=True) as client:
        found = [
            register(
                client,
                each,
                apply,
                time_zone=time_zone,
                to_pool=to_pool,
                is_reset=is_all or each.full_name in resets,
            )
            for each in catalogue
        ]
        make_automations(client, [each for each in found if each is not None], is_reset=is_all)


def _done(outcome: UUID | Coroutine[Any, Any, UUID]) -> UUID:
    """Prefect's functions answer at once, except where an event loop already runs."""
    assert isinstance(outcome, UUID)
    return outcome
