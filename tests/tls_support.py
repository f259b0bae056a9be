"""Certificates of every kind, and the production configuration of deploy/mosquitto in a real Mosquitto."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from conftest import MOSQUITTO, skip_or_fail
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from demo.processes import free_port

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy" / "mosquitto"
DAY = timedelta(days=1)
Start = Callable[..., int]


def make_authority(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _certificate(name, name, -DAY, 2 * DAY).public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    _write(folder / f"{name}.crt", builder.sign(key, hashes.SHA256()))
    _write_key(folder / f"{name}.key", key)


def issue(
    folder: Path,
    name: str,
    *,
    authority: str = "stations-ca",
    common_name: str | None = None,
    host: str | None = None,
    begins: timedelta = -DAY,
    ends: timedelta = 2 * DAY,
    with_key_of: str | None = None,
) -> None:
    """<name>.crt and <name>.key: of that common name, and for a host with its name, as clients want it of a broker.

    The times are counted from now. A certificate with another's key is one that was renewed without a new key.
    """
    ca = x509.load_pem_x509_certificate((folder / f"{authority}.crt").read_bytes())
    key = _read_key(folder / f"{with_key_of}.key") if with_key_of else ec.generate_private_key(ec.SECP256R1())
    issuer = ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    builder = _certificate(host or common_name or name, str(issuer), begins, ends).public_key(key.public_key())
    if host:
        names = [x509.DNSName(host)] if host[0].isalpha() else [x509.IPAddress(ip_address(host))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    else:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(usage, critical=False)
    _write(folder / f"{name}.crt", builder.sign(_read_key(folder / f"{authority}.key"), hashes.SHA256()))
    _write_key(folder / f"{name}.key", key)


def revoke(folder: Path, *names: str, authority: str = "stations-ca") -> None:
    """Writes the authority's list of revoked certificates, stations.crl."""
    now = datetime.now(UTC)
    ca = x509.load_pem_x509_certificate((folder / f"{authority}.crt").read_bytes())
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.subject)
    builder = builder.last_update(now - DAY).next_update(now + 2 * DAY)
    for name in names:
        serial = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes()).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - DAY).build()
        builder = builder.add_revoked_certificate(revoked)
    _write(folder / "stations.crl", builder.sign(_read_key(folder / f"{authority}.key"), hashes.SHA256()))


def channel_credentials(folder: Path, name: str | None, *, token: str | None = None) -> grpc.ChannelCredentials:
    """What a client shows to a gRPC server of stations-ca: its certificate, a token, both, or nothing."""
    pair = ((folder / f"{name}.key").read_bytes(), (folder / f"{name}.crt").read_bytes()) if name else (None, None)
    credentials = grpc.ssl_channel_credentials((folder / "stations-ca.crt").read_bytes(), *pair)
    if token is None:
        return credentials
    return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))


def _certificate(name: str, issuer: str, begins: timedelta, ends: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    path.chmod(0o600)


def _write(path: Path, signed: x509.Certificate | x509.CertificateRevocationList) -> None:
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "stations-ca")
    make_authority(folder, "another-ca")
    issue(folder, "broker", host="localhost")
    for name in ("station-a", "station-b", "station-lost", "ingest"):
        issue(folder, name)
    issue(folder, "forged", authority="another-ca", common_name="station-a")
    revoke(folder, "station-lost")
    return folder


def production_config(certificates: Path, port: int, data: Path, *, with_revocation: bool, broker: str) -> str:
    """deploy/mosquitto/mosquitto.conf with other paths, another port, and nothing else changed."""
    text = (DEPLOY / "mosquitto.conf").read_text()
    changes = {
        "listener 8883\n": f"listener {port} 127.0.0.1\n",
        "/certs/broker.": f"/certs/{broker}.",
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


class Brokers:
    """Real Mosquittos in the production configuration."""

    def __init__(self, certificates: Path, folder: Path) -> None:
        self._certificates = certificates
        self._folder = folder
        self._running: dict[int, subprocess.Popen[str]] = {}

    def start(self, *, with_revocation: bool = False, broker: str = "broker", port: int | None = None) -> int:
        """Starts one that shows <broker>.crt; returns its port."""
        port = port or free_port()
        data = self._folder / f"mosquitto-{port}"
        data.mkdir(exist_ok=True)
        text = production_config(self._certificates, port, data, with_revocation=with_revocation, broker=broker)
        if os.geteuid() == 0:  # started as root, mosquitto becomes another user, who cannot read a test's folders
            text += "user root\n"
        config = data / "mosquitto.conf"
        config.write_text(text)
        process = subprocess.Popen([str(MOSQUITTO), "-c", str(config)], stderr=subprocess.PIPE, text=True)
        self._running[port] = process
        assert process.stderr is not None
        for line in process.stderr:  # ends where the broker does
            if "running" in line:
                return port
        return pytest.fail("mosquitto did not start with the production configuration")

    def process(self, port: int) -> subprocess.Popen[str]:
        return self._running[port]

    def kill_all(self) -> None:
        for process in self._running.values():
            process.kill()
            process.communicate()


@pytest.fixture
def brokers(certificates: Path, tmp_path: Path) -> Iterator[Brokers]:
    if MOSQUITTO is None:
        skip_or_fail("mosquitto is not installed (make mosquitto)")
    made = Brokers(certificates, tmp_path)
    yield made
    made.kill_all()


@pytest.fixture
def start_broker(brokers: Brokers) -> Start:
    return brokers.start
