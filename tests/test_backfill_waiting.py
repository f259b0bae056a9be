"""What waits in a piece of time, asked of both kinds of database."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from archive_support import DAY, fail_prediction, ingest_telegrams, model_row_id, predict
from server_support import open_store
from sqlalchemy import update

from flows.backfilling.span import find_spans
from flows.backfilling.waiting import Position, SpanCounts, count_span, list_waiting
from server.archive.bags import list_instrument_days
from server.storage.tables import predictions

ANALYSIS = "boundary-layer-height"


def test_what_waits_is_counted_and_listed_page_by_page_in_the_order_of_time(tmp_path: Path, database_url: str) -> None:
    store = open_store(tmp_path, instruments=("cl51", "cl31"), database_url=database_url)
    try:
        ingest_telegrams(store, *range(20, 31), *range(1, 20))
        ingest_telegrams(store, *range(6001, 6004))  # of the next day
        ingest_telegrams(store, *range(101, 104), instrument="cl31")
        predict(store, 2, 4, 6)
        fail_prediction(store, 8, "no signal")
        row_id = model_row_id(store, ANALYSIS, 1)
        first = update(predictions).where(predictions.c.id == 1).values(is_provisional=True)
        store.write(lambda connection: connection.execute(first)).result(10)
        with store.read() as connection:
            days = list_instrument_days(connection, DAY, DAY + timedelta(days=1))
            other, today, tomorrow = find_spans(days, 1, None)
            counted = [count_span(connection, row_id, each) for each in (other, today, tomorrow)]
            listed: list[Position] = []
            while page := list_waiting(connection, row_id, today, listed[-1] if listed else None, 7):
                listed += [(each.measure_unix_nanos, each.observation_id) for each in page]
        assert counted == [SpanCounts(3, 3, 0), SpanCounts(30, 27, 1), SpanCounts(3, 3, 0)]
        assert len(listed) == 26  # the provisional one is no work for a version that forgets
        assert listed == sorted(set(listed))
    finally:
        store.close()
