"""Why a connection to a broker failed, in plain words, and what to do about it. Pure; asks types and codes.

A refusal means that the broker was there and did not want this station; anything else may be the network's fault.
"""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import dataclass

from edge_agent.link.certificate_facts import clock_question
from fieldpost.broker_url import BrokerUrl
from fieldpost.errors import FieldpostError

_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL})

# X509_V_ERR_* of OpenSSL's x509_vfy.h: what is wrong with the broker's certificate.
_NOT_YET_VALID, _EXPIRED, _REVOKED = 9, 10, 23
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21, 27})
_OTHER_NAME = frozenset({62, 64})

RENEW = "give the station a new one"

# What a TLS alert of the broker says about the station's certificate; RFC 8446, 6.2.
_ALERTS = {
    "CERTIFICATE_EXPIRED": f"it has expired, or the broker's clock is wrong; {RENEW}",
    "CERTIFICATE_REVOKED": f"it was revoked; {RENEW}",
    "UNKNOWN_CA": f"the broker does not know the authority that signed it; {RENEW}",
    "CERTIFICATE_REQUIRED": "the broker wants one, and was shown none: set certificate_file and key_file",
    "BAD_CERTIFICATE": "it is damaged, or not valid yet",
    "UNSUPPORTED_CERTIFICATE": "it is not meant for a client",
    "CERTIFICATE_UNKNOWN": "the broker does not say why",
    "ACCESS_DENIED": "the broker gives this name no access",
    "HANDSHAKE_FAILURE": "it is missing, or the broker takes no certificate or cipher of this kind",
    "DECRYPT_ERROR": "its signature does not hold",
}
# No answer of a broker, but of something that does not speak TLS.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})

# CONNACK of MQTT 3.1.1, as the library's reason codes number them.
WRONG_PROTOCOL, _WRONG_CLIENT_ID, _WRONG_PASSWORD, _NOT_AUTHORISED, _UNAVAILABLE = 132, 133, 134, 135, 136
_CONNACK = {
    WRONG_PROTOCOL: "it does not speak MQTT 3.1.1, or is no broker",
    _WRONG_CLIENT_ID: "it does not take the station's name as a client id",
    _WRONG_PASSWORD: "it wants a user name and a password; stations come with certificates, so give it mqtts://",
    _NOT_AUTHORISED: "it gives this station no access: is it registered there, and is this its certificate?",
    _UNAVAILABLE: "it is not available just now",
}


@dataclass(frozen=True, slots=True)
class LinkFailure:
    """Why a connection was not made, or ended.

    Attributes:
        text: In plain words.
        is_refusal: Whether a broker was there and did not want this station.
    """

    text: str
    is_refusal: bool = False


def connecting_failed(error: Exception, broker: BrokerUrl, timeout_s: float, now_unix_s: float) -> LinkFailure:
    """What an exception at the connecting means.

    Args:
        error: As the socket, the TLS library or the MQTT library raised it.
        broker: Who was called.
        timeout_s: How long it was waited for.
        now_unix_s: What the station's clock says.
    """
    match error:
        case FieldpostError():
            return LinkFailure(f"{error}; {error.hint}" if error.hint else str(error))
        case ssl.SSLCertVerificationError():
            return LinkFailure(_about_broker_certificate(error, broker, now_unix_s))
        case ssl.SSLError():
            return tls_failed(error, broker)
        case socket.gaierror() if error.errno == socket.EAI_AGAIN:
            return LinkFailure(
                f"the name {broker.host} could not be looked up: no DNS server answers; is there a network?"
            )
        case socket.gaierror() | UnicodeError():
            return LinkFailure(f"the name {broker.host} is not known to DNS: is it spelt right, is there a network?")
        case ConnectionRefusedError():
            return LinkFailure(
                f"{broker.host} is there, but refuses connections on port {broker.port}: is the broker running?"
            )
        case TimeoutError():
            return LinkFailure(
                f"no answer within {timeout_s:g} s: {broker.host} is down, hangs, or a firewall is between"
            )
        case ConnectionError():
            return closed_before_answer(broker)
        case OSError() if error.errno in _UNREACHABLE:
            return LinkFailure(f"no way to {broker.host} ({error.strerror}): is the station's network up?")
        case OSError():
            return LinkFailure(f"the system says {error.strerror or error}")
    return LinkFailure(f"{type(error).__name__}: {error}")


