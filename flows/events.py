"""Tells Prefect that something happened, so that automations can act on it and the event feed shows it.

An event is news, never the truth: what it is about is recorded elsewhere, and work goes on where Prefect's server does
not answer. It deliberately knows none of the events.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import httpx
from prefect import get_client, runtime
from prefect.settings import PREFECT_API_URL

logger = logging.getLogger(__name__)

TOLD_TOGETHER = 200


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        name: For example fieldpost.station.silent.
        resource: What it is about, for example fieldpost.station.magurele.
        payload: Facts that JSON can hold.
    """

    name: str
    resource: str
    payload: Mapping[str, object]


def tell(event: str, resource: str, payload: Mapping[str, object]) -> bool:
    """Emits one event; see tell_all."""
    return tell_all([Event(event, resource, payload)])


def tell_all(events: Sequence[Event]) -> bool:
    """Emits events; a problem with Prefect's server is logged, never raised.

    They are posted and answered before this returns. Prefect's own queue would be emptied at the interpreter's end,
    and a run that is killed before would have told nothing.

    Returns:
        Whether Prefect's server has them all.
    """
    if not events:
        return True
    if not PREFECT_API_URL.value():  # Prefect would start a server of its own, in the home folder, to tell it
        logger.warning("events not told: no Prefect server", extra={"event_count": len(events)})
        return False
    bodies = [_body(each) for each in events]
    try:
        with get_client(sync_client=True) as client:
            for first in range(0, len(bodies), TOLD_TOGETHER):
                client.request("POST", "/events", json=bodies[first : first + TOLD_TOGETHER])
    except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client cannot agree with the server at all
        logger.warning("events not told", extra={"event_count": len(events), "error": str(error)})
        return False
    return True


def _body(event: Event) -> dict[str, object]:
    run_id = runtime.flow_run.id
    run = {"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"}
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event.name,
        "resource": {"prefect.resource.id": event.resource},
        "related": [run] if run_id else [],
        "payload": dict(event.payload),
    }
