"""AsyncClient with the face of Client, so that one test holds both to the same."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from fieldpost import AsyncClient, Client, OfflineError

Connect = Callable[..., Any]


class AsyncInBlockingTests:
    """Runs every call of an AsyncClient to its end; what it iterates is iterated step by step."""

    def __init__(self, address: str, **options: Any) -> None:
        self._runner = asyncio.Runner()

        async def make() -> AsyncClient:
            return AsyncClient(address, **options)

        try:
            self._client = self._runner.run(make())
        except BaseException:
            self._runner.close()
            raise
        self.models = _Blocking(self._runner, self._client.models)

    def __enter__(self) -> AsyncInBlockingTests:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(_Blocking(self._runner, self._client), name)


class _Blocking:
    def __init__(self, runner: asyncio.Runner, target: Any) -> None:
        self._runner = runner
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = getattr(self._target, name)(*args, **kwargs)
            return self._runner.run(found) if inspect.isawaitable(found) else self._steps(found)

        return call

    def _steps(self, found: AsyncIterator[Any]) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(found, StopAsyncIteration)

        async def end() -> None:
            await found.aclose()  # type: ignore[attr-defined]

        try:
            while (item := self._runner.run(step())) is not StopAsyncIteration:
                yield item
        finally:
            self._runner.run(end())


def until_online(ask: Callable[[], Any]) -> Any:
    """Asks until it succeeds: gRPC itself waits a moment before it connects again."""
    pause = threading.Event()
    for _ in range(100):
        try:
            return ask()
        except OfflineError:
            pause.wait(0.05)
    return ask()


both_clients = pytest.mark.parametrize("connect", [Client, AsyncInBlockingTests], ids=["Client", "AsyncClient"])
