"""Writes down what a batching policy was asked and what it decided, and plays that back.

    python -m server.batching.trace FILE [--batch-seconds-max S] [--workers N] …

says whether a fresh policy decides the same, and what would have become of the waiting times with other bounds. A
trace is JSON lines: sizes, lanes and times, never a payload. Knows no worker and no clock.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from fieldpost.errors import BrokenStateError, FieldpostError, InvalidRequestError, OverloadedError
from server.batching.policy import Batch, BatchPolicy, Priority, Waiting
from server.batching.whatif import ARRIVAL, Bounds, Recording, simulate, summarise
from server.workers.jobs import ModelKey

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TracedPolicy(BatchPolicy[T]):
    """A policy that writes down what it is asked and what it decides.

    Args:
        path: The trace; begun anew.
        limits: Of the policy.
    """

    def __init__(self, path: Path, **limits: Any) -> None:
        super().__init__(**limits)
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise InvalidRequestError(
                f"the trace {path} cannot be written: {error}", hint="see the setting batch_trace_file"
            ) from error
        self._write("limits", **limits)

    def _write(self, call: str, **facts: Any) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(json.dumps({"call": call, **facts}) + "\n")
        except OSError as error:
            logger.error("trace ended", extra={"path": self._file.name, "error": str(error)})
            self._close_file()

    def _close_file(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # the rest of its buffer; the file is closed all the same
            logger.error("trace incomplete", extra={"path": self._file.name, "error": str(error)})

    def close(self) -> None:
        """Ends the trace; the policy goes on."""
        self._close_file()

    def add_model(
        self, key: ModelKey, kind: str, *, max_batch_count: int, batch_bytes_max: int, cost: tuple[float, float]
    ) -> None:
        """As the policy's."""
        super().add_model(key, kind, max_batch_count=max_batch_count, batch_bytes_max=batch_bytes_max, cost=cost)
        facts = {"max_batch_count": max_batch_count, "batch_bytes_max": batch_bytes_max, "cost": cost}
        self._write("add_model", key=key, kind=str(kind), **facts)

    def remove_model(self, key: ModelKey) -> list[Waiting[T]]:
        """As the policy's."""
        left = super().remove_model(key)
        self._write("remove_model", key=key, numbers=_numbers(left))
        return left

    def add(
        self,
        key: ModelKey,
        value: T,
        *,
        lane: str,
        priority: Priority,
        size_bytes: int,
        now_s: float,
        observation_count: int = 1,
        arrival_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Waiting[T]:
        """As the policy's."""
        sizes = {"size_bytes": size_bytes, "observation_count": observation_count}
        facts = {"lane": lane, "priority": priority, **sizes, "now_s": now_s}
        times = {"arrival_s": arrival_s, "deadline_s": deadline_s}
        try:
            waiting = super().add(
                key,
                value,
                lane=lane,
                priority=priority,
                size_bytes=size_bytes,
                now_s=now_s,
                observation_count=observation_count,
                arrival_s=arrival_s,
                deadline_s=deadline_s,
            )
        except OverloadedError:
            self._write("add", key=key, numbers=[0], **facts, **times)
            raise
        self._write("add", key=key, numbers=[waiting.number], **facts, **times)
        return waiting

    def put_back(self, items: list[Waiting[T]]) -> None:
        """As the policy's."""
        super().put_back(items)
        self._write("put_back", numbers=_numbers(items))

    def cancel(self, waiting: Waiting[T]) -> None:
        """As the policy's."""
        super().cancel(waiting)
        self._write("cancel", number=waiting.number)

    def take(self, kind: str, now_s: float) -> Batch[T] | None:
        """As the policy's."""
        batch = super().take(kind, now_s)
        # Also where there was none: each look at the time may give up what is late.
        self._write("take", kind=str(kind), now_s=now_s, numbers=_numbers(batch.items) if batch else [])
        return batch

    def take_expired(self, now_s: float) -> list[Waiting[T]]:
        """As the policy's."""
        expired = super().take_expired(now_s)
        self._write("take_expired", now_s=now_s, numbers=_numbers(expired))
        return expired

    def note_cost(self, key: ModelKey, count: int, duration_s: float) -> None:
        """As the policy's."""
        super().note_cost(key, count, duration_s)
        self._write("note_cost", key=key, count=count, duration_s=duration_s)

    def note_lost(self, key: ModelKey, priority: Priority, duration_s: float) -> None:
        """As the policy's."""
        super().note_lost(key, priority, duration_s)
        self._write("note_lost", key=key, priority=priority, duration_s=duration_s)

    def note_death(self, key: ModelKey, now_s: float) -> None:
        """As the policy's."""
        super().note_death(key, now_s)
        self._write("note_death", key=key, now_s=now_s)

    def note_too_large(self, key: ModelKey, times: int) -> None:
        """As the policy's."""
        super().note_too_large(key, times)
        self._write("note_too_large", key=key, times=times)

    def note_out_of_memory(self, key: ModelKey, count: int) -> None:
        """As the policy's."""
        super().note_out_of_memory(key, count)
        self._write("note_out_of_memory", key=key, count=count)


def _numbers(items: list[Waiting[T]]) -> list[int]:
    return [each.number for each in items]


def read_trace(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a trace; a last one that was cut off, as a killed server leaves it, is left out.

    Raises:
        BrokenStateError: The file is no trace.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                entry = json.loads(line)
                _ = entry["call"]
            except (ValueError, KeyError, TypeError) as error:
                raise BrokenStateError(
                    f"expected a line of a trace, but got {line[:80]!r} ({path}:{number})"
                ) from error
            if "key" in entry:
                entry["key"] = ModelKey(*entry["key"])
            yield entry


def replay(path: Path) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Asks a fresh policy the same; yields each decision as it was recorded, and what the fresh one decided.

    Ends after the first that differs: what was asked later rests on what was decided then.
    """
    entries = read_trace(path)
    policy = _open_policy(next(entries, {}), path)
    waiting: dict[int, Waiting[None]] = {}
    for entry in entries:
        call = entry.pop("call")
        if call == "add":
            decided = [_add_again(policy, waiting, entry)]
        elif call == "take":
            batch = policy.take(entry["kind"], entry["now_s"])
            decided = _numbers(batch.items) if batch else []
        elif call == "take_expired":
            decided = _numbers(policy.take_expired(entry["now_s"]))
        elif call == "remove_model":
            decided = _numbers(policy.remove_model(entry["key"]))
        else:
            _tell_again(policy, waiting, call, entry)
            continue
        yield entry, decided
        if decided != entry["numbers"]:
            return


def _tell_again(policy: BatchPolicy[None], waiting: dict[int, Waiting[None]], call: str, entry: dict[str, Any]) -> None:
    """The calls that decide nothing."""
    if call == "put_back":
        policy.put_back([waiting[each] for each in entry["numbers"]])
    elif call == "cancel":
        policy.cancel(waiting[entry["number"]])
    elif call == "add_model":
        policy.add_model(**{**entry, "cost": tuple(entry["cost"])})
    elif call == "note_lost":
        policy.note_lost(entry["key"], Priority(entry["priority"]), entry["duration_s"])
    elif call == "note_cost":
        policy.note_cost(**entry)
    elif call == "note_death":
        policy.note_death(**entry)
    elif call == "note_too_large":
        policy.note_too_large(**entry)
    elif call == "note_out_of_memory":
        policy.note_out_of_memory(**entry)
    else:
        raise BrokenStateError(f"expected a call of a batching policy, but got {call!r}")


def _open_policy(first: dict[str, Any], path: Path) -> BatchPolicy[None]:
    if first.pop("call", "") != "limits":
        raise BrokenStateError(f"expected a trace that begins with its limits, but {path} does not")
    return BatchPolicy(**first)


def _add_again(policy: BatchPolicy[None], waiting: dict[int, Waiting[None]], entry: dict[str, Any]) -> int:
    facts = {name: entry[name] for name in ARRIVAL}
    try:
        added = policy.add(entry["key"], None, priority=Priority(entry["priority"]), **facts)
    except OverloadedError:
        return 0
    waiting[added.number] = added
    return added.number


def main(arguments: list[str]) -> int:
    """Replays a trace, and prints what it says; returns 1 where a fresh policy decides otherwise."""
    parser = argparse.ArgumentParser(prog="python -m server.batching.trace", description="Replays a batching trace.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch-count-max", type=int, help="what if a batch had at most so many observations")
    parser.add_argument("--batch-bytes-max", type=int, help="what if a batch had at most so many bytes")
    parser.add_argument("--batch-seconds-max", type=float, help="what if a batch took at most so long")
    parser.add_argument("--workers", type=int, help="what if there were so many batches at a time")
    options = parser.parse_args(arguments)
    decision_count, lines = 0, []
    is_same = True
    for entry, decided in replay(options.file):
        decision_count += 1
        if (recorded := entry["numbers"]) != decided:
            is_same = False
            at = f"at {entry['now_s']} s" if "now_s" in entry else "as a model version was removed"
            lines.append(f"recorded {recorded[:20]}, but a fresh policy decides {decided[:20]} ({at})")
    lines.append(f"{decision_count} decisions; a fresh policy decides {'the same' if is_same else 'otherwise'}")
    recording = Recording.read(read_trace(options.file))
    lines += [summarise("recorded", recording.outcome), summarise("simulated", simulate(recording, Bounds()))]
    changed = Bounds(options.batch_count_max, options.batch_bytes_max, options.batch_seconds_max, options.workers)
    if changed != Bounds():
        lines.append(summarise("what if", simulate(recording, changed)))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if is_same else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (FieldpostError, OSError) as error:
        sys.exit(str(error))
