"""Pages of a RecordingServer's lists, by measure time and number. For tests only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc

_Item = TypeVar("_Item")


def page_of(
    items: Sequence[_Item], key: Callable[[_Item], tuple[int, int]], token: str, size: int, context: Any
) -> tuple[list[_Item], str]:
    """The page after a token, and the token of the next; "" at the end."""
    try:
        after = tuple(int(part) for part in token.split(":")) if token else (-(2**63), 0)
    except ValueError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected the page_token of the answer before")
    rest = [each for each in sorted(items, key=key) if key(each) > after]
    return rest[:size], ":".join(str(part) for part in key(rest[size - 1])) if len(rest) > size else ""
