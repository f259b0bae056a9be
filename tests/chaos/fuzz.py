"""Inputs, mutated and random, through every framing and the reader of commands: nothing raises, no byte is lost.

    PYTHONPATH=tests python -m chaos.fuzz [--count 1000000] [--seed N]

The seeds are good telegrams, heads of NetCDF files, lines, frames and commands; most inputs are such, damaged. Held of
each: no error escapes but DecodeError of a command that is none (which the agent catches), the parts put together are
the bytes that went in, a stream gives the same observations for another chunking, a telegram that is framed is one, and
the process does not grow. Prints a line each percent and a summary as JSON; ends with 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from edge_agent.commands import CommandBook, StationFacts
from edge_agent.framing import (
    FORMATS,
    STREAM_FORMATS,
    Framed,
    FramingParameters,
    Part,
    Unframed,
    frame,
    recognise,
    stream_framer,
)
from edge_agent.framing.netcdf import is_whole_netcdf
from edge_agent.framing.vaisala import cl_checksum
from fieldpost.ranges import RangeSet
from fieldpost.v1 import command_pb2

MAX_GROWTH_BYTES = 8 << 20
"""So much may the process grow after its first fifth; the allocator alone moves by some MB."""
EPOCH = "e" * 32


def cl51_telegram(profile: bytes) -> bytes:
    """A CL51 telegram with a right checksum, short."""
    lines = [b"CL010326", b"00 ///// ///// ///// 000000000080", b"  1 0123  0 ////  0 ////  0 ////  0 ////", profile]
    body = b"\r\n".join([b"\x01" + lines[0] + b"\x02", *lines[1:], b""])
    return body + b"\x03%04x\x04\r\n" % cl_checksum(lines)


def ct25k_telegram() -> bytes:
    """A CT25K telegram of the right shape."""
    lines = [
        b"\x01CT02020\x02",
        b"00 ///// ///// ///// 00000000",
        b"100 N 53 +34 204 146  +2 621 LF7HN1 139 ".ljust(42),
    ]
    lines += [b"%03d" % row + b"0" * 64 for row in range(16)]
    return b"\r\n".join([*lines, b"\x03\x04\r\n"])


def classic_netcdf() -> bytes:
    """A NetCDF classic file with a record dimension and one variable."""

    def number(value: int) -> bytes:
        return value.to_bytes(4, "big")

    name = number(1) + b"t\0\0\0"
    dimensions = number(10) + number(1) + name + number(0)
    attributes = number(12) + number(1) + name + number(2) + number(3) + b"abc\0"
    variable = name + number(1) + number(0) + number(0) * 2 + number(5) + number(4) + number(120)
    header = b"CDF\x01" + number(2) + dimensions + attributes + number(11) + number(1) + variable
    return header.ljust(120, b"\0") + b"\0" * 8


def hdf5_head(version: int) -> bytes:
    """The superblock of an HDF5 file of 96 bytes."""
    lengths = b"\x08\x08" if version >= 2 else b"\0\0\0\0\x08\x08\0"
    addresses = (0).to_bytes(8, "little") + b"\xff" * 8 + (96).to_bytes(8, "little")
    start = {0: 24, 1: 28}.get(version, 12)
    return (b"\x89HDF\r\n\x1a\n" + bytes([version]) + lengths).ljust(start, b"\0") + addresses.ljust(96 - start, b"\0")


def seed_commands() -> list[bytes]:
    """Good commands of every kind."""
    replay = command_pb2.Command(command_id="c1", replay=command_pb2.ReplayCommand(epoch=EPOCH))
    replay.replay.ranges.add(first_sequence=1, last_sequence=50)
    report = command_pb2.Command(command_id="c2")
    report.report.SetInParent()
    commands = [replay, report]
    for field in command_pb2.Command.DESCRIPTOR.oneofs_by_name["action"].fields:
        command = command_pb2.Command(command_id=f"c-{field.name}")
        getattr(command, field.name).SetInParent()
        for text in getattr(command, field.name).DESCRIPTOR.fields:
            if text.type == text.TYPE_STRING and not text.is_repeated:
                setattr(getattr(command, field.name), text.name, "rate_limit_bytes_per_s")
        commands.append(command)
    return [command.SerializeToString() for command in commands]


SEEDS = [
    cl51_telegram(b"0004e" * 8),
    cl51_telegram(b"00000"),
    cl51_telegram(b"0004e").translate(None, b"\x01\x02\x03\x04"),
    ct25k_telegram(),
    b"-2020-04-10 00:00:58\r\n",
    b"2020-04-10 00:00:58,",
    b"-Ceilometer Logfile \r\n",
    classic_netcdf(),
    *(hdf5_head(version) for version in range(4)),
    b"\x89PNG\r\n\x1a\n" + b"\0" * 20,
    b"\0" * 128 + b"DICM",
    b"21.4;80;1013.2\r\n21.5;81;1013.1\r\n",
    b"\xaa\x5512345678\xaa\x5587654321",
    b"\x01\x04\n\r\x03\x02",
]
COMMANDS = seed_commands()


def decide_command(book: CommandBook, content: bytes) -> str:
    """What the agent does with a command; the one place that knows how the book is asked."""
    try:
        command = command_pb2.Command.FromString(content)
    except DecodeError:
        return "undecodable"
    held = RangeSet([(1, 100)])
    decision = book.decide(command, StationFacts(EPOCH, held, RangeSet(), {}))
    if decision.result is None:
        return "later"
    decision.result.SerializeToString()
    return "accepted" if decision.result.is_accepted else "refused"


class Fuzzer:
    """Makes inputs and holds what comes of them against the rules.

    Args:
        seed: Of the random numbers; the same seed makes the same inputs.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._book = CommandBook()
        self.by_target: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._targets: list[tuple[str, Callable[[str], None]]] = [
            *((f"file {name}", self._try_file) for name in FORMATS),
            *((f"stream {name}", self._try_stream) for name in STREAM_FORMATS),
            ("command", self._try_command),
        ]

    def try_one(self) -> None:
        """One input through one target; raises AssertionError where a rule is broken."""
        name, target = self._random.choice(self._targets)
        self.by_target[name] += 1
        target(name.partition(" ")[2])

    # --- inputs ---

    def _input(self, seeds: list[bytes]) -> bytes:
        chance = self._random.random()
        if chance < 0.1:
            return self._random.randbytes(self._random.randrange(400))
        content = bytearray(b"".join(self._random.choices(seeds, k=self._random.randint(1, 3))))
        for _ in range(0 if chance < 0.25 else self._random.randint(1, 4)):
            self._damage(content)
        return bytes(content)

    def _damage(self, content: bytearray) -> None:
        """One change at a random place."""
        at = self._random.randrange(len(content) + 1)
        length = self._random.choice((1, 1, 2, 8, 64))
        match self._random.randrange(6):
            case 0 if at < len(content):
                content[at] ^= 1 << self._random.randrange(8)
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[max(0, at - length) : at]
            case 3:
                content[at:at] = self._random.randbytes(length)
            case 4:
                del content[at:]
            case _:
                content[at : at + length] = self._random.choice((b"\x01", b"\x04", b"\n", b"\0", b"\xff")) * length

    def _parameters(self) -> FramingParameters:
        return FramingParameters(
            line_end=self._random.choice((b"\n", b"\r\n", b"\x04", b"aa")),
            frame_bytes=self._random.choice((2, 10, 33)),
            frame_start=self._random.choice((b"", b"\xaa", b"\xaa\x55", b"00")),
            idle_gap_s=1.0,
            max_frame_bytes=self._random.choice((64, 300, 4096)),
        )

    # --- targets ---

    def _try_file(self, payload_format: str) -> None:
        content = self._input(SEEDS)
        assert recognise(content) in (None, *FORMATS)
        assert is_whole_netcdf(content) in (True, False)
        self._check(payload_format, content, frame(payload_format, content, self._parameters()))

    def _try_stream(self, payload_format: str) -> None:
        content = self._input(SEEDS)
        parameters = self._parameters()
        framer = stream_framer(payload_format, parameters)
        now_s, at, parts = 0.0, 0, list[Part]()
        has_pauses = self._random.random() < 0.5
        while at < len(content):
            length = self._random.choice((1, 3, 17, 200, 5000))
            parts += framer.feed(content[at : at + length], now_s)
            at += length
            if has_pauses:
                now_s += self._random.choice((0.0, 0.5, 1.5))
                parts += framer.idle(now_s)
                if self._random.random() < 0.05:
                    parts += framer.lose()
        parts += framer.end()
        self._check(payload_format, content, parts)
        if not has_pauses and payload_format != "file":
            whole = stream_framer(payload_format, parameters)
            found = [*whole.feed(content, 0.0), *whole.end()]
            is_same = [p for p in found if isinstance(p, Framed)] == [p for p in parts if isinstance(p, Framed)]
            assert is_same, f"expected the same observations of {payload_format} for other chunks of {content!r}"

    def _try_command(self, _: str) -> None:
        self.counts[f"command {decide_command(self._book, self._input(COMMANDS))}"] += 1

    def _check(self, payload_format: str, content: bytes, parts: list[Part]) -> None:
        joined = b"".join(part.raw for part in parts)
        assert joined == content, f"expected the bytes of the input, but got {joined!r} of {content!r}"
        for part in parts:
            if isinstance(part, Unframed):
                assert part.reason, f"expected a reason for {part.raw!r}"
                self.counts["unframed"] += 1
            elif isinstance(part, Framed):
                self.counts["framed"] += 1
                if payload_format == "vaisala-cl":
                    again = frame("vaisala-cl", part.raw)
                    assert [p.raw for p in again if isinstance(p, Framed)] == [part.raw], f"no telegram: {part.raw!r}"


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of it. growth_bytes is that of the process after its first fifth."""

    input_count: int
    seed: int
    seconds: float
    framed_count: int
    unframed_count: int
    command_counts: dict[str, int]
    by_target: dict[str, int]
    growth_bytes: int
    resident_bytes: int


def run_fuzz(count: int, seed: int, report: Callable[[str], None]) -> Summary:
    """Tries so many inputs.

    Args:
        count: How many.
        seed: Of the random numbers.
        report: Takes a line of progress.

    Raises:
        AssertionError: A rule is broken; the message has the input.
    """
    fuzzer = Fuzzer(seed)
    begun_s = time.monotonic()
    warm_bytes = highest_bytes = 0
    for number in range(1, count + 1):
        fuzzer.try_one()
        if number % max(1, count // 100) == 0:
            resident_bytes = _resident_bytes()
            if number <= count // 5:
                warm_bytes = resident_bytes
            highest_bytes = max(highest_bytes, resident_bytes)
            report(f"{number} inputs, {time.monotonic() - begun_s:.0f} s, {resident_bytes >> 10} kB resident")
    growth_bytes = highest_bytes - warm_bytes
    assert growth_bytes <= MAX_GROWTH_BYTES, f"expected memory to stay flat, but it grew by {growth_bytes} bytes"
    commands = {name: n for name, n in sorted(fuzzer.counts.items()) if name.startswith("command")}
    return Summary(
        input_count=count,
        seed=seed,
        seconds=round(time.monotonic() - begun_s, 1),
        framed_count=fuzzer.counts["framed"],
        unframed_count=fuzzer.counts["unframed"],
        command_counts=commands,
        by_target=dict(sorted(fuzzer.by_target.items())),
        growth_bytes=growth_bytes,
        resident_bytes=_resident_bytes(),
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    try:
        summary = run_fuzz(options.count, options.seed, lambda text: print(text, flush=True))
    except AssertionError as error:
        print(f"FAILED with seed {options.seed}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(summary), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
