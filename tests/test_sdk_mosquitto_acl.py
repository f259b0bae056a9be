"""The production configuration of deploy/mosquitto, in a real Mosquitto with real certificates."""

from __future__ import annotations

import os
import queue
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from conftest import MOSQUITTO, skip_or_fail
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy" / "mosquitto"
UP, DOWN = "fieldpost/v1/up", "fieldpost/v1/down"

pytestmark = pytest.mark.mosquitto


def openssl(*words: str, cwd: Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=cwd)


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_authority(folder: Path, name: str) -> None:
    subject = ("-x509", "-days", "2", "-subj", f"/CN={name}")
    openssl("req", *NEW_KEY, *subject, "-keyout", f"{name}.key", "-out", f"{name}.crt", cwd=folder)


def issue(folder: Path, name: str, *, authority: str = "stations-ca", host: str | None = None) -> None:
    """A certificate of that common name; for a host also with its name, as clients want it of a broker."""
    subject = f"/CN={host or name}"
    openssl("req", *NEW_KEY, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr", cwd=folder)
    extension = folder / f"{name}.ext"
    extension.write_text(f"subjectAltName=DNS:{host}\n" if host else "extendedKeyUsage=clientAuth\n")
    signer = ("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2")
    request = ("-req", "-in", f"{name}.csr", "-extfile", extension.name, "-out", f"{name}.crt")
    openssl("x509", *request, *signer, cwd=folder)


def revoke(folder: Path, *names: str) -> None:
    (folder / "index.txt").touch()
    (folder / "crlnumber").write_text("01\n")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\ndefault_crl_days=2\n"
        "certificate=stations-ca.crt\nprivate_key=stations-ca.key\n"
    )
    for name in names:
        openssl("ca", "-config", "ca.cnf", "-revoke", f"{name}.crt", cwd=folder)
    openssl("ca", "-config", "ca.cnf", "-gencrl", "-out", "stations.crl", cwd=folder)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "stations-ca")
    make_authority(folder, "another-ca")
    issue(folder, "broker", host="localhost")
    for name in ("station-a", "station-b", "station-lost", "ingest"):
        issue(folder, name)
    issue(folder, "forged", authority="another-ca", host="station-a")
    revoke(folder, "station-lost")
    return folder


def production_config(certificates: Path, port: int, data: Path, *, with_revocation: bool) -> str:
    """deploy/mosquitto/mosquitto.conf with other paths, another port, and nothing else changed."""
    text = (DEPLOY / "mosquitto.conf").read_text()
    changes = {
        "listener 8883\n": f"listener {port} 127.0.0.1\n",
        "/etc/mosquitto/certs/": f"{certificates}/",
        "/etc/mosquitto/acl\n": f"{DEPLOY / 'acl'}\n",
        "/var/lib/mosquitto/\n": f"{data}/\n",
    }
    if with_revocation:
        changes["#crlfile "] = "crlfile "
    for old, new in changes.items():
        assert old in text, f"the configuration has no {old!r}"
        text = text.replace(old, new)
    return text


Start = Callable[..., int]


@pytest.fixture
def start_broker(certificates: Path, tmp_path: Path, free_port: int) -> Iterator[Start]:
    if MOSQUITTO is None:
        skip_or_fail("mosquitto is not installed (make mosquitto)")
    running: list[subprocess.Popen[str]] = []

    def start(*, with_revocation: bool = False) -> int:
        config = tmp_path / "mosquitto.conf"
        config.write_text(production_config(certificates, free_port, tmp_path, with_revocation=with_revocation))
        if os.geteuid() == 0:  # started as root, mosquitto becomes another user, who cannot read a test's folders
            config.write_text(config.read_text() + "user root\n")
        broker = subprocess.Popen([str(MOSQUITTO), "-c", str(config)], stderr=subprocess.PIPE, text=True)
        running.append(broker)
        assert broker.stderr is not None
        for line in broker.stderr:  # ends where the broker does
            if "running" in line:
                return free_port
        return pytest.fail("mosquitto did not start with the production configuration")

    yield start
    for broker in running:
        broker.kill()
        broker.communicate()


