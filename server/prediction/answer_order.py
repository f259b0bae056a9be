"""Holds answers back until those of the same instrument's earlier observations are there. Pure; knows no store."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class AnswerOrder(Generic[T]):
    """Questions in the order in which they were asked, by instrument, and the answers that came too early."""

    def __init__(self) -> None:
        self._asked: dict[int, deque[int]] = {}
        self._early: dict[int, T] = {}

    def ask(self, instrument_id: int, observation_id: int) -> None:
        """An answer for this observation will come."""
        self._asked.setdefault(instrument_id, deque()).append(observation_id)

    def answer(self, instrument_id: int, observation_id: int, answer: T) -> list[T]:
        """An answer came; returns what may be stored now, in order."""
        self._early[observation_id] = answer
        asked = self._asked[instrument_id]
        due = []
        while asked and asked[0] in self._early:
            due.append(self._early.pop(asked.popleft()))
        if not asked:
            del self._asked[instrument_id]
        return due
