"""How the server and a worker process write to each other over a socket: frames of a header and a body.

What the server says is pickled, for a worker trusts the server. What a worker says is never unpickled: a process that
runs a stranger's model may be the stranger's by now. Its answers are JSON and plain arrays, and each is checked before
anybody uses it. Payloads, arrays and states lie in the body as they are, without an object around each.
"""

from __future__ import annotations

import json
import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import BrokenStateError
from server.workers.jobs import (
    STATE_BYTES_MAX,
    Job,
    JobDone,
    ModelKey,
    ModelPackage,
    PlacedStretch,
    ResultBlock,
    VariableNames,
    WorkItem,
)

ANSWER_BYTES_MAX = 256 * 1024 * 1024
"""A larger answer is none: so much a worker of ours never says, and a strange one must not fill the server's memory."""
JOIN_BYTES_MAX = 4 * 1024 * 1024
"""Frames up to this size go out in one call; copying them costs less than waking the other side for each part."""
ANSWER_HEADER_BYTES_MAX = 16 * 1024 * 1024
"""Of JSON, which takes many times its length once it is read."""
TEXT_CHARACTERS_MAX = 4000
_LENGTHS = struct.Struct("<QQ")

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Load:
    """Tells a worker to load a model version; it answers with Loaded."""

    package: ModelPackage


@dataclass(frozen=True, slots=True)
class Unload:
    """Tells a worker to forget a model version."""

    key: ModelKey


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has started, and loads what it is told.

    Attributes:
        device: What it computes with; of a GPU its name.
        confinements: What keeps it in.
    """

    device: str
    confinements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker has loaded a model version, or in words why it could not."""

    key: ModelKey
    failure: str = ""


Message = Load | Unload | Job
Answer = Ready | Loaded | JobDone


class Frame(NamedTuple):
    """One message or answer as it crosses."""

    header: Buffer
    body: memoryview


def frame_parts(header: bytes, body: Sequence[Buffer]) -> list[Buffer]:
    """A frame as it crosses: the lengths of both, the header, the parts of the body."""
    header += b" " * (-len(header) % 8)  # so that arrays in the body are aligned; JSON and pickle do not mind
    return [_LENGTHS.pack(len(header), sum(map(len, body))), header, *body]


def write_frame(connection: socket.socket, parts: Sequence[Buffer]) -> None:
    """Writes what encode_message or encode_answer made; waits until the other side has room."""
    if sum(map(len, parts)) <= JOIN_BYTES_MAX:
        connection.sendall(b"".join(parts))
    else:
        for part in parts:
            connection.sendall(part)


def read_frame(connection: socket.socket, bytes_max: int | None = None) -> Frame | None:
    """The next frame; None where the other side has closed.

    Raises:
        BrokenStateError: The frame is larger than allowed, or ends early.
    """
    lengths = bytearray(_LENGTHS.size)
    if not _receive_all(connection, memoryview(lengths)):
        return None
    header_bytes, body_bytes = _LENGTHS.unpack(lengths)
    if bytes_max is not None and header_bytes + body_bytes > bytes_max:
        raise BrokenStateError(f"expected a frame of at most {bytes_max} bytes, but got {header_bytes + body_bytes}")
    if bytes_max is not None and header_bytes > ANSWER_HEADER_BYTES_MAX:
        raise BrokenStateError(f"expected a header of at most {ANSWER_HEADER_BYTES_MAX} bytes, but got {header_bytes}")
    content = memoryview(bytearray(header_bytes + body_bytes))
    if len(content) and not _receive_all(connection, content):
        raise BrokenStateError(f"expected {len(content)} bytes more, but the pipe ended")
    return Frame(content[:header_bytes], content[header_bytes:])


def _receive_all(connection: socket.socket, room: memoryview) -> bool:
    while room:
        count = connection.recv_into(room, len(room), socket.MSG_WAITALL)
        if count == 0:
            return False
        room = room[count:]
    return True


def encode_message(message: Message) -> list[Buffer]:
    """A message as parts of a frame; payloads are not copied."""
    if isinstance(message, Job):
        columns = list(zip(*message.items, strict=True))
        payloads: Sequence[bytes] = columns[0] if columns else ()
        lengths = [len(each) for each in payloads]
        stretches = [(first_place, count, len(state)) for first_place, count, state in message.stretches]
        told = (message.job_id, tuple(message.key), message.timeout_s, lengths, columns[1:], stretches)
        return frame_parts(pickle.dumps(("job", told), 5), [*payloads, *(each.state for each in message.stretches)])
    if isinstance(message, Load):
        package = message.package
        facts = (tuple(package.key), package.manifest, package.is_trained)
        return frame_parts(pickle.dumps(("load", facts), 5), [package.content])
    return frame_parts(pickle.dumps(("unload", tuple(message.key)), 5), [])


