"""What a certificate says of itself: whose it is, who signed it, and from when until when it holds. Judges no trust.

Reading one needs the cryptography package, 16 MB that the recorder shall not carry. So a short-lived process of its own
reads the file and prints JSON: python -m edge_agent.link.certificate_facts FILE.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fieldpost.errors import BrokenStateError, FieldpostError, InvalidRequestError, TryAgainError

READ_TIMEOUT_S = 30.0
WARNING_DAYS = 30
DAY_S = 86_400.0
SOFTWARE_UNIX_S = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""This software is younger, so a clock that says less is wrong. A Pi without a battery begins in 1970."""

EXIT_UNREADABLE = 1
EXIT_NO_LIBRARY = 3


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What the file says; of a chain, the station's own certificate comes first.

    Attributes:
        common_name: Whose it is; "" where it does not say.
        issuer_name: Common name of who signed it.
        valid_from_unix_s: From when all certificates of the chain hold.
        valid_until_unix_s: Until when all of them do.
    """

    common_name: str
    issuer_name: str
    valid_from_unix_s: float
    valid_until_unix_s: float


def read_facts(path: Path, timeout_s: float = READ_TIMEOUT_S) -> CertificateFacts:
    """Reads a PEM file in a process of its own.

    Raises:
        InvalidRequestError: There is no such file, or no certificate in it.
        TryAgainError: The process did not end in time, or could not be started.
        BrokenStateError: The station's software is incomplete.
    """
    command = [sys.executable, "-P", "-m", "edge_agent.link.certificate_facts", str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TryAgainError(f"expected to read the certificate {path}, but got {error}") from error
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode == EXIT_NO_LIBRARY:
        message = f"expected what reads certificates to be installed, but there is no module {said}"
        raise BrokenStateError(message, hint="pip install 'fieldpost[edge]'")
    if done.returncode == EXIT_UNREADABLE:
        raise InvalidRequestError(f"expected a PEM certificate in {path}, but got {said}")
    try:
        return CertificateFacts(**json.loads(said))
    except (ValueError, TypeError) as error:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        message = f"expected facts about {path}, but the process ended with {done.returncode}: {last_line}"
        raise TryAgainError(message) from error


def certificate_alarm(facts: CertificateFacts, station: str, now_unix_s: float) -> str:
    """What is wrong with a certificate, or soon will be; "" for nothing."""
    if facts.common_name != station:
        return (
            f"the certificate is one of {facts.common_name or 'nobody'}, but the station is called {station}: "
            "brokers will drop what it sends; get a certificate with the common name of the station"
        )
    if now_unix_s < facts.valid_from_unix_s:
        return f"the certificate is valid only from {day(facts.valid_from_unix_s)} on: {clock_question(now_unix_s)}"
    if now_unix_s >= facts.valid_until_unix_s:
        return (
            f"the certificate expired on {day(facts.valid_until_unix_s)}, so brokers refuse it and nothing is sent; "
            "recording goes on. Put a new one beside it"
        )
    days_left = (facts.valid_until_unix_s - now_unix_s) / DAY_S
    if days_left < WARNING_DAYS:
        return f"the certificate expires on {day(facts.valid_until_unix_s)}, in {days_left:.0f} days: renew it"
    return ""


def clock_question(now_unix_s: float) -> str:
    """What to ask where a time does not fit: whether the station's clock is right."""
    if now_unix_s < SOFTWARE_UNIX_S:
        return f"the station's clock says {day(now_unix_s)}: is NTP reachable?"
    return f"the station's clock says {day(now_unix_s)}: is that right?"


def day(unix_s: float) -> str:
    """The UTC date."""
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()


def main(path: Path) -> int:
    """Prints the facts as JSON, or what was wrong; the body of the short-lived process."""
    try:
        print(json.dumps(asdict(_parse(path))))  # noqa: T201
    except ModuleNotFoundError as error:
        print(error.name)  # noqa: T201
        return EXIT_NO_LIBRARY
    except FieldpostError as error:
        print(error)  # noqa: T201
        return EXIT_UNREADABLE
    return 0


def _parse(path: Path) -> CertificateFacts:
    from cryptography import x509

    def common_name(name: x509.Name) -> str:
        return next((str(part.value) for part in name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)), "")

    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
        return CertificateFacts(
            common_name=common_name(chain[0].subject),
            issuer_name=common_name(chain[0].issuer),
            valid_from_unix_s=max(link.not_valid_before_utc.timestamp() for link in chain),
            valid_until_unix_s=min(link.not_valid_after_utc.timestamp() for link in chain),
        )
    except OSError as error:
        raise InvalidRequestError(error.strerror or str(error)) from error
    except ValueError as error:
        raise InvalidRequestError("something that is no certificate") from error


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
