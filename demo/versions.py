"""Which model versions predict in the demo, and whether they have said their last word. Knows no process."""

from __future__ import annotations

import time

from sqlalchemy import Connection

from demo.heights import ANALYSIS, COMPARED_VERSION
from fieldpost import Client
from fieldpost.v1.model_pb2 import MODEL_STATE_ACTIVE
from server.models.catalogue import find_at_work
from server.prediction.pending import Span, find_pending
from server.queries.predictions import last_prediction_id
from server.storage.store import Store

STALL_S = 30.0
"""When no prediction has come for so long, none will."""


def put_to_work(client: Client) -> list[int]:
    """Puts the version to compare with to work beside the active one; returns both, the active one first."""
    (active,) = (each.model_version for each in client.models.list(ANALYSIS) if each.state == MODEL_STATE_ACTIVE)
    if active == COMPARED_VERSION:
        return [active]
    client.models.shadow(ANALYSIS, COMPARED_VERSION, reason="to be seen beside the active one")
    return [active, COMPARED_VERSION]


def wait_for_predictions(store: Store) -> None:
    """Returns when each version has said its last word about everything, or no further one has come for a while."""
    last_id, changed_s = -1, time.monotonic()
    while time.monotonic() < changed_s + STALL_S:
        with store.read() as connection:
            before, last_id = last_id, last_prediction_id(connection)
            if last_id == before and not _is_anything_waiting(connection):
                return
        if last_id != before:
            changed_s = time.monotonic()
        time.sleep(1)


def _is_anything_waiting(connection: Connection) -> bool:
    """Whether an observation has no prediction yet, or a provisional one, of a version that is to predict it."""
    spans = [Span(is_live=is_live, mark_id=0, after_id=0) for is_live in (True, False)]
    return any(
        find_pending(connection, card, span, 1, with_provisional=True)[0]
        for card in find_at_work(connection)
        for span in spans
    )
