"""Whether a segment that no row names may go: only where the database knows each observation that lies in it.

After a crash it does: what had no receipt was sent again, or is in the archive. A database that was restored from an
older backup does not, nor does an empty one beside segments that are not its own: there the segment may be the last
place where an observation is. Knows the records' headers, and nothing of how a segment is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from sqlalchemy import Connection, select

from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.storage.records import list_headers
from server.storage.store import Store
from server.storage.tables import epochs, observations, stations

HEADERS_AT_ONCE = 500


def holds_unknown(store: Store, segment: str) -> bool:
    """Whether some observation lies in the segment that the database neither holds nor has let go of.

    Raises:
        FieldpostError: The segment or the database cannot be read.
        OSError: Likewise.
    """
    reader = store.segment_reader
    headers = list_headers(reader.read_range, segment, reader.length(segment))
    while some := list(islice(headers, HEADERS_AT_ONCE)):
        with store.read() as connection:
            if not _are_known(connection, some):
                return True
    return False


def _are_known(connection: Connection, headers: Sequence[pb.ObservationHeader]) -> bool:
    return all(
        _is_epoch_known(connection, *name, {each.sequence for each in headers if (each.station, each.epoch) == name})
        for name in {(each.station, each.epoch) for each in headers}
    )


def _is_epoch_known(connection: Connection, station: str, epoch: str, sequences: set[int]) -> bool:
    query = select(epochs.c.id, epochs.c.pruned_ranges).join(stations)
    row = connection.execute(query.where(stations.c.name == station, epochs.c.epoch == epoch)).one_or_none()
    if row is None:
        return False
    here = (observations.c.epoch_id == row.id, observations.c.sequence.in_(sequences))
    missing = sequences.difference(connection.scalars(select(observations.c.sequence).where(*here)))
    pruned = receipt_pb2.Receipt.FromString(row.pruned_ranges or b"").held_ranges
    return all(any(each.first_sequence <= sequence <= each.last_sequence for each in pruned) for sequence in missing)
