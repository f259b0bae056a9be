"""The uplink with real brokers that are gone, frozen or refusing, and with certificates that change."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import contextlib
import gc
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tls_support import Brokers, brokers, certificates, issue
from uplink_support import DOWN, UP, Link

from edge_agent.link import mqtt_connection as mqtt_connection_module
from edge_agent.link.failures import connecting_failed
from edge_agent.link.identity import Identity
from edge_agent.link.uplink import LinkEvent, LinkUp
from fieldpost.broker_url import parse_broker_url
from fieldpost.errors import OfflineError

CONNACK, SUBACK = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x01"

Serve = Callable[[socket.socket], object]


@pytest.fixture
def serve() -> Iterator[Callable[[Serve], str]]:
    """A listener of our own, which does with every connection what it is told; gives its URL."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(talk: Serve) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        talk(connection)
                    except OSError:
                        continue

        threads.append(threading.Thread(target=accept, daemon=True))
        threads[-1].start()
        return f"mqtt://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def until_closed(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


# --- certificates ---


@pytest.fixture
def station(certificates: Path, tmp_path: Path) -> Station:
    return Station(certificates, tmp_path / "identity")


class Station:
    """A station's folder of certificates."""

    def __init__(self, certificates: Path, folder: Path) -> None:
        self._certificates = certificates
        self.folder = folder
        folder.mkdir()

    def put(self, name: str, suffix: str = "") -> None:
        """Puts a pair there, whole, as a renewal tool does: the key first."""
        for long, short in ((".key", "k"), (".crt", "c")):
            shutil.copy2(self._certificates / f"{name}{long}", self.folder / "temporary")
            (self.folder / "temporary").replace(self.folder / f"{short}{suffix}")

    def holds(self, name: str, suffix: str = "") -> bool:
        """Whether the certificate with that suffix is that one."""
        path = self.folder / f"c{suffix}"
        return path.exists() and path.read_bytes() == (self._certificates / f"{name}.crt").read_bytes()

    def link(self, *urls: str, **settings: Any) -> Link:
        identity = Identity(self.folder / "c", self.folder / "k", "station-a")
        return Link(list(urls), ca_file=self._certificates / "stations-ca.crt", identity=identity, **settings)


@pytest.fixture
def mqtts(brokers: Brokers) -> str:
    return f"mqtts://localhost:{brokers.start(with_revocation=True)}"


pytestmark = pytest.mark.mosquitto


def test_a_renewed_certificate_is_tried_while_connected_and_promoted(
    certificates: Path, station: Station, mqtts: str
) -> None:
    issue(certificates, "renewed", common_name="station-a", ends=timedelta(days=90))
    station.put("station-a")
    with station.link(mqtts) as link:
        link.wait_for_up()
        station.put("renewed", ".new")
        link.wait_for(lambda: station.holds("renewed"))
        link.wait_for(lambda: link.uplink.alarm == "")
        assert station.holds("station-a", ".old")
        assert link.reasons() == ["the station tries its new certificate"]
        link.uplink.publish(f"{UP}/observations", b"still here")
        link.wait_for(lambda: link.uplink.acknowledged_count == 1)
        expiry_unix_s = link.uplink.certificate_expiry_unix_s
        assert expiry_unix_s is not None
        assert expiry_unix_s > time.time() + 80 * 86_400


def test_a_new_certificate_of_a_wrong_authority_is_an_alarm_and_the_old_one_goes_on(
    certificates: Path, station: Station, mqtts: str
) -> None:
    station.put("station-a")
    station.put("forged", ".new")
    with station.link(mqtts) as link:
        link.wait_for_up()
        assert "does not know the authority that signed it" in link.reasons()[0]
        assert "c.new did not connect: the broker refused the station's certificate" in link.uplink.alarm
        assert station.holds("station-a")
        # The right one heals it, and nobody waits for an hour.
        issue(certificates, "renewed", common_name="station-a")
        station.put("renewed", ".new")
        link.wait_for(lambda: station.holds("renewed") and "did not connect" not in link.uplink.alarm)
        assert station.holds("station-a", ".old")


