"""A progress artifact that says how far a run is and how long it will still take, as far as it can tell.

The estimate is a proportion of what is done to the time that it took; it is a pure function. Knows no flow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from fieldpost.words import span

PERIOD_S = 1.0
"""News that come faster are left out, but for the last one: each is a request to Prefect's server."""


class Progress:
    """A progress artifact, made when there is something to tell.

    Args:
        key: Of the artifact.
        description: What makes progress; the time left is added to it.
        clock: Seconds, of any origin.
    """

    def __init__(self, key: str, description: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._key, self._description = key, description
        self._clock = clock
        self._begin_s = clock()
        self._told_s = float("-inf")
        self._artifact_id: UUID | None = None

    def __call__(self, share: float, detail: str = "", *, left_s: float | None = None) -> None:
        """Tells the share that is done.

        Args:
            share: 0 to 1.
            detail: What is done in other words, for example "12 of 31 days".
            left_s: How long the rest will take, where the caller knows better than a proportion does.
        """
        now_s = self._clock()
        if share < 1 and now_s - self._told_s < PERIOD_S:
            return
        self._told_s = now_s
        left = format_time_left(share, now_s - self._begin_s) if left_s is None else f"about {span(left_s)} left"
        text = ": ".join(each for each in (self._description, ", ".join(filter(None, (detail, left)))) if each)
        if self._artifact_id is None:
            created = create_progress_artifact(100 * share, key=self._key, description=text)
            self._artifact_id = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self._artifact_id, progress=100 * share, description=text)


def format_time_left(share: float, elapsed_s: float) -> str:
    """How long the rest takes where it goes on as it went; empty where that cannot be said.

    Args:
        share: Of the work that is done, 0 to 1.
        elapsed_s: What that took.
    """
    return f"about {span(elapsed_s * (1 - share) / share)} left" if 0 < share < 1 else ""
