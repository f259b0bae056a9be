"""What delivery cannot be faster than: the same bundles moved without being stored, and stored without being moved.

Each floor is a function that takes the bundles and returns observations per second. Both ends of a floor are
processes of their own, as both ends of the real thing are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fieldpost.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from fieldpost.v1 import observation_pb2 as pb

TOPIC = "floor/observations"
BUNDLES_IN_FLIGHT = 16
_CONTEXT = multiprocessing.get_context("spawn")


def paho_to_paho(port: int, bundles: Sequence[bytes], observation_count: int) -> float:
    """Bare paho to bare paho over a running broker, QoS 1 on both sides, nothing parsed, nothing stored."""
    ours, theirs = _CONTEXT.Pipe()
    receiver = _CONTEXT.Process(target=_receive, args=(theirs, port, len(bundles)), daemon=True)
    receiver.start()
    ours.recv()  # subscribed
    client = _client(port)
    room = threading.Semaphore(BUNDLES_IN_FLIGHT)
    client.on_publish = lambda *_: room.release()
    client.loop_start()
    started = time.perf_counter()
    for bundle in bundles:
        room.acquire()
        client.publish(TOPIC, bundle, qos=1)
    ours.recv()  # all there
    took = time.perf_counter() - started
    client.disconnect()
    client.loop_stop()
    receiver.join()
    return observation_count / took


def _client(port: int) -> mqtt.Client:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    client.max_inflight_messages_set(BUNDLES_IN_FLIGHT)
    client.connect("127.0.0.1", port)
    return client


def _receive(pipe: Connection, port: int, count: int) -> None:
    client = _client(port)
    left = [count]

    def on_message(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            pipe.send(True)
            client.disconnect()

    client.on_message = on_message
    client.on_subscribe = lambda *_: pipe.send(True)
    client.subscribe(TOPIC, 1)
    client.loop_forever()


def grpc_echo(bundles: Sequence[pb.Bundle], observation_count: int) -> float:
    """A bidirectional stream of the same bundles to a server that parses each, and sends it back."""
    ours, theirs = _CONTEXT.Pipe()
    server = _CONTEXT.Process(target=_serve_echo, args=(theirs,), daemon=True)
    server.start()
    with grpc.insecure_channel(
        f"127.0.0.1:{ours.recv()}", options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        echo = channel.stream_stream(
            "/floor.Floor/Echo",
            request_serializer=ingest_service_pb2.SendRequest.SerializeToString,
            response_deserializer=ingest_service_pb2.SendRequest.FromString,
        )
        requests = (ingest_service_pb2.SendRequest(bundle=bundle) for bundle in bundles)
        started = time.perf_counter()
        for _ in echo(requests):
            pass
        took = time.perf_counter() - started
    ours.send(True)
    server.join()
    return observation_count / took


def _serve_echo(pipe: Connection) -> None:
    import asyncio

    async def echo(requests: Any, _context: Any) -> Any:
        async for request in requests:
            yield request

    async def serve() -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        handler = grpc.stream_stream_rpc_method_handler(
            echo,
            request_deserializer=ingest_service_pb2.SendRequest.FromString,
            response_serializer=ingest_service_pb2.SendRequest.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor.Floor", {"Echo": handler}),))
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await asyncio.to_thread(pipe.recv)
        await server.stop(0)

    asyncio.run(serve())


def segment_append(folder: Path, bundles: Sequence[pb.Bundle], observation_count: int) -> float:
    """The same bundles, serialized, appended to one file, each with its fdatasync; no database, no network."""
    file = os.open(folder / "floor.seg", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    started = time.perf_counter()
    for bundle in bundles:
        os.write(file, b"".join(each.SerializeToString() for each in bundle.observations))
        os.fdatasync(file)
    took = time.perf_counter() - started
    os.close(file)
    return observation_count / took


def send_over_grpc(address: str, bundles: Sequence[pb.Bundle], observation_count: int) -> tuple[float, int]:
    """The real thing, with the same client as the echo: observations per second, and how many receipts promised."""
    held = 0
    with grpc.insecure_channel(address) as channel:
        requests: Iterator[Any] = (ingest_service_pb2.SendRequest(bundle=bundle) for bundle in bundles)
        started = time.perf_counter()
        for answer in ingest_service_pb2_grpc.IngestStub(channel).Send(requests):
            held += sum(each.last_sequence - each.first_sequence + 1 for each in answer.receipt.held_ranges)
        took = time.perf_counter() - started
    return observation_count / took, held