def test_an_expired_station_connects_as_soon_as_a_new_certificate_lies_there(
    certificates: Path, station: Station, mqtts: str
) -> None:
    issue(certificates, "expired", common_name="station-a", ends=-timedelta(hours=1))
    issue(certificates, "renewed", common_name="station-a")
    station.put("expired")
    station.put("forged", ".new")
    with station.link(mqtts) as link:
        link.wait_for(lambda: len(link.reasons()) >= 3)
        # Neither connects, so they take turns.
        assert ["authority" in reason for reason in link.reasons()[:3]] == [True, False, True]
        assert "it has expired" in link.reasons()[1]
        assert "the certificate expired on" in link.uplink.alarm
        station.put("renewed", ".new")
        link.wait_for_up()
        link.wait_for(lambda: station.holds("renewed"))


def test_a_certificate_that_ends_while_connected_matters_only_at_the_next_connection(
    certificates: Path, station: Station, brokers: Brokers
) -> None:
    # Certificates count whole seconds.
    issue(certificates, "brief", common_name="station-a", ends=timedelta(seconds=2))
    station.put("brief")
    port = brokers.start()
    with station.link(f"mqtts://localhost:{port}") as link:
        link.wait_for_up()
        link.wait_for(lambda: "expired on" in link.uplink.alarm)
        link.uplink.publish(f"{UP}/observations", b"still here")
        link.wait_for(lambda: link.uplink.acknowledged_count == 1)
        brokers.process(port).kill()
        brokers.process(port).communicate()
        brokers.start(port=port)
        link.wait_for_down("the broker refused the station's certificate: it has expired")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("expired", "it has expired"),
        ("station-lost", "it was revoked"),
        ("forged", "does not know the authority that signed it"),
        ("early", "it is damaged, or not valid yet"),
        (None, "set certificate_file and key_file"),
    ],
)
def test_a_refusal_after_the_handshake_is_named(
    certificates: Path, station: Station, mqtts: str, name: str | None, words: str
) -> None:
    issue(certificates, "expired", common_name="station-a", ends=-timedelta(hours=1))
    issue(certificates, "early", common_name="station-a", begins=timedelta(hours=1))
    if name is None:
        link = Link([mqtts], ca_file=certificates / "stations-ca.crt")
    else:
        station.put(name)
        link = station.link(mqtts)
    with link:
        assert words in link.wait_for_down("the broker refused the station's certificate")


@pytest.mark.parametrize(
    ("broker", "words"),
    [
        ({"host": "localhost", "ends": -timedelta(hours=1)}, "the broker's certificate has expired"),
        ({"host": "localhost", "begins": timedelta(hours=1)}, "not yet valid: the station's clock says 20"),
        ({"host": "elsewhere"}, "made out to another name than localhost"),
        ({"host": "localhost", "authority": "another-ca"}, "signed by an unknown authority: is ca_file the right one?"),
    ],
)
def test_a_certificate_of_the_broker_that_does_not_hold_is_named(
    certificates: Path, station: Station, brokers: Brokers, broker: dict[str, Any], words: str
) -> None:
    issue(certificates, "strange", **broker)
    station.put("station-a")
    with station.link(f"mqtts://localhost:{brokers.start(broker='strange')}") as link:
        assert words in link.wait_for_down()
        assert "did not connect" not in link.uplink.alarm


def test_a_station_that_believes_it_is_1970_is_asked_for_ntp(certificates: Path) -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code = 9  # X509_V_ERR_CERT_NOT_YET_VALID
    failure = connecting_failed(error, parse_broker_url("mqtts://b"), 10.0, 120.0)
    assert "not yet valid: the station's clock says 1970-01-01: is NTP reachable?" in failure.text


def test_missing_files_stop_the_upload_and_say_so_until_they_are_there(station: Station, mqtts: str) -> None:
    with station.link(mqtts) as link:
        assert "expected to read" in link.wait_for_down()
        assert "nothing can be sent without them" in link.uplink.alarm
        station.put("station-a")
        link.wait_for_up()
        assert "nothing can be sent" not in link.uplink.alarm


# --- brokers ---


