"""Both clients against a real gRPC server, which is stopped and started again where a failure is wanted."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from sdk_support import AsyncInBlockingTests, Connect, until_online

from fieldpost import AsyncClient, Client, Outbox, SendReport, Tls
from fieldpost._sending import BUNDLE_MAX_COUNT, BUNDLES_IN_FLIGHT
from fieldpost._status import ERRORS, error_for
from fieldpost.errors import (
    BrokenStateError,
    FieldpostError,
    InvalidRequestError,
    OfflineError,
    OverloadedError,
    RejectedError,
    TryAgainError,
    UnknownInstrumentError,
)
from fieldpost.testing import RecordingServer, make_prediction
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from fieldpost.v1 import stations_service_pb2 as stations_pb2

HEIGHT = ("atmosphere_boundary_layer_thickness", "m")


@pytest.fixture(params=[Client, AsyncInBlockingTests], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Connect:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as running:
        yield running


def items(count: int, size: int = 10) -> list[tuple[str, bytes, None]]:
    return [("ceilometer", n.to_bytes(4, "big") * size, None) for n in range(count)]


def test_everything_that_is_sent_is_held_in_order(server: RecordingServer, connect: Connect) -> None:
    count = BUNDLE_MAX_COUNT * (BUNDLES_IN_FLIGHT + 2) + 1  # more bundles than may be on the way at once
    with connect(server.address) as client:
        report = client.send(Outbox("station-1").number(items(count)))
    assert (report.sent_count, report.held_count, report.duplicate_count) == (count, count, 0)
    assert report.refused == () and report.undecided == {}
    assert [each.header.sequence for each in server.observations] == list(range(1, count + 1))


def test_sending_nothing_is_no_error(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        assert client.send([]).sent_count == 0


def test_sending_again_under_the_same_identity_stores_nothing_twice(server: RecordingServer, connect: Connect) -> None:
    outbox = Outbox("station-1")
    observations = list(outbox.number(items(100)))
    with connect(server.address) as client:
        client.send(observations[:70])
        report = client.send(observations)
    assert (report.held_count, report.duplicate_count) == (100, 70)
    assert len(server.observations) == 100


def test_refusals_are_in_the_report_and_the_rest_is_held(connect: Connect) -> None:
    with RecordingServer(registered=frozenset({"station-1/ceilometer"})) as server, connect(server.address) as client:
        outbox = Outbox("station-1")
        good, other, broken = outbox.number(
            [("ceilometer", b"1", None), ("camera", b"2", None), ("ceilometer", b"3", None)]
        )
        broken.payload = b"4"
        report = client.send([good, other, broken])
    assert report.held_count == 1
    assert [(no.sequence, no.reason) for no in report.refused] == [
        (2, receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT),
        (3, receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH),
    ]
    assert "not registered" in report.refused[0].detail


def test_other_bytes_under_a_held_identity_are_refused(server: RecordingServer, connect: Connect) -> None:
    epoch = "0" * 32
    with connect(server.address) as client:
        client.send([Outbox("station-1", epoch=epoch).observation("ceilometer", b"first")])
        report = client.send([Outbox("station-1", epoch=epoch).observation("ceilometer", b"other")])
    assert [no.reason for no in report.refused] == [receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT]
    assert report.held_count == 0


def test_a_bundle_that_no_receipt_can_name_is_a_rejected_request(server: RecordingServer, connect: Connect) -> None:
    observation = Outbox("station-1").observation("ceilometer", b"x")
    observation.header.epoch = "not an epoch"
    with connect(server.address) as client, pytest.raises(RejectedError, match="epoch of 32 hexadecimal digits"):
        client.send([observation])


def test_an_observation_above_the_four_mebibytes_of_grpc_is_sent(server: RecordingServer, connect: Connect) -> None:
    noise = bytes(range(256)) * 4 * 1024 * 6
    observation = Outbox("station-1").observation("camera", noise)
    observation.payload, observation.header.payload_encoding = noise, pb.PAYLOAD_ENCODING_IDENTITY
    with connect(server.address) as client:
        assert client.send([observation]).held_count == 1


def test_send_each_gives_a_receipt_for_each_bundle(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        receipts = list(client.send_each(Outbox("station-1").number(items(BUNDLE_MAX_COUNT + 1))))
    assert [(r.held_ranges[0].first_sequence, r.held_ranges[-1].last_sequence) for r in receipts] == [
        (1, BUNDLE_MAX_COUNT),
        (BUNDLE_MAX_COUNT + 1, BUNDLE_MAX_COUNT + 1),
    ]


def test_an_error_of_the_callers_own_source_comes_through_as_it_is(server: RecordingServer, connect: Connect) -> None:
    def source() -> Iterator[pb.Observation]:
        yield from Outbox("station-1").number(items(BUNDLE_MAX_COUNT))
        raise OSError("the disk is gone")

    with connect(server.address) as client:
        with pytest.raises(OSError, match="the disk is gone"):
            client.send(source())
        assert client.stations() == []  # and the connection is still good


def test_a_source_runs_in_the_thread_of_its_caller(server: RecordingServer) -> None:
    threads = set()

    def source() -> Iterator[pb.Observation]:
        for observation in Outbox("station-1").number(items(3)):
            threads.add(threading.current_thread())
            yield observation

    with Client(server.address) as client:
        client.send(source())
    assert threads == {threading.current_thread()}


def test_an_abandoned_send_leaves_no_thread_behind(server: RecordingServer) -> None:
    with Client(server.address) as client:
        client.stations()  # the threads of the connection itself are there now
        before = set(threading.enumerate())
        receipts = client.send_each(Outbox("station-1").number(items(BUNDLE_MAX_COUNT * 20)))
        next(receipts)
        of_the_send = [each for each in threading.enumerate() if each not in before and "recording" not in each.name]
        assert of_the_send
        receipts.close()  # type: ignore[attr-defined]
        for thread in of_the_send:
            thread.join(timeout=10)
        assert not any(thread.is_alive() for thread in of_the_send)


def test_an_asynchronous_source_is_sent_as_it_comes(server: RecordingServer) -> None:
    async def source() -> AsyncIterator[tuple[str, bytes, None]]:
        for item in items(BUNDLE_MAX_COUNT + 1):
            await asyncio.sleep(0)
            yield item

    async def run() -> SendReport:
        async with AsyncClient(server.address) as client:
            return await client.send(Outbox("station-1").number_async(source()))

    assert asyncio.run(run()).held_count == BUNDLE_MAX_COUNT + 1


def test_a_server_that_is_not_there_is_an_offline_error_that_says_where(connect: Connect, free_port: int) -> None:
    with connect(f"127.0.0.1:{free_port}") as client:
        for ask in (client.stations, client.predictions, lambda: client.send(Outbox("s").number(items(1)))):
            with pytest.raises(OfflineError, match=f"127.0.0.1:{free_port}") as caught:
                ask()
            assert isinstance(caught.value.__cause__, grpc.RpcError)
            assert "try again" in caught.value.hint


def test_a_send_that_breaks_is_finished_by_sending_the_same_again(server: RecordingServer, connect: Connect) -> None:
    observations = list(Outbox("station-1").number(items(BUNDLE_MAX_COUNT * 12)))

    def breaking() -> Iterator[pb.Observation]:
        for number, observation in enumerate(observations):
            if number == BUNDLE_MAX_COUNT * 10:
                server.stop()
            yield observation

    with connect(server.address) as client:
        with pytest.raises(OfflineError):
            client.send(breaking())
        assert 0 < len(server.observations) < len(observations)
        server.start()
        report = until_online(lambda: client.send(observations))
    assert report.held_count == len(observations)
    assert report.duplicate_count > 0
    assert len(server.observations) == len(observations)


def test_predictions_come_page_by_page_and_none_is_missing(connect: Connect) -> None:
    with RecordingServer(page_size_max=7) as server, connect(server.address) as client:
        for minute in range(50):
            server.add_prediction(make_prediction([f"2025-06-01T12:{minute:02}Z"], {HEIGHT: [float(minute)]}))
        assert client.predictions()[HEIGHT[0]].tolist() == list(range(50))


def test_predictions_are_those_that_were_asked_for(server: RecordingServer, connect: Connect) -> None:
    for station in ("a", "b"):
        for version in (1, 2):
            for hour in (10, 11, 12):
                server.add_prediction(
                    make_prediction([f"2025-06-01T{hour}:00Z"], {HEIGHT: [1.0]}, station=station, model_version=version)
                )
    with connect(server.address) as client:
        table = client.predictions(
            station="a",
            analysis="boundary-layer-height",
            model_version=2,
            since="2025-06-01T11:00Z",
            until="2025-06-01T12:00Z",
        )
        assert table.prediction_id.tolist() == [5]
        with pytest.raises(InvalidRequestError):
            client.predictions(instrument="ceilometer")


def test_stations_come_with_their_instruments(server: RecordingServer, connect: Connect) -> None:
    server.stations.append(stations_pb2.Station(station="b", instruments=[stations_pb2.Instrument(instrument="cl51")]))
    server.stations.append(stations_pb2.Station(station="a"))
    with connect(server.address) as client:
        found = client.stations()
    assert [each.station for each in found] == ["a", "b"]
    assert found[1].instruments[0].instrument == "cl51"


class Refusing(grpc.GenericRpcHandler):
    """Answers every call with the status that is set."""

    code = grpc.StatusCode.UNKNOWN

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def refuse(request: object, context: grpc.ServicerContext) -> bytes:
            context.abort(self.code, "because")

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler_call_details.method.endswith("Send")
            else grpc.unary_unary_rpc_method_handler
        )
        return make(refuse)  # type: ignore[operator]


@pytest.fixture
def refusing() -> Iterator[tuple[Refusing, str]]:
    handler = Refusing()
    running = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield handler, f"127.0.0.1:{port}"
    running.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, OfflineError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, OfflineError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.OUT_OF_RANGE, InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, UnknownInstrumentError),
        (grpc.StatusCode.FAILED_PRECONDITION, RejectedError),
        (grpc.StatusCode.PERMISSION_DENIED, RejectedError),
        (grpc.StatusCode.ABORTED, TryAgainError),
    ],
)
def test_a_status_of_the_server_is_an_error_of_ours_for_every_kind_of_call(
    refusing: tuple[Refusing, str], connect: Connect, code: grpc.StatusCode, expected: type[FieldpostError]
) -> None:
    handler, address = refusing
    handler.code = code
    with connect(address) as client:
        for ask in (client.stations, client.predictions, lambda: client.send(Outbox("s").number(items(1)))):
            with pytest.raises(expected, match="because") as caught:
                ask()
            assert caught.value.hint


def test_an_internal_error_of_the_server_is_a_broken_state(refusing: tuple[Refusing, str], connect: Connect) -> None:
    handler, address = refusing
    handler.code = grpc.StatusCode.INTERNAL
    with connect(address) as client, pytest.raises(BrokenStateError, match="because"):
        client.stations()


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_an_error_with_a_hint(code: grpc.StatusCode) -> None:
    error = error_for(code, "details", "here:1")
    assert type(error) is ERRORS[code][0]
    assert error.hint and "here:1" in str(error) and "details" in str(error)


class Silent(grpc.GenericRpcHandler):
    """Takes every call and answers none."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def wait(requests: object, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.released.wait(30)
            yield from ()

        return grpc.stream_stream_rpc_method_handler(wait)


