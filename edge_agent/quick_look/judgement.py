"""Decides whether the child is asked, when it is started again, and when a new model has failed. Pure: time is given.

Two things are judged apart. The breaker: after each failure nothing is asked for a while, twice as long each time, so
that a station whose model cannot run pays nothing for it. The probation: a model that was just taken has to prove
itself on the first observations, and goes if it fails too often.
"""

from __future__ import annotations

from enum import Enum

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 300.0
FAILURES_FOR_PROBLEM = 3
"""A child that fails once is started again and nobody is told."""
FAULTS_IN_A_ROW_MAX = 20
"""So many telegrams without a finite number are a failure like any other."""
PROBATION_OBSERVATIONS = 50
PROBATION_FAILURES_MAX = 3


class Probation(Enum):
    """Where a model stands."""

    NONE = "none"
    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"


class Judgement:
    """Of one model, from its start.

    Args:
        is_on_probation: Whether it was taken lately.
    """

    def __init__(self, *, is_on_probation: bool) -> None:
        self.probation = Probation.RUNNING if is_on_probation else Probation.NONE
        self.last_reason = ""
        self._failures_in_row = 0
        self._faults_in_row = 0
        self._ask_at_s = 0.0
        self._answered_count = 0
        self._failed_count = 0

    @property
    def problem(self) -> str:
        """Plain words once it fails again and again; empty where all is well."""
        if self._failures_in_row < FAILURES_FOR_PROBLEM:
            return ""
        return f"the quick look has failed {self._failures_in_row} times in a row: {self.last_reason}"

    def may_ask(self, now_s: float) -> bool:
        """Whether to ask, or to start the child for it; while not, an observation costs nothing."""
        return now_s >= self._ask_at_s

    def answered(self) -> None:
        """An estimate came in time."""
        self._failures_in_row = self._faults_in_row = 0
        self._count_answer()

    def faulted(self, reason: str, now_s: float) -> None:
        """An answer came in time, but its numbers are none."""
        self._faults_in_row += 1
        if self.probation is Probation.RUNNING:
            self._count_failure(reason)
            self._count_answer()
        if self._faults_in_row >= FAULTS_IN_A_ROW_MAX:
            self._faults_in_row = 0
            self.failed(reason, now_s, is_counted=False)

    def failed(self, reason: str, now_s: float, *, is_counted: bool = True) -> None:
        """The child died, was late, or could not start."""
        self.last_reason = reason
        backoff_s = min(BACKOFF_FIRST_S * 2**self._failures_in_row, BACKOFF_MAX_S)
        self._failures_in_row = min(self._failures_in_row + 1, 1000)
        self._ask_at_s = now_s + backoff_s
        if is_counted and self.probation is Probation.RUNNING:
            self._count_failure(reason)

    def _count_answer(self) -> None:
        self._answered_count += 1
        if self.probation is Probation.RUNNING and self._answered_count >= PROBATION_OBSERVATIONS:
            self.probation = Probation.PASSED

    def _count_failure(self, reason: str) -> None:
        self.last_reason = reason
        self._failed_count += 1
        if self._failed_count > PROBATION_FAILURES_MAX:
            self.probation = Probation.FAILED