def test_a_broker_that_is_gone_or_has_no_name_leaves_its_place_to_the_next(
    mosquitto_port: int, serve: Callable[[Serve], str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        nobody = once.getsockname()[1]
    urls = [f"mqtt://127.0.0.1:{nobody}", "mqtt://no-such-name.invalid", f"mqtt://127.0.0.1:{mosquitto_port}"]
    with Link(urls) as link:
        link.wait_for_up(urls[2])
    refused, unknown = link.reasons()[:2]
    assert f"refuses connections on port {nobody}: is the broker running?" in refused
    assert "the name no-such-name.invalid" in unknown
    assert "DNS" in unknown


@pytest.mark.parametrize(
    ("code", "words"), [(1, "does not speak MQTT"), (3, "not available just now"), (5, "gives this station no access")]
)
def test_a_broker_that_refuses_the_connection_leaves_its_place_to_the_next(
    mosquitto_port: int, serve: Callable[[Serve], str], code: int, words: str
) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"\x20\x02\x00" + bytes([code]))
        until_closed(connection)

    with Link([serve(refuse), f"mqtt://127.0.0.1:{mosquitto_port}"]) as link:
        link.wait_for_up(str(mosquitto_port))
    assert words in link.reasons()[0]


def test_a_broker_that_refuses_the_subscription_leaves_its_place_to_the_next(
    mosquitto_port: int, serve: Callable[[Serve], str]
) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(CONNACK)
        connection.recv(1000)
        connection.sendall(b"\x90\x03\x00\x01\x80")
        until_closed(connection)

    with Link([serve(refuse), f"mqtt://127.0.0.1:{mosquitto_port}"]) as link:
        link.wait_for_up(str(mosquitto_port))
    assert "refused a subscription" in link.reasons()[0]
    assert f"{DOWN}/receipts" in link.reasons()[0]


def test_brokers_that_are_frozen_leave_their_place_to_the_next(
    start_mosquitto: Callable[[int], subprocess.Popen[bytes]],
    free_port: int,
    certificates: Path,
    station: Station,
    brokers: Brokers,
) -> None:
    """A stopped process: the kernel takes the connection, and nobody answers."""
    station.put("station-a")
    plain, frozen_tls, good = free_port, brokers.start(), brokers.start()
    frozen = start_mosquitto(plain)
    for process in (frozen, brokers.process(frozen_tls)):
        process.send_signal(signal.SIGSTOP)
    urls = [f"mqtt://127.0.0.1:{plain}", f"mqtts://localhost:{frozen_tls}", f"mqtts://localhost:{good}"]
    with station.link(*urls, answer_timeout_s=0.3) as link:
        link.wait_for_up(urls[2])
    assert "did not answer within 0.3 s: it hangs" in link.reasons()[0]
    assert "no answer within 0.3 s" in link.reasons()[1]


def test_a_broker_that_freezes_while_connected_is_found_within_one_and_a_half_keepalives(
    start_mosquitto: Callable[[int], subprocess.Popen[bytes]], free_port: int
) -> None:
    keepalive_s = 3
    broker = start_mosquitto(free_port)
    with Link([f"mqtt://127.0.0.1:{free_port}"], keepalive_s=keepalive_s) as link:
        link.wait_for_up()
        link.uplink.publish(f"{UP}/observations", b"one")
        link.wait_for(lambda: link.uplink.acknowledged_count == 1)
        broker.send_signal(signal.SIGSTOP)
        frozen_at_s = time.monotonic()
        assert "it hangs" in link.wait_for_down()
        assert time.monotonic() - frozen_at_s < 1.5 * keepalive_s + 2.0, "and what a busy machine takes"
        with pytest.raises(OfflineError):
            link.uplink.publish(f"{UP}/observations", b"two")
        broker.send_signal(signal.SIGCONT)
        link.wait_for_up(count=2)


def test_a_large_message_on_a_slow_link_arrives_however_long_it_takes(serve: Callable[[Serve], str]) -> None:
    bytes_per_s = 1_000_000

    def be_slow(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.recv(1000)
        connection.sendall(CONNACK)
        connection.recv(1000)
        connection.sendall(SUBACK)
        received = 0
        while content := connection.recv(bytes_per_s // 20):
            time.sleep(len(content) / bytes_per_s)
            received += len(content)
            if received >= message_bytes:  # the message; a probe is never answered here
                connection.sendall(b"\x40\x02\x00\x02")

    keepalive_s = 1
    message_bytes = 4 * keepalive_s * bytes_per_s
    with Link([serve(be_slow)], keepalive_s=keepalive_s) as link:
        link.wait_for_up()
        link.uplink.publish(f"{UP}/observations", bytes(message_bytes))
        link.wait_for(lambda: link.uplink.acknowledged_count == 1)
        assert not link.reasons()


def test_a_broker_that_does_not_acknowledge_cannot_fill_the_memory(serve: Callable[[Serve], str]) -> None:
    seen: list[int] = []

    def swallow(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(CONNACK)
        connection.recv(1000)
        connection.sendall(SUBACK)
        connection.settimeout(0.05)
        while not is_enough.is_set():
            with contextlib.suppress(TimeoutError):
                seen.append(len(connection.recv(1 << 20)))

    is_enough = threading.Event()
    with Link([serve(swallow)], max_unacknowledged_bytes=1 << 20) as link:
        link.wait_for_up()
        for _ in range(50):
            link.uplink.publish(f"{UP}/observations", bytes(100_000))
        link.uplink.publish(f"{UP}/status", b"a report is taken always", is_retained=True)
        link.wait_for(lambda: sum(seen) > 1_000_000)
        assert link.uplink.acknowledged_count == 0
        is_enough.set()
        link.wait_for_down()
    assert 1_000_000 < sum(seen) < 1_100_000


def test_reports_alone_cannot_fill_the_memory_for_a_broker_that_acknowledges_nothing(
    serve: Callable[[Serve], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(CONNACK)
        connection.recv(1000)
        connection.sendall(SUBACK)
        until_closed(connection)

    monkeypatch.setattr(mqtt_connection_module, "ACKNOWLEDGE_TIMEOUT_S", 0.2)
    with Link([serve(swallow)], max_unacknowledged_bytes=1000, keepalive_s=0) as link:
        link.wait_for_up()
        began_s = time.monotonic()
        while not link.reasons() and time.monotonic() < began_s + 5:
            with contextlib.suppress(OfflineError):
                link.uplink.publish(f"{UP}/status", bytes(600), is_retained=True)
            time.sleep(0.02)
        assert "the broker acknowledged nothing for 0.2 s" in link.reasons()[0]


def test_what_a_connection_held_in_memory_is_freed_when_the_next_one_begins(serve: Callable[[Serve], str]) -> None:
    def drop(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(CONNACK)
        connection.recv(1000)
        connection.sendall(SUBACK)
        connection.recv(1000)  # one publish, never acknowledged

    held: list[weakref.ref[Any]] = []
    gc.disable()  # reference counts alone have to do it
    try:
        with Link([serve(drop)]) as link:
            for count in (1, 2, 3):
                link.wait_for_up(count=count)
                held.append(weakref.ref(link.uplink._connection._client))  # type: ignore[union-attr]
                link.uplink.publish(f"{UP}/observations", bytes(1000))
                link.wait_for(lambda count=count: len(link.reasons()) == count)  # type: ignore[misc]
        link.wait_for(lambda: [client() for client in held] == [None] * 3)
    finally:
        gc.enable()


def test_a_broker_that_closes_before_it_answers_is_asked_for_tls(serve: Callable[[Serve], str]) -> None:
    with Link([serve(lambda connection: connection.recv(1000))]) as link:
        assert "closed the connection before it answered: does it want mqtts://?" in link.wait_for_down()


def test_something_that_does_not_speak_tls_is_named(serve: Callable[[Serve], str], certificates: Path) -> None:
    url = serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with Link([url.replace("mqtt:", "mqtts:")], ca_file=certificates / "stations-ca.crt") as link:
        assert "does not speak TLS" in link.wait_for_down()


def test_an_error_in_the_connections_thread_ends_the_connection_and_not_the_uplink(mosquitto_port: int) -> None:
    failures = 0

    def on_event(event: LinkEvent) -> None:
        nonlocal failures
        link.events.append(event)
        if isinstance(event, LinkUp) and not failures:
            failures += 1
            raise ValueError("what nobody thought of")

    link = Link([f"mqtt://127.0.0.1:{mosquitto_port}"])
    link.uplink.start(on_event)
    try:
        link.wait_for_up(count=2)
        assert "what nobody thought of" in link.reasons()[0]
    finally:
        link.uplink.stop()


def test_an_error_in_the_uplinks_own_thread_is_told_and_the_uplink_goes_on(
    mosquitto_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        nobody = once.getsockname()[1]
    failures = 0

    def on_event(event: LinkEvent) -> None:
        nonlocal failures
        link.events.append(event)
        if not failures:
            failures += 1
            raise MemoryError("what nobody thought of")

    link = Link([f"mqtt://127.0.0.1:{nobody}", f"mqtt://127.0.0.1:{mosquitto_port}"])
    link.uplink.start(on_event)
    try:
        link.wait_for_up()
        assert "what nobody thought of" in link.reasons()[-1]
    finally:
        link.uplink.stop()
    assert [record.message for record in caplog.records] == ["uplink failed, tried again later"]


@pytest.mark.parametrize(("stayed_s", "rounds"), [(30.0, [1, 2, 3]), (0.0, [1, 1, 1])])
def test_a_broker_that_takes_us_and_throws_us_out_at_once_is_called_ever_more_rarely(
    serve: Callable[[Serve], str], stayed_s: float, rounds: list[int]
) -> None:
    """As where two stations have one name; each handshake of theirs would cost a metered link 5 kB a second."""

    def throw_out(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(CONNACK)
        connection.recv(1000)
        connection.sendall(SUBACK)

    called: list[int] = []

    def note(failure_count: int, jitter: float) -> float:
        called.append(failure_count)
        return 0.02

    with Link([serve(throw_out)], stayed_s=stayed_s, backoff=note) as link:
        link.wait_for(lambda: len(called) >= 3)
        assert sum(isinstance(event, LinkUp) for event in link.events) >= 3
    assert called[:3] == rounds


# --- the end ---


def test_stopping_waits_for_nobody_longer_than_three_seconds(
    start_mosquitto: Callable[[int], subprocess.Popen[bytes]], free_port: int
) -> None:
    broker = start_mosquitto(free_port)
    with Link([f"mqtt://127.0.0.1:{free_port}"]) as link:
        link.wait_for_up()
        broker.send_signal(signal.SIGSTOP)
        # More than the kernel takes, so that not even the goodbye can be written.
        for _ in range(80):
            link.uplink.publish(f"{UP}/observations", bytes(100_000))
        began_s = time.monotonic()
        link.uplink.stop()
        assert time.monotonic() - began_s < 4.2, "3 s, and what a busy machine takes"
    assert not link.uplink._thread.is_alive()
    broker.send_signal(signal.SIGCONT)


def test_stopping_does_not_wait_for_an_attempt_that_hangs(serve: Callable[[Serve], str], certificates: Path) -> None:
    ended = threading.Event()
    url = serve(lambda connection: ended.wait(20)).replace("mqtt:", "mqtts:")
    link = Link([url], ca_file=certificates / "stations-ca.crt", answer_timeout_s=4.5)
    link.uplink.start(link.events.append)
    time.sleep(0.2)  # within the handshake; nothing outside tells when
    began_s = time.monotonic()
    link.uplink.stop()
    assert time.monotonic() - began_s < 4.2, "3 s, and what a busy machine takes"
    link.uplink._thread.join(5)
    ended.set()
    assert not link.uplink._thread.is_alive()


def test_the_goodbye_waits_for_what_was_published_last(mosquitto_port: int) -> None:
    with Link([f"mqtt://127.0.0.1:{mosquitto_port}"]) as link:
        link.wait_for_up()
        for _ in range(20):
            link.uplink.publish(f"{UP}/observations", bytes(10_000))
    assert link.uplink.acknowledged_count == 20
    assert link.reasons() == ["the station closed the connection"]


def test_whoever_is_told_that_the_link_is_up_may_publish_at_once(mosquitto_port: int) -> None:
    refused: list[OfflineError] = []
    for _ in range(20):
        link = Link([f"mqtt://127.0.0.1:{mosquitto_port}"])

        def publish(event: LinkEvent, link: Link = link) -> None:
            link.events.append(event)
            if isinstance(event, LinkUp):
                try:
                    link.uplink.publish(f"{UP}/observations", b"")
                except OfflineError as error:
                    refused.append(error)

        link.uplink.start(publish)
        link.wait_for_up()
        link.uplink.stop()
    assert not refused
