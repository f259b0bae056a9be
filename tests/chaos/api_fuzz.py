"""Malformed messages and wrong streams against every method of a real server: it answers with a status, and goes on.

    PYTHONPATH=tests python -m chaos.api_fuzz [--count 100000] [--seed N] [--address HOST:PORT --pid N]

Half of the messages are sound ones, damaged; the others are random bytes, messages of other methods, and messages whose
every field has an extreme value. Streams break off, come in a wrong order, or go on after their end. Held of all: no
status UNKNOWN or INTERNAL, the server is serving afterwards, and its process does not grow. Without --address it starts
a server of its own in another process. Prints a summary as JSON; ends with 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_support import EPOCH, make_bundle, make_observation

SERVICES = ("Ingest", "Observations", "Predictions", "Inference", "Capacity", "Stations", "Models")
CALLERS = 16
CALL_TIMEOUT_S = 0.3
MAX_GROWTH_BYTES = 24 << 20
"""So much may the process grow after its first fifth: caches of names, SQLite's, and the allocator's own moving."""
OWN_WORDS = "Internal error from Core"
"""What grpc.aio's client says where it was writing when the server ended the call; the server never says it."""
BROKEN = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)

INTEGERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**53, 2**63 - 1, -(2**63), 1_750_000_000, 9_200_000_001)
DOUBLES = (0.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"), 1e-308)
TEXTS = (
    "",
    "lindenberg",
    "cl51",
    "height",
    EPOCH,
    "0",
    "-",
    "1-1",
    "9" * 40 + "-1",
    "../../etc/passwd",
    "a'; --",
    "\0",
    "ü" * 300,
    "x" * 5000,
)
BLOBS = (b"", b"\0", b"x" * 32, bytes(range(256)) * 40, b"\x28\xb5\x2f\xfd" + b"\xff" * 20)


@dataclass
class Outcome:
    """What came of it."""

    call_count: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    growth_bytes: int = 0
    is_serving: bool = False

    @property
    def is_sound(self) -> bool:
        return not self.broken and self.is_serving and self.growth_bytes <= MAX_GROWTH_BYTES


def find_methods(names: tuple[str, ...] = SERVICES) -> list[MethodDescriptor]:
    import server.api.server  # noqa: F401  (it knows all of them)

    pool = descriptor_pool.Default()
    return [each for name in names for each in pool.FindServiceByName(f"fieldpost.v1.{name}").methods]


def fill(message: Message, chance: random.Random, depth: int = 0) -> Message:
    """Gives each field an extreme value, or none."""
    for each in message.DESCRIPTOR.fields:
        if chance.random() < 0.4 or depth > 6:
            continue
        for _ in range(chance.choice((1, 2, 20)) if each.is_repeated else 1):
            if each.type == FieldDescriptor.TYPE_MESSAGE:
                part = getattr(message, each.name)
                fill(part.add() if each.is_repeated else part, chance, depth + 1)
                if not each.is_repeated:
                    part.SetInParent()
                continue
            value = extreme(each, chance)
            if each.is_repeated:
                getattr(message, each.name).append(value)
            else:
                setattr(message, each.name, value)
    return message


def extreme(field_: FieldDescriptor, chance: random.Random) -> Any:
    if field_.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return chance.choice(BLOBS if field_.type == FieldDescriptor.TYPE_BYTES else TEXTS)
    if field_.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return chance.choice(DOUBLES)
    if field_.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field_.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM):
        return chance.choice([each for each in INTEGERS if abs(each) < 2**31])
    return chance.choice(INTEGERS)


def sound(method: MethodDescriptor, chance: random.Random) -> bytes:
    """A message that makes sense, of methods that have one; of the others a filled one."""
    made: Message = message_factory.GetMessageClass(method.input_type)()
    fields = made.DESCRIPTOR.fields_by_name
    if "bundle" in fields:
        made.bundle.CopyFrom(make_bundle(chance.randrange(1, 1000)))  # type: ignore[attr-defined]
    elif "start" in fields:
        observation = make_observation(chance.randrange(1000, 2000))
        made.start.header.CopyFrom(observation.header)  # type: ignore[attr-defined]
        made.start.encoded_bytes = len(observation.payload)  # type: ignore[attr-defined]
    elif "item" in fields or "items" in fields:
        made.analysis = "height"  # type: ignore[attr-defined]
        item = made.item if "item" in fields else made.items.add()  # type: ignore[attr-defined]
        item.payload, item.instrument_model = b"four", "cl51"
    else:
        fill(made, chance)
    return made.SerializeToString()