def test_a_server_that_takes_and_never_answers_is_given_up_after_the_timeout(connect: Connect) -> None:
    handler = Silent()
    running = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
    address = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    running.start()
    try:
        with connect(address, timeout_s=0.3) as client:
            with pytest.raises(OfflineError, match=r"within 0\.3 s, but none came"):
                client.send(Outbox("s").number(items(1)))
            with pytest.raises(OfflineError, match="deadline exceeded"):
                client.stations()
    finally:
        handler.released.set()
        running.stop(None).wait()


class EndingEarly(grpc.GenericRpcHandler):
    """Ends every call with OK and without an answer."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(()))


def test_a_stream_that_ends_before_its_receipts_is_an_offline_error(connect: Connect) -> None:
    running = grpc.server(futures.ThreadPoolExecutor(2), handlers=[EndingEarly()])
    address = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    running.start()
    try:
        with connect(address) as client, pytest.raises(OfflineError, match="a receipt for each bundle"):
            client.send(Outbox("s").number(items(BUNDLE_MAX_COUNT * 20)))
    finally:
        running.stop(None).wait()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A self-signed certificate of localhost, and its key, PEM."""
    folder: Path = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes()


def test_tls_connects_to_the_server_that_the_authority_names(
    connect: Connect, certificate: tuple[bytes, bytes]
) -> None:
    cert, key = certificate
    ssl.PEM_cert_to_DER_cert(cert.decode())  # the fixture made a certificate
    with RecordingServer(credentials=grpc.ssl_server_credentials([(key, cert)])) as server:
        with connect(server.address, tls=Tls(root_certificates=cert)) as client:
            assert client.stations() == []
        with connect(server.address) as client, pytest.raises(OfflineError):
            client.stations()


def test_a_callers_certificate_is_shown_to_a_server_that_asks_for_one(
    connect: Connect, certificate: tuple[bytes, bytes]
) -> None:
    cert, key = certificate
    strict = grpc.ssl_server_credentials([(key, cert)], root_certificates=cert, require_client_auth=True)
    with RecordingServer(credentials=strict) as server:
        with connect(server.address, tls=Tls(cert, certificate=cert, private_key=key)) as client:
            assert client.stations() == []
        with connect(server.address, tls=Tls(cert)) as client, pytest.raises(OfflineError):
            client.stations()


def test_a_private_key_is_not_shown() -> None:
    assert "secret" not in repr(Tls(private_key=b"secret"))
