"""Models, capacity, retries and tokens, through both clients."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from sdk_support import Connect, both_clients

from fieldpost import Tls
from fieldpost._recording.state import Recorded
from fieldpost._recording.stations import RecordingStations
from fieldpost.errors import InvalidRequestError, RejectedError, UnknownModelError
from fieldpost.testing import RecordingServer, make_prediction
from fieldpost.v1 import capacity_service_pb2, model_pb2
from fieldpost.v1.stations_service_pb2_grpc import add_StationsServicer_to_server

MANIFEST = 'analysis = "burns"\ninstrument_models = ["camera"]\n'
HEIGHT = ("atmosphere_boundary_layer_thickness", "m")


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as running:
        yield running


@both_clients
def test_a_model_is_submitted_from_a_file_in_pieces(server: RecordingServer, connect: Connect, tmp_path: Path) -> None:
    model, manifest = tmp_path / "model.onnx", tmp_path / "manifest.toml"
    model.write_bytes(bytes(range(256)) * 4096 * 3 + b"!")
    manifest.write_text(MANIFEST)
    told: list[int] = []
    with connect(server.address) as client:
        done = client.models.submit(
            model, manifest=str(manifest), sample=b"an image", provenance="trained on A", progress=told.append
        )
        again = client.models.submit(model.read_bytes(), manifest=MANIFEST)
    assert (done.model.analysis, done.model.model_version, done.is_known) == ("burns", 1, False)
    assert done.model.provenance == "trained on A" and done.model.state == model_pb2.MODEL_STATE_READY
    assert server.contents["burns", 1] == model.read_bytes()
    assert told[-1] == model.stat().st_size and len(told) == 4
    assert again.is_known and len(server.models) == 1


@both_clients
def test_the_life_of_a_version(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        for content in (b"1", b"2"):
            client.models.submit(content, manifest=MANIFEST)
        client.models.activate("burns", 1, reason="the first")
        client.models.shadow("burns", 2)
        client.models.activate("burns", 2)
        states = [(each.model_version, each.state) for each in client.models.list("burns")]
        assert states == [(1, model_pb2.MODEL_STATE_READY), (2, model_pb2.MODEL_STATE_ACTIVE)]
        assert client.models.roll_back("burns", reason="worse at night").model_version == 1
        assert client.models.retire("burns", 2).state == model_pb2.MODEL_STATE_RETIRED
        restricted = client.models.restrict("burns", 1, stations=["ward-1"], instruments=["ward-2/camera"])
        assert list(restricted.restriction.instruments) == ["ward-2/camera"]
        events = client.models.get("burns", 1).events
        assert [event.reason for event in events] == [
            "submitted",
            "the first",
            "version 2 is active now",
            "worse at night",
        ]
        assert client.models.list("other") == []


@both_clients
def test_what_is_wrong_with_models_is_said(server: RecordingServer, connect: Connect, tmp_path: Path) -> None:
    with connect(server.address) as client:
        with pytest.raises(UnknownModelError, match="burns@7"):
            client.models.get("burns", 7)
        with pytest.raises(InvalidRequestError, match="version of 1 or more"):
            client.models.activate("burns", 0)
        with pytest.raises(InvalidRequestError, match="station/instrument"):
            client.models.restrict("burns", 1, instruments="camera")
        with pytest.raises(InvalidRequestError, match="there is none at"):
            client.models.submit(tmp_path / "nothing.onnx", manifest=MANIFEST)
        with pytest.raises(InvalidRequestError, match=r"manifest\.toml"):
            client.models.submit(b"1", manifest=tmp_path / "manifest.toml")
        with pytest.raises(InvalidRequestError, match="names its analysis"):
            client.models.submit(b"1", manifest="\nanalyses = 3\n")
        with pytest.raises(RejectedError, match="no version of burns was active before"):
            client.models.roll_back("burns")


@both_clients
def test_capacity_is_told_as_the_server_tells_it(server: RecordingServer, connect: Connect) -> None:
    server.capacity.workers.append(capacity_service_pb2.WorkerCapacity(worker="local-1", device="cpu"))
    with connect(server.address) as client:
        assert client.capacity().workers[0].device == "cpu"


@both_clients
def test_failures_are_forgotten_and_nothing_else(server: RecordingServer, connect: Connect) -> None:
    for failure in ("", "too dark", "too dark"):
        prediction = make_prediction(["2025-06-01"], {HEIGHT: [1.0]})
        prediction.failure = failure
        server.add_prediction(prediction)
    with connect(server.address) as client:
        assert client.retry_predictions("another") == 0
        assert client.retry_predictions("boundary-layer-height", station="station-1") == 2
    assert [each.prediction_id for each in server.predictions] == [1]


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
    cert = (folder / "cert.pem").read_bytes()
    ssl.PEM_cert_to_DER_cert(cert.decode())
    return cert, (folder / "key.pem").read_bytes()


class AskingForToken(grpc.ServerInterceptor):
    """Lets nobody in who does not bear the token."""

    def intercept_service(self, continuation, handler_call_details):  # type: ignore[no-untyped-def]
        if ("authorization", "Bearer right") in handler_call_details.invocation_metadata:
            return continuation(handler_call_details)

        def refuse(request: object, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        return grpc.unary_unary_rpc_method_handler(refuse)


@both_clients
def test_a_token_is_borne_by_every_call_and_only_over_tls(connect: Connect, certificate: tuple[bytes, bytes]) -> None:
    cert, key = certificate
    running = grpc.server(ThreadPoolExecutor(2), interceptors=[AskingForToken()])
    add_StationsServicer_to_server(RecordingStations(Recorded(None, 10, None)), running)
    port = running.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)]))
    running.start()
    try:
        with connect(f"localhost:{port}", tls=Tls(cert), token="right") as client:
            assert client.stations() == []
        for token in ("wrong", None):
            with connect(f"localhost:{port}", tls=Tls(cert), token=token) as client:
                with pytest.raises(RejectedError, match="who are you") as caught:
                    client.stations()
                assert "token" in caught.value.hint and "right" not in str(caught.value)
    finally:
        running.stop(None).wait()
    for options in ({"token": "right"}, {"token": "", "tls": Tls(cert)}, {"token": "two words", "tls": Tls(cert)}):
        with pytest.raises(InvalidRequestError, match="token"):
            connect(f"localhost:{port}", **options)