def damage(content: bytes, chance: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(len(made) + 1)
        match chance.randrange(4):
            case 0 if place < len(made):
                made[place] ^= 1 << chance.randrange(8)
            case 1:
                del made[place : place + chance.randrange(1, 20)]
            case 2:
                made[place:place] = chance.randbytes(chance.randrange(1, 20))
            case _:
                made[place:place] = made[: chance.randrange(1, 50)]
    return bytes(made)


def make_message(method: MethodDescriptor, methods: list[MethodDescriptor], chance: random.Random) -> bytes:
    match chance.randrange(10):
        case 0:
            return chance.randbytes(chance.choice((0, 1, 10, 100, 5000)))
        case 1:
            return sound(chance.choice(methods), chance)
        case 2 | 3:
            return fill(message_factory.GetMessageClass(method.input_type)(), chance).SerializeToString()
        case 4 | 5:
            return sound(method, chance)
        case _:
            return damage(sound(method, chance), chance)


async def call(
    channel: grpc.aio.Channel, method: MethodDescriptor, messages: list[bytes], chance: random.Random
) -> str:
    """Makes one call, in one way or another; returns its status."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    breaks_off = chance.random() < 0.1

    async def sent() -> AsyncIterator[bytes]:
        for each in messages:
            yield each
        if breaks_off:
            await asyncio.sleep(CALL_TIMEOUT_S / 3)

    way = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    made = way(path)(sent() if method.client_streaming else messages[0], timeout=CALL_TIMEOUT_S)
    try:
        if method.server_streaming:
            count = 0
            async for _ in made:
                count += 1
                if breaks_off or count >= 20:
                    made.cancel()
                    break
        elif breaks_off:
            await asyncio.sleep(0)
            made.cancel()
        else:
            await made
        return "CANCELLED" if made.cancelled() else name_status(await made.code(), await made.details())
    except asyncio.CancelledError:
        return "CANCELLED"
    except grpc.aio.AioRpcError as error:
        return name_status(error.code(), error.details())


def name_status(code: grpc.StatusCode, details: str | None) -> str:
    if details == OWN_WORDS:
        return "WRITE_REFUSED"
    return f"{code.name}: {details}" if code in BROKEN else code.name


async def attack(address: str, pid: int, count: int, seed: int, names: tuple[str, ...] = SERVICES) -> Outcome:
    """Makes so many calls, several at once."""
    methods, outcome = find_methods(names), Outcome()
    resident: list[int] = []
    async with grpc.aio.insecure_channel(address) as channel:

        async def caller(number: int) -> None:
            chance = random.Random(f"{seed}-{number}")
            while outcome.call_count < count:
                outcome.call_count += 1
                if outcome.call_count % max(1, count // 20) == 0:
                    resident.append(resident_bytes(pid))
                method = chance.choice(methods)
                messages = [make_message(method, methods, chance) for _ in range(chance.choice((1, 1, 2, 5)))]
                if method.client_streaming and chance.random() < 0.1:
                    messages = []
                status = await call(channel, method, messages, chance)
                code = status.partition(":")[0]
                outcome.codes[code] = outcome.codes.get(code, 0) + 1
                if code in {each.name for each in BROKEN} and len(outcome.broken) < 20:
                    outcome.broken.append(f"{method.full_name}: {status} <- {[each.hex()[:200] for each in messages]}")

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        check = health_pb2.HealthCheckRequest()
        answer = await health_pb2_grpc.HealthStub(channel).Check(check, timeout=10)
        outcome.is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    outcome.growth_bytes = max(0, resident_bytes(pid) - resident[len(resident) // 5])
    return outcome


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def serve(folder: Path) -> None:
    """The server that is attacked, in a process of its own."""
    from api_support import serving

    async with serving(folder) as running:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print(running.port, flush=True)
        await stop.wait()


def fuzz_own_server(count: int, seed: int) -> Outcome:
    """Starts a server, and attacks it."""
    with tempfile.TemporaryDirectory(prefix="fieldpost-fuzz-") as folder:
        command = [sys.executable, "-m", "chaos.api_fuzz", "--serve", folder]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                assert process.stdout is not None
                address = f"localhost:{int(process.stdout.readline())}"
                outcome = asyncio.run(attack(address, process.pid, count, seed))
                outcome.is_serving = outcome.is_serving and process.poll() is None
            finally:
                process.terminate()
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--address", help="a running server instead of one of its own; needs --pid")
    parser.add_argument("--pid", type=int, help="that server's process")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return 0
    if options.address:
        outcome = asyncio.run(attack(options.address, options.pid, options.count, options.seed))
    else:
        outcome = fuzz_own_server(options.count, options.seed)
    print(json.dumps({"seed": options.seed, **asdict(outcome)}, indent=1))
    return 0 if outcome.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