class Peer:
    """One MQTT connection with a certificate, and what came by it."""

    def __init__(self, certificates: Path, port: int, name: str | None, *, client_id: str = "") -> None:
        self.messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.connected = threading.Event()
        self.subscribed = threading.Event()
        self.disconnect_count = 0
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or f"id-of-{name}", protocol=mqtt.MQTTv311
        )
        own = (
            {} if name is None else {"certfile": certificates / f"{name}.crt", "keyfile": certificates / f"{name}.key"}
        )
        self.client.tls_set(certificates / "stations-ca.crt", **{key: str(path) for key, path in own.items()})
        self.client.on_connect = lambda *_: self.connected.set()
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = lambda client, data, message: self.messages.put((message.topic, message.payload))
        self.client.connect("localhost", port)
        self.client.loop_start()

    def _on_disconnect(self, *_: object) -> None:
        self.disconnect_count += 1

    def __enter__(self) -> Peer:
        assert self.connected.wait(10), "the broker let nobody in"
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, *topics: str) -> None:
        for topic in topics:
            self.subscribed.clear()
            self.client.subscribe(topic, qos=1)
            assert self.subscribed.wait(10)

    def publish(self, topic: str, payload: bytes) -> None:
        self.client.publish(topic, payload, qos=1).wait_for_publish(10)

    def until(self, payload: bytes) -> list[tuple[str, bytes]]:
        """All messages up to the one with this payload. A broker keeps the order of one publisher and one QoS."""
        seen = []
        while not seen or seen[-1][1] != payload:
            seen.append(self.messages.get(timeout=10))
        return seen


def test_a_station_cannot_publish_under_anothers_name(certificates: Path, start_broker: Start) -> None:
    port = start_broker()
    with Peer(certificates, port, "ingest") as ingest, Peer(certificates, port, "station-a") as station:
        ingest.subscribe(f"{UP}/#")
        for topic in (
            f"{UP}/station-b/observations",
            f"{UP}/observations",
            UP,
            f"{DOWN}/station-a/receipts",
            "elsewhere",
        ):
            station.publish(topic, b"forged")
        station.publish(f"{UP}/station-a/observations", b"own")
        assert ingest.until(b"own") == [(f"{UP}/station-a/observations", b"own")]


def test_a_station_cannot_read_what_is_meant_for_another(certificates: Path, start_broker: Start) -> None:
    port = start_broker()
    with (
        Peer(certificates, port, "ingest") as ingest,
        Peer(certificates, port, "station-a") as curious,
        Peer(certificates, port, "station-b") as other,
    ):
        curious.subscribe(f"{DOWN}/station-b/#", f"{DOWN}/#", f"{UP}/#", "#", f"{DOWN}/station-a/#")
        other.subscribe(f"{DOWN}/station-b/#")
        ingest.publish(f"{DOWN}/station-b/receipts", b"for b")
        other.publish(f"{UP}/station-b/observations", b"of b")
        assert other.until(b"for b") == [(f"{DOWN}/station-b/receipts", b"for b")]
        ingest.publish(f"{DOWN}/station-a/receipts", b"for a")
        assert set(curious.until(b"for a")) == {(f"{DOWN}/station-a/receipts", b"for a")}


def test_a_station_that_takes_anothers_client_id_does_not_throw_it_off(certificates: Path, start_broker: Start) -> None:
    port = start_broker()
    with Peer(certificates, port, "station-a") as station, Peer(certificates, port, "ingest") as ingest:
        station.subscribe(f"{DOWN}/station-a/#")
        with Peer(certificates, port, "station-b", client_id="station-a"):
            ingest.publish(f"{DOWN}/station-a/receipts", b"still here")
            assert station.until(b"still here")
        assert station.disconnect_count == 0


@pytest.mark.parametrize("name", [None, "forged"])
def test_without_a_certificate_of_the_stations_authority_nobody_gets_in(
    certificates: Path, start_broker: Start, name: str | None
) -> None:
    port = start_broker()
    assert not is_let_in(certificates, port, name)
    assert is_let_in(certificates, port, "station-a")


def test_a_revoked_station_is_kept_out_and_the_others_are_not(certificates: Path, start_broker: Start) -> None:
    port = start_broker(with_revocation=True)
    assert not is_let_in(certificates, port, "station-lost")
    assert is_let_in(certificates, port, "station-a")


def is_let_in(certificates: Path, port: int, name: str | None) -> bool:
    """Whether the broker accepts a CONNECT, written out in bytes: TLS 1.3 refuses a client only at its first read."""
    context = ssl.create_default_context(cafile=str(certificates / "stations-ca.crt"))
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
    connect = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x"
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(connect)
            return connection.recv(4) == b"\x20\x02\x00\x00"
    except (ssl.SSLError, ConnectionError):
        return False
