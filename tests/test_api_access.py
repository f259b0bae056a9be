"""Who may call what: the table by itself, and real certificates and tokens at a real port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from api_support import Running, Stubs, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server_support import make_bundle
from tls_support import channel_credentials, issue, make_authority

from fieldpost.errors import InvalidRequestError, NotAllowedError
from fieldpost.v1 import (
    capacity_service_pb2,
    inference_service_pb2,
    predictions_service_pb2,
    stations_service_pb2,
)
from server.api import access
from server.api.access import LOCAL, Caller, Role, UnknownCallerError, check_call, check_sender, roles_for
from server.api.access_file import make_token, parse_access_file
from server.api.credentials import Listen, is_loopback

DENIED, UNKNOWN, OK = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK
SERVICES = ("Ingest", "Observations", "Predictions", "Inference", "Models", "Capacity", "Stations", "Archive")


def all_methods() -> list[str]:
    from google.protobuf import descriptor_pool

    from fieldpost.v1 import (  # noqa: F401
        archive_service_pb2,
        ingest_service_pb2,
        models_service_pb2,
        observations_service_pb2,
    )

    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(f"fieldpost.v1.{name}") for name in SERVICES]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def may(*roles: Role) -> set[str]:
    caller, allowed = Caller("x", frozenset(roles)), set()
    for method in all_methods():
        try:
            check_call(caller, method)
            allowed.add(method.removeprefix("/fieldpost.v1."))
        except NotAllowedError:
            pass
    return allowed


def test_every_method_is_somebodys() -> None:
    assert all(roles_for(method) for method in all_methods())
    assert not roles_for("/fieldpost.v1.Surprise/Do")


def test_a_station_may_send_and_nothing_else() -> None:
    assert may(Role.STATION) == {"Ingest/Send", "Ingest/Upload"}


def test_an_operator_may_do_everything_and_a_reader_changes_nothing() -> None:
    everything = {each.removeprefix("/fieldpost.v1.") for each in all_methods()}
    changing = {"Ingest/Send", "Ingest/Upload", "Predictions/Retry", "Stations/Command"}
    changing |= {f"Models/{each}" for each in ("Submit", "SetState", "RollBack", "Restrict")}
    assert may(Role.OPERATOR) == everything
    assert may(Role.READER) == everything - changing


def test_nobody_may_ask_for_health_alone() -> None:
    check_call(None, "/grpc.health.v1.Health/Check")
    for method in (*all_methods(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
        for caller in (None, Caller("stranger", frozenset())):
            with pytest.raises(UnknownCallerError):
                check_call(caller, method)


def test_a_station_sends_as_itself_and_an_operator_as_any() -> None:
    station = Caller("lindenberg", frozenset({Role.STATION}))
    check_sender(station, ["lindenberg", "lindenberg"])
    check_sender(LOCAL, ["lindenberg", "magurele"])
    with pytest.raises(NotAllowedError, match="magurele"):
        check_sender(station, ["lindenberg", "magurele"])


def test_a_token_made_here_is_found_again_and_no_other() -> None:
    token, entry = make_token('anna "a"', "operators")
    parsed = parse_access_file(entry, "access.toml")
    assert parsed.find_token(token) == Caller('anna "a"', frozenset({Role.OPERATOR}))
    assert parsed.find_token(token + "x") is None
    assert token not in entry


@pytest.mark.parametrize(
    "text",
    [
        "readers = 3",
        "[[readers]]",
        '[[readers]]\ncertificate = ""',
        '[[readers]]\nname = "a"\ntoken_sha256 = "abc"',
        '[[writers]]\ncertificate = "a"',
        '[[readers]]\ncertificate = "a"\nname = "b"\ntoken_sha256 = "' + "0" * 64 + '"',
        "not toml",
        "".join(f'[[readers]]\nname = "{name}"\ntoken_sha256 = "{"0" * 64}"\n' for name in "ab"),
    ],
)
def test_a_wrong_access_file_is_refused_without_telling_digests(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"access\.toml") as caught:
        parse_access_file(text, "access.toml")
    assert "0" * 64 not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:0", True),
        ("[::1]:50051", True),
        ("unix:/run/fieldpost.sock", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("fieldpost.example.org:50051", False),
        (":50051", False),
        ("192.168.1.1:50051", False),
    ],
)
def test_only_loopback_is_loopback(address: str, is_local: bool) -> None:
    assert is_loopback(address) is is_local


A, B = Path("a"), Path("b")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"grpc_address": "0.0.0.0:1"}, "grpc_cert_file and grpc_key_file"),
        ({"grpc_address": "0.0.0.0:1", "grpc_cert_file": A}, "grpc_key_file"),
        ({"grpc_address": "0.0.0.0:1", "grpc_cert_file": A, "grpc_key_file": B}, "grpc_client_ca_file or access_file"),
        ({"grpc_address": "127.0.0.1:1", "access_file": A}, "grpc_cert_file"),
        (
            {
                "grpc_address": "0.0.0.0:1",
                "grpc_cert_file": A,
                "grpc_key_file": B,
                "access_file": A,
                "grpc_token_address": "0.0.0.0:2",
            },
            "grpc_client_ca_file",
        ),
    ],
)
def test_an_open_port_without_tls_is_refused_and_the_settings_are_named(
    settings: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Listen(**settings)  # type: ignore[arg-type]
    assert named in f"{caught.value} {caught.value.hint}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "stations-ca")
    make_authority(folder, "another-ca")
    issue(folder, "server", host="localhost")
    for name in ("lindenberg", "institute", "anna", "stranger"):
        issue(folder, name)
    issue(folder, "old", common_name="anna", begins=timedelta(days=-3), ends=timedelta(days=-1))
    issue(folder, "forged", common_name="anna", authority="another-ca")
    return folder


READERS = '[[readers]]\ncertificate = "institute"\n'
OPERATORS = '[[operators]]\ncertificate = "anna"\n'


def run_secured(
    folder: Path,
    certificates: Path,
    scenario: Callable[[Running], Awaitable[None]],
    *,
    access_text: str = READERS + OPERATORS,
    with_client_ca: bool = True,
    server: str = "server",
    token_address: str = "",
) -> None:
    (folder / "access.toml").write_text(access_text)
    listen = Listen(
        "localhost:0",
        certificates / f"{server}.crt",
        certificates / f"{server}.key",
        certificates / "stations-ca.crt" if with_client_ca else None,
        token_address,
        folder / "access.toml",
    )

    async def main() -> None:
        async with serving(folder, listen=listen) as running:
            await asyncio.wait_for(scenario(running), 30)

    asyncio.run(main())


async def code_of(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        assert "lindenberg" not in (error.details() or "")  # nothing is told to who may not know
        return error.code()
    return OK


def test_each_certificate_may_what_its_role_may(tmp_path: Path, certificates: Path) -> None:
    async def scenario(running: Running) -> None:
        stations, retry = stations_service_pb2.ListStationsRequest(), predictions_service_pb2.RetryPredictionsRequest
        expected = {
            "lindenberg": (DENIED, DENIED),
            "institute": (OK, DENIED),
            "anna": (OK, OK),
            "stranger": (UNKNOWN, UNKNOWN),
        }
        found = {}
        for name in expected:
            async with running.connect(channel_credentials(certificates, name)) as stubs:
                found[name] = (
                    await code_of(stubs.stations.List(stations)),
                    await code_of(stubs.predictions.Retry(retry(analysis="height"))),
                )
        assert found == expected

    run_secured(tmp_path, certificates, scenario)


def test_a_station_sends_its_own_and_not_anothers(tmp_path: Path, certificates: Path) -> None:
    async def scenario(running: Running) -> None:
        async with running.connect(channel_credentials(certificates, "lindenberg")) as stubs:
            assert len(await stubs.send(make_bundle(1), make_bundle(2))) == 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stubs.send(make_bundle(3), make_bundle(4, station="magurele"))
            assert caught.value.code() is DENIED
            assert "magurele" in (caught.value.details() or "")
        async with running.connect(channel_credentials(certificates, "institute")) as stubs:
            assert await code_of(stubs.send(make_bundle(5))) is DENIED

    run_secured(tmp_path, certificates, scenario)


@pytest.mark.parametrize("shown", ["forged", "old", None])
def test_a_wrong_or_missing_certificate_gets_no_connection(
    tmp_path: Path, certificates: Path, shown: str | None
) -> None:
    async def scenario(running: Running) -> None:
        async with running.connect(channel_credentials(certificates, shown)) as stubs:
            call = stubs.stations.List(stations_service_pb2.ListStationsRequest(), timeout=10)
            assert await code_of(call) is grpc.StatusCode.UNAVAILABLE

    run_secured(tmp_path, certificates, scenario)


def test_tokens_are_known_or_not(tmp_path: Path, certificates: Path) -> None:
    reader, reader_entry = make_token("institute", "readers")
    operator, operator_entry = make_token("anna", "operators")

    async def scenario(running: Running) -> None:
        stations, retry = stations_service_pb2.ListStationsRequest(), predictions_service_pb2.RetryPredictionsRequest
        expected = {reader: (OK, DENIED), operator: (OK, OK), "guess": (UNKNOWN, UNKNOWN), None: (UNKNOWN, UNKNOWN)}
        found = {}
        for token in expected:
            async with running.connect(channel_credentials(certificates, None, token=token)) as stubs:
                found[token] = (
                    await code_of(stubs.stations.List(stations)),
                    await code_of(stubs.predictions.Retry(retry(analysis="height"))),
                )
        assert found == expected

    entries = f"{reader_entry}\n{operator_entry}\n"
    run_secured(tmp_path, certificates, scenario, access_text=entries, with_client_ca=False)


def test_a_second_port_takes_tokens_while_the_first_insists_on_certificates(
    tmp_path: Path, certificates: Path, free_port: int
) -> None:
    token, entry = make_token("institute", "readers")

    async def scenario(running: Running) -> None:
        stations = stations_service_pb2.ListStationsRequest()
        with_token = channel_credentials(certificates, None, token=token)
        async with running.connect(with_token) as stubs:
            assert await code_of(stubs.stations.List(stations, timeout=10)) is grpc.StatusCode.UNAVAILABLE
        async with running.connect(channel_credentials(certificates, "anna")) as stubs:
            assert await code_of(stubs.stations.List(stations)) is OK
        async with Stubs(grpc.aio.secure_channel(f"localhost:{free_port}", with_token)) as stubs:
            assert await code_of(stubs.stations.List(stations)) is OK

    token_address = f"localhost:{free_port}"
    run_secured(tmp_path, certificates, scenario, access_text=OPERATORS + entry, token_address=token_address)


def test_a_certificate_means_nothing_where_none_is_asked_for(tmp_path: Path, certificates: Path) -> None:
    async def scenario(running: Running) -> None:
        for name in ("anna", "forged"):
            async with running.connect(channel_credentials(certificates, name)) as stubs:
                assert await code_of(stubs.stations.List(stations_service_pb2.ListStationsRequest())) is UNKNOWN

    run_secured(tmp_path, certificates, scenario, with_client_ca=False)


def test_who_is_taken_out_of_the_file_may_nothing_more_not_even_in_an_open_stream(
    tmp_path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(running: Running) -> None:
        async with running.connect(channel_credentials(certificates, "institute")) as stubs:
            watch = stubs.predictions.Watch(predictions_service_pb2.WatchPredictionsRequest(after_prediction_id=0))
            await watch.read()
            (tmp_path / "access.toml").write_text("[[readers")  # half-way through an edit: the last right one holds
            await asyncio.sleep(1.1)
            assert await code_of(stubs.capacity.Get(capacity_service_pb2.GetCapacityRequest())) is OK
            (tmp_path / "access.toml").write_text(OPERATORS)
            async with asyncio.timeout(20):
                while await code_of(stubs.capacity.Get(capacity_service_pb2.GetCapacityRequest())) is OK:
                    await asyncio.sleep(0.1)
            async with running.connect(channel_credentials(certificates, "lindenberg")) as station:
                await station.send(make_bundle(1))
            await running.predict(1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await watch.read()
            assert caught.value.code() is UNKNOWN

    with caplog.at_level(logging.ERROR):
        run_secured(tmp_path, certificates, scenario)
    assert "access file refused" in caplog.text


def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path, certificates: Path) -> None:
    issue(certificates, "renewed", host="localhost", begins=timedelta(days=-2), ends=timedelta(days=-1))

    async def scenario(running: Running) -> None:
        health = health_pb2.HealthCheckRequest()
        async with running.connect(channel_credentials(certificates, "anna")) as stubs:
            call = health_pb2_grpc.HealthStub(stubs.channel).Check(health, timeout=10)
            assert await code_of(call) is grpc.StatusCode.UNAVAILABLE  # it is over
        issue(certificates, "renewed", host="localhost")
        async with running.connect(channel_credentials(certificates, "anna")) as stubs:
            assert await code_of(health_pb2_grpc.HealthStub(stubs.channel).Check(health, timeout=10)) is OK

    run_secured(tmp_path, certificates, scenario, server="renewed")


def test_health_is_for_all_and_reflection_for_readers(tmp_path: Path, certificates: Path) -> None:
    async def reflect(stubs: Stubs) -> None:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for _ in reflection_pb2_grpc.ServerReflectionStub(stubs.channel).ServerReflectionInfo(iter([request])):
            pass

    async def scenario(running: Running) -> None:
        expected = {"stranger": (OK, UNKNOWN), "lindenberg": (OK, DENIED), "institute": (OK, OK)}
        found = {}
        for name in expected:
            async with running.connect(channel_credentials(certificates, name)) as stubs:
                health = health_pb2_grpc.HealthStub(stubs.channel).Check(health_pb2.HealthCheckRequest())
                found[name] = (await code_of(health), await code_of(reflect(stubs)))
        assert found == expected

    run_secured(tmp_path, certificates, scenario)


def test_a_reader_with_a_certificate_may_predict(tmp_path: Path, certificates: Path) -> None:
    async def scenario(running: Running) -> None:
        request = inference_service_pb2.PredictRequest(analysis="height", item={"payload": b"four"})
        async with running.connect(channel_credentials(certificates, "institute")) as stubs:
            assert (await stubs.inference.Predict(request)).result.variables[0].values[0] == 4.0
        async with running.connect(channel_credentials(certificates, "lindenberg")) as stubs:
            assert await code_of(stubs.inference.Predict(request)) is DENIED

    run_secured(tmp_path, certificates, scenario)


def test_a_key_of_another_certificate_is_refused_at_the_start(tmp_path: Path, certificates: Path) -> None:
    async def main() -> None:
        listen = Listen(
            "localhost:0", certificates / "server.crt", certificates / "anna.key", certificates / "stations-ca.crt"
        )
        with pytest.raises(InvalidRequestError, match="another's"):
            async with serving(tmp_path, listen=listen):
                pass

    asyncio.run(main())


def test_the_table_names_no_method_that_does_not_exist() -> None:
    methods = [*all_methods(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
    for prefix, _ in access.TABLE:
        assert any(method.startswith(prefix) for method in methods), prefix