def tls_failed(error: ssl.SSLError, broker: BrokerUrl) -> LinkFailure:
    """What an error of the TLS library means that is not about the broker's certificate."""
    reason = error.reason or ""
    # Such as SSLV3_ALERT_CERTIFICATE_EXPIRED, TLSV13_ALERT_CERTIFICATE_REQUIRED: the versions are of no importance.
    _, is_alert, alert = reason.partition("_ALERT_")
    if is_alert and alert in _ALERTS:
        return LinkFailure(f"the broker refused the station's certificate: {_ALERTS[alert]}", is_refusal=True)
    if alert == "PROTOCOL_VERSION" or reason == "UNSUPPORTED_PROTOCOL":
        return LinkFailure("the broker speaks no TLS 1.2 or 1.3", is_refusal=True)
    if reason in _NO_TLS:
        return LinkFailure(f"something on port {broker.port} does not speak TLS: is it a broker's port for mqtts?")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return closed_before_answer(broker)
    return LinkFailure(f"TLS failed: {reason or type(error).__name__}", is_refusal=bool(is_alert))


def closed_before_answer(broker: BrokerUrl) -> LinkFailure:
    """The connection ended between the first byte and CONNACK.

    With TLS 1.3 a broker sees the station's certificate after the station holds the handshake for done. Its alert then
    comes instead of CONNACK, and is lost where the closed connection overtakes it.
    """
    if broker.is_tls:
        why = f"most often it refuses the station's certificate (expired, revoked, unknown authority); {RENEW}"
        return LinkFailure(
            f"the broker closed the connection before it answered: {why}, or ask its log", is_refusal=True
        )
    return LinkFailure("the broker closed the connection before it answered: does it want mqtts://? Ask its log")


def no_answer(timeout_s: float) -> LinkFailure:
    """The broker took CONNECT or SUBSCRIBE, and said nothing."""
    return LinkFailure(f"the broker took the connection, but did not answer within {timeout_s:g} s: it hangs")


def connection_refused(code: int) -> LinkFailure:
    """CONNACK with a reason code that is a failure."""
    why = _CONNACK.get(code, f"it gives the code {code}")
    return LinkFailure(f"the broker refused the connection: {why}", is_refusal=code != _UNAVAILABLE)


def subscription_refused(topics: list[str]) -> LinkFailure:
    """SUBACK with 0x80."""
    return LinkFailure(
        f"the broker refused a subscription to one of {', '.join(topics)}: look at its access list (acl_file)",
        is_refusal=True,
    )


def _about_broker_certificate(error: ssl.SSLCertVerificationError, broker: BrokerUrl, now_unix_s: float) -> str:
    code = error.verify_code
    if code == _NOT_YET_VALID:
        return f"the broker's certificate is not yet valid: {clock_question(now_unix_s)}"
    if code == _EXPIRED:
        return f"the broker's certificate has expired: renew it at the broker; {clock_question(now_unix_s)}"
    if code == _REVOKED:
        return "the broker's certificate was revoked"
    if code in _UNKNOWN_AUTHORITY:
        return "the broker's certificate was signed by an unknown authority: is ca_file the right one?"
    if code in _OTHER_NAME:
        return (
            f"the broker's certificate is made out to another name than {broker.host}: "
            "call it in broker_urls by the name in its certificate"
        )
    return f"the broker's certificate does not hold (OpenSSL's code {code})"
