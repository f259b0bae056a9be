"""Lets payloads that many callers want predicted at once travel together on one stream. Pure: time is an argument.

What waits when the stream is writable goes into one message; nothing waits for company. A stream that breaks is taken
up once for each payload: predictions at once are not stored, so asking twice is harmless.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from fieldpost._times import Moment, to_timestamp, unix_nanos
from fieldpost._unknown import UNKNOWN_HINTS
from fieldpost.errors import FieldpostError, InvalidRequestError, OfflineError, OverloadedError, UnknownModelError
from fieldpost.v1 import inference_service_pb2 as pb
from fieldpost.v1.observation_pb2 import PAYLOAD_ENCODING_IDENTITY

MESSAGE_MAX_COUNT = 256
MESSAGE_MAX_BYTES = 1024 * 1024
PAYLOAD_MAX_BYTES = 63 * 1024 * 1024
WINDOW_COUNT = 512
WINDOW_BYTES = 32 * 1024 * 1024
"""How much of a series may be on the way before its first answer is awaited."""

Handle = TypeVar("Handle")
Target: TypeAlias = tuple[str, int]
"""(analysis, model version; 0 for the active one)."""


def predict_item(payload: bytes, instrument_model: str | None, measure_time: Moment | None) -> pb.PredictItem:
    """One payload to be predicted.

    It travels as it is: it is used once, and packing it would cost both ends more than most networks do.

    Raises:
        InvalidRequestError: It is too large for a message, or measure_time is no instant.
    """
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise InvalidRequestError(
            f"expected a payload of at most {PAYLOAD_MAX_BYTES} bytes, but got {len(payload)}",
            hint="send it as an observation, which may be of any size, and watch for its prediction",
        )
    return pb.PredictItem(
        payload=payload,
        payload_encoding=PAYLOAD_ENCODING_IDENTITY,
        payload_bytes=len(payload),
        instrument_model=instrument_model or "",
        measure_time=None if measure_time is None else to_timestamp(unix_nanos(measure_time)),
    )


def target(analysis: str, version: int | None) -> Target:
    """Who is asked.

    Raises:
        InvalidRequestError: There is no such thing.
    """
    if not analysis or (version is not None and version < 1):
        raise InvalidRequestError(
            f"expected an analysis and a version of 1 or more, but got {analysis!r} and {version}",
            hint="`fieldpost models list` shows those there are; leave the version out for the active one",
        )
    return analysis, version or 0


@dataclass(slots=True)
class Asked(Generic[Handle]):
    """One payload that waits for its answer."""

    target: Target
    item: pb.PredictItem
    deadline_s: float
    handle: Handle
    is_sent: bool = False
    is_second_try: bool = False


class PredictDesk(Generic[Handle]):
    """What waits to be sent, and what waits for an answer."""

    def __init__(self) -> None:
        self._asked: dict[int, Asked[Handle]] = {}
        self._waiting: dict[Target, deque[int]] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def is_anything_waiting(self) -> bool:
        """Whether there may be something to send."""
        return bool(self._waiting)

    def add(self, asked: Asked[Handle]) -> int:
        """Takes one more payload; returns its number."""
        self._last_id += 1
        asked.item.item_id = self._last_id
        self._asked[self._last_id] = asked
        self._waiting.setdefault(asked.target, deque()).append(self._last_id)
        return self._last_id

    def forget(self, item_id: int) -> None:
        """Nobody waits for this one any more: it is not sent, or its answer is let go."""
        self._asked.pop(item_id, None)

    def next_request(self, now_s: float) -> pb.PredictStreamRequest | None:
        """What waits, as one message for one target; the targets take turns. None where nothing waits.

        What is past its deadline is left out: who asked has noticed by himself.
        """
        while self._waiting:
            asks = next(iter(self._waiting))
            waiting = self._waiting.pop(asks)
            items = self._take_items(waiting, now_s)
            if waiting:
                self._waiting[asks] = waiting  # at the end: the others first
            if items:
                return pb.PredictStreamRequest(analysis=asks[0], model_version=asks[1], items=items)
        return None

    def _take_items(self, waiting: deque[int], now_s: float) -> list[pb.PredictItem]:
        items: list[pb.PredictItem] = []
        size = 0
        while waiting and len(items) < MESSAGE_MAX_COUNT:
            asked = self._asked.get(waiting[0])
            if asked is not None and asked.deadline_s > now_s:
                size += len(asked.item.payload)
                if items and size > MESSAGE_MAX_BYTES:
                    break
                asked.item.timeout_s = asked.deadline_s - now_s
                asked.is_sent = True
                items.append(asked.item)
            waiting.popleft()
        return items

    def take(self, response: pb.PredictStreamResponse) -> list[tuple[Asked[Handle], pb.PredictResult]]:
        """Whose answers have come. An answer that nobody waits for any more is let go."""
        found = []
        for result in response.results:
            asked = self._asked.pop(result.item_id, None)
            if asked is not None:
                found.append((asked, result))
        return found

    def stream_broke(self, *, is_worth_a_second_try: bool) -> list[Asked[Handle]]:
        """What was on the way when the stream broke, and is not tried again; the rest waits once more."""
        given_up = []
        for item_id, asked in list(self._asked.items()):
            if not asked.is_sent and is_worth_a_second_try:
                continue
            if is_worth_a_second_try and not asked.is_second_try:
                asked.is_sent, asked.is_second_try = False, True
                self._waiting.setdefault(asked.target, deque()).append(item_id)
            else:
                del self._asked[item_id]
                given_up.append(asked)
        return given_up


_FAILURES: dict[int, tuple[type[FieldpostError], str, str]] = {
    pb.PREDICT_FAILURE_REJECTED: (
        InvalidRequestError,
        "it refuses this payload",
        "change the payload; the same will be refused again",
    ),
    pb.PREDICT_FAILURE_OVERLOADED: (OverloadedError, "too much waits already", "try again later, or ask less at once"),
    pb.PREDICT_FAILURE_EXPIRED: (OfflineError, "its time ran out", "try again, with a larger timeout_s"),
}


def failure_of(asked: Asked[Handle], result: pb.PredictResult) -> FieldpostError | None:
    """The error that a result stands for; None where it has values."""
    if result.failure == pb.PREDICT_FAILURE_UNSPECIFIED:
        return None
    error_type, what, hint = _FAILURES.get(
        result.failure, (InvalidRequestError, "it gave none", "install the client version of the server")
    )
    analysis, version = asked.target
    if result.failure == pb.PREDICT_FAILURE_REJECTED and not result.model_version:  # nobody was asked
        return UnknownModelError(
            f"expected a model for {analysis}, but got: {result.failure_detail}", hint=UNKNOWN_HINTS[UnknownModelError]
        )
    return error_type(
        f"expected a prediction of {analysis}@{result.model_version or version}, but {what}: {result.failure_detail}",
        hint=hint,
    )