def decode_message(frame: Frame) -> Message:
    """The opposite, in the worker."""
    kind, told = pickle.loads(frame.header)
    if kind == "job":
        job_id, key, timeout_s, lengths, columns, stretches = told
        payloads = _cut(frame.body, 0, lengths)
        items = list(map(WorkItem._make, zip(payloads, *columns, strict=True)))
        states = _cut(frame.body, sum(lengths), [each[2] for each in stretches])
        placed = [
            PlacedStretch(first_place, count, state)
            for (first_place, count, _), state in zip(stretches, states, strict=True)
        ]
        return Job(job_id, ModelKey(*key), items, timeout_s, placed)
    if kind == "load":
        key, manifest, is_trained = told
        return Load(ModelPackage(ModelKey(*key), manifest, bytes(frame.body), is_trained))
    return Unload(ModelKey(*told))


def _cut(body: memoryview, start: int, lengths: Sequence[int]) -> list[bytes]:
    """Pieces of a body that lie one behind the other."""
    pieces = []
    for length in lengths:
        pieces.append(bytes(body[start : start + length]))
        start += length
    return pieces


def encode_answer(answer: Answer) -> list[Buffer]:
    """An answer as parts of a frame."""
    if isinstance(answer, Ready):
        return frame_parts(json.dumps({"ready": asdict(answer)}).encode(), [])
    if isinstance(answer, Loaded):
        return frame_parts(json.dumps({"loaded": [*answer.key, answer.failure[:TEXT_CHARACTERS_MAX]]}).encode(), [])
    arrays: list[Buffer] = []
    blocks = []
    for block in answer.blocks:
        arrays += [_bytes_of(block.sample_unix_nanos), _bytes_of(block.values)]
        blocks.append([block.places, block.counts, block.variables])
    told = {
        "done": answer.job_id,
        "blocks": blocks,
        "refusals": {place: text[:TEXT_CHARACTERS_MAX] for place, text in answer.refusals.items()},
        "failure": answer.failure[:TEXT_CHARACTERS_MAX],
        "is_out_of_memory": answer.is_out_of_memory,
        "duration_s": answer.duration_s,
        "states": [len(each) for each in answer.states],
    }
    return frame_parts(json.dumps(told).encode(), [*arrays, *answer.states])  # behind the arrays, which stay aligned


def decode_answer(frame: Frame) -> Answer:
    """The opposite, in the server.

    Raises:
        BrokenStateError: It is no answer.
    """
    try:
        told = json.loads(bytes(frame.header))
        if "ready" in told:
            return Ready(_text(told["ready"]["device"]), tuple(map(_text, told["ready"]["confinements"])))
        if "loaded" in told:
            analysis, version, failure = told["loaded"]
            return Loaded(ModelKey(_text(analysis), int(version)), _text(failure))
        return _decode_done(told, frame.body)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise BrokenStateError(f"expected an answer of a worker, but got something else: {error!r}") from error


def _decode_done(told: dict[str, object], body: memoryview) -> JobDone:
    blocks, start = [], 0
    for places, counts, variables in told["blocks"]:  # type: ignore[attr-defined]  # a TypeError is caught
        if not set(map(type, places)) | set(map(type, counts)) <= {int}:
            raise ValueError("places and counts are no whole numbers")
        sample_count = sum(counts)
        names: tuple[VariableNames, ...] = tuple(
            (_text(name), _text(unit), tuple(map(_text, meanings))) for name, unit, meanings in variables
        )
        nanos = np.frombuffer(body, np.int64, sample_count, start)
        start += nanos.nbytes
        values = np.frombuffer(body, np.float32, len(names) * sample_count, start)
        start += values.nbytes
        block = ResultBlock(places, counts, nanos, names, values.reshape(len(names), sample_count))
        block.check()
        blocks.append(block)
    refusals = {int(place): _text(text) for place, text in told["refusals"].items()}  # type: ignore[attr-defined]
    lengths: list[int] = told["states"]  # type: ignore[assignment]  # a TypeError is caught
    if not all(type(length) is int and 0 <= length <= STATE_BYTES_MAX for length in lengths):
        raise ValueError(f"a state has no length from 0 to {STATE_BYTES_MAX} bytes")
    if len(body) != start + sum(lengths):
        raise ValueError(f"{len(body)} bytes, and {start} of arrays and {sum(lengths)} of states, do not agree")
    return JobDone(
        int(told["done"]),  # type: ignore[call-overload]
        blocks,
        refusals,
        _text(told["failure"]),
        bool(told["is_out_of_memory"]),
        float(told["duration_s"]),  # type: ignore[arg-type]
        _cut(body, start, lengths),
    )


def _text(given: object) -> str:
    text = str(given)
    text.encode()  # raises a ValueError where it has half a character, which could go no further
    return text


def answers_all(done: JobDone, item_count: int, stretch_count: int = 0) -> bool:
    """Whether an answer has a result or a refusal for each item of its batch, once, and a state for each stretch.

    One that says that the whole batch failed has none of these.
    """
    if done.failure:
        return True
    if len(done.states) != stretch_count:
        return False
    places = [*done.refusals, *(place for block in done.blocks for place in block.places)]
    return len(places) == item_count and set(places) == set(range(item_count))


def _bytes_of(values: NDArray[Any]) -> Buffer:
    return np.ascontiguousarray(values).data.cast("B") if values.size else b""
