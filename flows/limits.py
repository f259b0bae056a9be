"""How many runs at once may write to the storage array; the number is the operator's, on Prefect's page.

Knows nothing of what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from fieldpost.errors import InvalidRequestError, TryAgainError

logger = logging.getLogger(__name__)

ARRAY_WRITE = "array-write"
"""The name of the global concurrency limit."""
ARRAY_WRITES_MAX = 2
"""What the limit is when it is first made: a disk array serves two writers in order better than ten."""


@contextmanager
def array_write() -> Iterator[None]:
    """Waits for its turn to write to the storage array, and has it until the block ends.

    A lease that could not be renewed in time does not end the work: a third writer is slow, a torn copy is worse.

    Raises:
        InvalidRequestError: The Prefect server has no such limit.
        TryAgainError: The Prefect server did not give it.
    """
    turn = concurrency(ARRAY_WRITE, occupy=1, strict=True, raise_on_lease_renewal_failure=False)
    _take(turn)
    try:
        yield
    finally:
        _give_back(turn)


def _take(turn: AbstractContextManager[None]) -> None:
    try:
        turn.__enter__()
    except ConcurrencySlotAcquisitionError as error:
        if error.__cause__ is not None:  # the request failed; without a cause the answer was that there is no limit
            raise TryAgainError(
                f"the Prefect server gave no turn to write to the storage array: {error.__cause__}",
                hint="look whether the Prefect server runs",
            ) from error
        raise InvalidRequestError(
            f"expected a global concurrency limit {ARRAY_WRITE!r} at the Prefect server, but there is none",
            hint=f"make it: `prefect gcl create {ARRAY_WRITE} --limit {ARRAY_WRITES_MAX}`",
        ) from error


def _give_back(turn: AbstractContextManager[None]) -> None:
    """A server that is away does not undo what was written, and the lease lapses by itself."""
    try:
        turn.__exit__(None, None, None)
    except httpx.HTTPError as error:
        logger.warning("the turn to write to the storage array was not given back", extra={"reason": str(error)})
