"""When a stream that broke is taken up again, and when it is given up. Opens no connection; time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from fieldpost.errors import FieldpostError, TryAgainError

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 30.0

_Request = TypeVar("_Request")
_RequestOut = TypeVar("_RequestOut", covariant=True)
_Response = TypeVar("_Response")
_ResponseIn = TypeVar("_ResponseIn", contravariant=True)
_Item = TypeVar("_Item")
_ItemOut = TypeVar("_ItemOut", covariant=True)


def retry_delay_s(attempt: int, chance: float) -> float:
    """How long to wait before an attempt.

    Doubles from one attempt to the next up to a ceiling. Half of it is left to chance, so that a thousand clients of
    a server that comes back do not come back in the same instant.

    Args:
        attempt: 0 for the first attempt after a failure.
        chance: A random number in [0, 1).
    """
    return float(min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(attempt, 20)) * (0.5 + 0.5 * chance))


class Patience:
    """How often a broken stream is taken up again.

    A stream that could not even begin is an error: a wrong address would else be a silence.

    Args:
        patience_s: Given up where nothing has come for so long after a failure; None for never, 0 for at once.
    """

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s
        self._has_begun = False
        self._attempt = 0
        self._failing_since_s: float | None = None

    def begin(self) -> None:
        """Notes that the server has begun to answer: only what happens from now on is taken up again."""
        self._has_begun = True

    def progress(self) -> None:
        """Notes that something came."""
        self._has_begun = True
        self._attempt = 0
        self._failing_since_s = None

    def delay_after_s(self, error: FieldpostError, chance: float, now_s: float) -> float | None:
        """How long to wait after a failure before going on; None where the stream ends with the error."""
        if not self._has_begun or not isinstance(error, TryAgainError):
            return None
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if self._patience_s is not None and now_s - self._failing_since_s >= self._patience_s:
            return None
        self._attempt += 1
        return retry_delay_s(self._attempt - 1, chance)


class Resumable(Protocol[_RequestOut, _ResponseIn, _ItemOut]):
    """A stream of answers that can be taken up where it broke off."""

    @property
    def patience(self) -> Patience:
        """How often it is taken up."""
        ...

    def request(self) -> _RequestOut:
        """The request that goes on where the stream stands."""
        ...

    def take(self, response: _ResponseIn) -> Iterable[_ItemOut]:
        """What is new in a response."""
        ...

    def is_complete(self, *, has_ended_well: bool) -> bool:
        """Whether all has come, now that the stream has ended."""
        ...


class Pages(Generic[_Request, _Response, _Item]):
    """A stream of pages, each with the token at which the next begins.

    Args:
        request_at: The request for what comes from a token on; "" for the beginning.
        items: What a response holds.
        token: Where to go on after a response; "" where nothing follows it.
        patience_s: As Patience says.
    """

    def __init__(
        self,
        request_at: Callable[[str], _Request],
        items: Callable[[_Response], Iterable[_Item]],
        token: Callable[[_Response], str],
        patience_s: float,
    ) -> None:
        self.patience = Patience(patience_s)
        self._request_at = request_at
        self._items = items
        self._token_of = token
        self._token: str | None = None

    def request(self) -> _Request:
        """The request that goes on after the last page."""
        return self._request_at(self._token or "")

    def take(self, response: _Response) -> Iterable[_Item]:
        """The items of a page."""
        self._token = self._token_of(response)
        return self._items(response)

    def is_complete(self, *, has_ended_well: bool) -> bool:
        """Whether all has come: the server said so, or the last page had no token to go on at."""
        return has_ended_well or self._token == ""
