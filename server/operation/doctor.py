"""Looks at a server's surroundings from all sides and says what is wrong, and what to do.

It looks with the server's own settings and, where it matters, with the server's own code: it writes a payload,
reads it back and removes it, connects to each broker with the server's certificate, and starts a worker. It can be
asked beside a running server.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from fieldpost.broker_url import BrokerUrl, parse_broker_url
from fieldpost.errors import FieldpostError
from fieldpost.findings import Finding
from fieldpost.words import count, size, span
from server.batching.batcher import Batcher
from server.models import catalogue
from server.models.files import ModelFiles
from server.queries.predictions import count_provisional
from server.settings import Settings
from server.storage.database import MIGRATIONS, open_engine
from server.storage.tables import instruments, stations
from server.workers.worker_pool import PoolPlan, open_pool

FREE_BYTES_WARN = 5 * 10**9
SYNC_WARN_S = 0.05
CERTIFICATE_WARN_DAYS = 30
CONNECT_TIMEOUT_S = 5.0
SILENT_STATION_S = 86_400.0
LOAD_TIMEOUT_S = 120.0
FORGETS_AT_REBOOT = {"tmpfs", "ramfs"}


def examine(settings: Settings, now_unix_s: float) -> Iterator[Finding]:
    """All findings, one after the other as they are found."""
    yield from _looked_at("data folder", lambda: _judge_folder(settings.data_folder))
    engine = open_engine(settings.database)
    try:
        yield from _looked_at("database", lambda: _judge_database(engine, now_unix_s))
    finally:
        engine.dispose()
    yield from _looked_at("payloads", lambda: _judge_segments(settings))
    for url in settings.mqtt_urls:
        yield from _looked_at(f"broker {url}", lambda url=url: _judge_broker(settings, url))  # type: ignore[misc]
    yield from _looked_at("gRPC", lambda: _judge_grpc(settings, now_unix_s))
    yield from _looked_at("workers", lambda: _judge_workers(settings))


def _looked_at(subject: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What cannot be looked at is a finding, and the rest is looked at all the same."""
    try:
        return list(look())
    except FieldpostError as error:
        return [Finding("FAIL", subject, str(error), error.hint)]
    except SQLAlchemyError as error:
        return [Finding("FAIL", subject, f"it cannot be asked: {error}", "is it running, and is database_url right?")]
    except OSError as error:
        hint = "is it there, and may this user use it? for an object store: are its credentials in the environment?"
        return [Finding("FAIL", subject, f"it cannot be looked at: {error}", hint)]


