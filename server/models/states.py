"""The life of a model version: which state may follow which, and which version was active before. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fieldpost.errors import InvalidRequestError
from server.models.card import ModelState
from server.workers.jobs import ModelKey

NEXT: dict[ModelState, frozenset[ModelState]] = {
    ModelState.READY: frozenset({ModelState.SHADOW, ModelState.ACTIVE, ModelState.RETIRED}),
    ModelState.SHADOW: frozenset({ModelState.READY, ModelState.ACTIVE, ModelState.RETIRED}),
    ModelState.ACTIVE: frozenset({ModelState.RETIRED}),
    ModelState.RETIRED: frozenset({ModelState.READY}),
}
HINTS = {
    ModelState.ACTIVE: "activate another version or roll back, which makes this one ready; or retire it, and nothing "
    "predicts then",
    ModelState.RETIRED: "make it ready first",
}


def check_transition(key: ModelKey, present: ModelState, wanted: ModelState) -> None:
    """Whether a version may change from one state to another; raises InvalidRequestError where it may not."""
    if wanted not in NEXT[present]:
        allowed = " or ".join(sorted(NEXT[present]))
        raise InvalidRequestError(
            f"expected {key}, which is {present}, to become {allowed}, but got {wanted}", hint=HINTS.get(present, "")
        )


def find_previous(activated: Sequence[int], states: Mapping[int, ModelState]) -> int | None:
    """The version to roll back to, out of the versions in the order in which they were made active.

    Rolling back twice goes back two steps: whoever returns to a version forgets what came after it.
    """
    trail: list[int] = []
    for version in activated:
        if version in trail:
            del trail[trail.index(version) + 1 :]
        else:
            trail.append(version)
    usable = (ModelState.READY, ModelState.SHADOW)
    return next((version for version in reversed(trail) if states.get(version) in usable), None)