def _judge_folder(folder: Path) -> Iterator[Finding]:
    """Whether the disk takes what is written to it, and how fast it is sure of it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{os.getpid()}"
    took_s = []
    try:
        with probe.open("wb", buffering=0) as file:
            for _ in range(9):
                file.write(os.urandom(8192))
                started = time.perf_counter()
                os.fdatasync(file.fileno())
                took_s.append(time.perf_counter() - started)
    finally:
        probe.unlink(missing_ok=True)
    sync_s = statistics.median(took_s)
    text_ = f"{folder}: a write is sure after {sync_s * 1000:.1f} ms"
    if sync_s > SYNC_WARN_S:
        yield Finding("WARN", "disk", text_, "receipts wait for this; a disk with a battery-backed cache is faster")
    else:
        yield Finding("OK", "disk", text_)
    kind = _file_system(folder)
    if kind in FORGETS_AT_REBOOT:
        yield Finding("FAIL", "disk", f"{folder} is on {kind}, which forgets at reboot", "choose another data_folder")
    free = shutil.disk_usage(folder).free
    if free > FREE_BYTES_WARN:
        yield Finding("OK", "disk", f"{size(free)} free")
    else:
        yield Finding("WARN", "disk", f"{size(free)} free", "make room, or let old data go to the archive (hot_days)")


def _file_system(folder: Path) -> str:
    """The kind of the file system that holds the folder, as the kernel calls it."""
    place = folder.resolve()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [(Path(each[1]), each[2]) for each in mounts if place.is_relative_to(each[1].replace("\\040", " "))]
    return max(inside, key=lambda each: len(each[0].parts))[1] if inside else ""


def _judge_database(engine: Engine, now_unix_s: float) -> Iterator[Finding]:
    name = engine.url.render_as_string()
    with engine.connect() as connection:
        here = MigrationContext.configure(connection).get_current_revision()
        known = ScriptDirectory(str(MIGRATIONS))
        newest = known.get_current_head()
        if here is None:
            yield Finding("OK", "database", f"{name}: empty; the server's first start makes the tables")
            return
        if here == newest:
            yield Finding("OK", "database", f"{name}: schema {here}")
        elif here in {each.revision for each in known.walk_revisions()}:
            yield Finding("WARN", "database", f"{name}: schema {here}; the server's next start brings it to {newest}")
            return
        else:
            hint = "use the version of Fieldpost that wrote it, or a newer one"
            yield Finding("FAIL", "database", f"{name}: schema {here}, but this version knows up to {newest}", hint)
            return
        yield from _judge_durability(connection)
        yield from _judge_stations(connection, now_unix_s)
        yield from _judge_courses(connection)


def _judge_durability(connection: Connection) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        damage = connection.scalar(text("PRAGMA quick_check(1)"))
        if damage != "ok":
            yield Finding("FAIL", "database", f"it is damaged: {damage}", "stop the server and restore its backup")
        return
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        value = str(connection.scalar(text(f"SHOW {setting}")))
        if value == "off":
            hint = f"set {setting} = on in postgresql.conf: a receipt is a promise"
            yield Finding("FAIL", "database", f"{setting} is off: commits can be lost when the power fails", hint)


def _judge_stations(connection: Connection, now_unix_s: float) -> Iterator[Finding]:
    measured = func.max(instruments.c.last_measure_unix_nanos)  # what sends over gRPC has no status
    of_a_station = instruments.c.station_id == stations.c.id
    query = select(stations.c.name, stations.c.status_unix_nanos, measured).outerjoin(instruments, of_a_station)
    rows = connection.execute(query.group_by(stations.c.id).order_by(stations.c.name)).all()
    instrument_count = connection.scalar(select(func.count()).select_from(instruments)) or 0
    if not rows:
        hint = "write a registry (docs/server.md), then: fieldpost-server register stations.toml"
        yield Finding("WARN", "stations", "none is registered: all observations will be refused", hint)
        return
    yield Finding("OK", "stations", f"{count(len(rows), 'station')}, {count(instrument_count, 'instrument')}")
    silent = [name for name, *heard in rows if now_unix_s - max(each or 0 for each in heard) / 1e9 > SILENT_STATION_S]
    if silent:
        some = ", ".join(silent[:5]) + (" and more" if len(silent) > 5 else "")
        hint = "look at them: fieldpost-agent check at the station"
        yield Finding("WARN", "stations", f"{len(silent)} said nothing for {span(SILENT_STATION_S)}: {some}", hint)


def _judge_courses(connection: Connection) -> Iterator[Finding]:
    """What model versions that remember will make again, and why."""
    for key, provisional_count in count_provisional(connection).items():
        what = f"{key}: {count(provisional_count, 'prediction')} provisional, to be made again when what is missing"
        hint = "stations send it as backlog; what was lost for good is waited for an hour, while a server predicts"
        yield Finding("WARN", "predictions", f"{what} before them has come", hint)


def _judge_segments(settings: Settings) -> Iterator[Finding]:
    """Writes a payload as the server does, and reads it back."""
    from server.storage.segment_url import open_segments
    from server.storage.segments import Place

    writer, reader = open_segments(settings.segments)
    record = os.urandom(4096)
    try:
        started = time.perf_counter()
        name, (offset,) = writer.append([record])
        writer.sync()
        took_s = time.perf_counter() - started
        writer.close()
        if reader.read(Place(name, offset, len(record))) != record:
            hint = "do not trust this disk or store; restore from the archive"
            yield Finding("FAIL", "payloads", f"{settings.segments}: other bytes came back than were written", hint)
        else:
            yield Finding(
                "OK", "payloads", f"{settings.segments}: written, sure after {took_s * 1000:.1f} ms, and read"
            )
        reader.remove(name)
    finally:
        reader.close()


def _judge_broker(settings: Settings, address: str) -> Iterator[Finding]:
    url = parse_broker_url(address, ("mqtt", "mqtts", "embedded"))
    if url.is_embedded:
        yield Finding("OK", f"broker {url}", "inside the server; for one machine only")
        return
    reason = _connect_to_broker(settings, url)
    if reason:
        hint = "is it running, may this host reach it, does its ACL know the server's certificate?"
        yield Finding("FAIL", f"broker {url}", reason, hint)
    else:
        yield Finding("OK", f"broker {url}", "connected")


def _connect_to_broker(settings: Settings, url: BrokerUrl) -> str:
    """Connects once; returns why it failed, or nothing."""
    import ssl
    import threading
    from typing import Any

    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    client = mqtt.Client(CallbackAPIVersion.VERSION2, f"fieldpost-doctor-{os.getpid()}", protocol=mqtt.MQTTv311)
    answered, reasons = threading.Event(), []

    def on_connect(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        reasons.append(f"it refused: {reason}" if reason.is_failure else "")
        answered.set()

    client.on_connect = on_connect
    if url.is_tls:
        ca, certificate, key = (
            str(path) if path else None
            for path in (settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file)
        )
        client.tls_set(ca, certificate, key)
    try:
        client.connect(url.host, url.port, keepalive=10)
        client.loop_start()
        answered.wait(CONNECT_TIMEOUT_S)
    except (OSError, ssl.SSLError) as error:
        return f"no connection: {error}"
    finally:
        client.disconnect()
        client.loop_stop()
    return reasons[0] if reasons else f"it did not answer within {CONNECT_TIMEOUT_S:.0f} s"


def _judge_grpc(settings: Settings, now_unix_s: float) -> Iterator[Finding]:
    if settings.grpc_cert_file is not None:
        yield from _judge_certificate(settings.grpc_cert_file, now_unix_s)
    host, _, port = settings.grpc_address.rpartition(":")
    if port == "0":
        yield Finding("OK", "gRPC", "any free port")
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            yield _judge_taken(settings, error)
        else:
            yield Finding("OK", "gRPC", f"{settings.grpc_address} is free")


def _judge_taken(settings: Settings, error: OSError) -> Finding:
    """Whether it is the server itself that has the port."""
    address = settings.grpc_address
    if settings.grpc_cert_file is not None:
        return Finding("OK", "gRPC", f"{address} is in use; with TLS the doctor does not ask by whom")
    with grpc.insecure_channel(address) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError:
            return Finding("FAIL", "gRPC", f"{address} cannot be used: {error}", "choose another grpc_address")
    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    state = "a server is running there" if is_serving else "a server is starting or stopping there"
    return Finding("OK" if is_serving else "WARN", "gRPC", f"{address}: {state}")


def _judge_workers(settings: Settings) -> Iterator[Finding]:
    """Starts a worker, and has it load each model version at work."""
    if settings.engine != "local":
        yield Finding("OK", "workers", f"on {settings.engine}; the doctor starts none there")
    if not settings.workers and settings.devices == ["cpu"]:
        yield Finding("OK", "workers", "none here: observations wait for a server that predicts")
        return
    yield from asyncio.run(_try_models(settings))


async def _try_models(settings: Settings) -> list[Finding]:
    engine = open_engine(settings.database)
    files = ModelFiles(settings.models)
    findings = []
    plan = PoolPlan(workers=1, devices=tuple(settings.devices), threads=settings.worker_threads)
    batcher = Batcher(open_pool("local", plan))
    try:
        with engine.connect() as connection:
            for card in catalogue.find_at_work(connection) if _has_tables(connection) else []:
                batcher.add_model(catalogue.make_package(connection, files, card.key), card)
                started = time.perf_counter()
                try:
                    async with asyncio.timeout(LOAD_TIMEOUT_S):
                        await batcher.load(card.key)
                except (TimeoutError, FieldpostError) as error:
                    what = f"{card.key} ({card.state}) cannot be loaded: {error}"
                    hint = "the server's log and `fieldpost models show` say more"
                    findings.append(Finding("FAIL", "models", what, hint))
                else:
                    took_s = time.perf_counter() - started
                    findings.append(Finding("OK", "models", f"{card.key} ({card.state}) is loaded in {took_s:.1f} s"))
    finally:
        batcher.close()
        engine.dispose()
    return findings


def _has_tables(connection: Connection) -> bool:
    """Whether the database is one of ours, of this version."""
    newest = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    return MigrationContext.configure(connection).get_current_revision() == newest


def _judge_certificate(path: Path, now_unix_s: float) -> Iterator[Finding]:
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except ValueError as error:
        yield Finding("FAIL", "certificate", f"{path} holds none that can be read: {error}", "give a PEM file")
        return
    until = certificate.not_valid_after_utc
    left_s = until.timestamp() - now_unix_s
    words = f"{path}: {certificate.subject.rfc4514_string()}, until {until:%Y-%m-%d}"
    if certificate.not_valid_before_utc > datetime.fromtimestamp(now_unix_s, UTC):
        yield Finding("FAIL", "certificate", f"{words}; it is not valid yet", "is this machine's clock right?")
    elif left_s <= 0:
        yield Finding("FAIL", "certificate", f"{words}; it has expired", "renew it; the server takes it at once")
    elif left_s < CERTIFICATE_WARN_DAYS * 86_400:
        yield Finding("WARN", "certificate", f"{words}, in {span(left_s)}", "renew it; the server takes it at once")
    else:
        yield Finding("OK", "certificate", words)
