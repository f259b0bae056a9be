"""What the facts around a station mean: instruments, certificate, brokers, service. Pure; looks at nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edge_agent.link.certificate_facts import CertificateFacts, certificate_alarm, day
from fieldpost.findings import Finding
from fieldpost.words import span

FIRST_FREE_PORT = 1024


def judge_certificate(facts: CertificateFacts, station: str, now_unix_s: float) -> Iterator[Finding]:
    """Whether it is the station's, and for how long."""
    alarm = certificate_alarm(facts, station, now_unix_s)
    if not alarm:
        until = facts.valid_until_unix_s
        yield Finding("OK", "certificate", f"{facts.common_name}, until {day(until)}, in {span(until - now_unix_s)}")
        return
    is_good_today = facts.common_name == station and facts.valid_from_unix_s <= now_unix_s < facts.valid_until_unix_s
    hint = 'see "Who the station is" in docs/station.md: the new pair is put beside the old one'
    yield Finding("WARN" if is_good_today else "FAIL", "certificate", alarm, hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """One broker, called just now.

    Attributes:
        url: Its address.
        failure: Why it could not be used, in words; empty where it could.
        reached: How far the call went, in words.
    """

    url: str
    failure: str = ""
    reached: str = ""


def judge_brokers(brokers: Sequence[BrokerFacts]) -> Iterator[Finding]:
    """Whether there is a way to the server; one of several brokers is enough, but the others are there for its loss."""
    is_any_good = any(not broker.failure for broker in brokers)
    for broker in brokers:
        subject = f"broker {broker.url}"
        if broker.failure:
            hint = "recording goes on; what is kept is sent once this is mended" if not is_any_good else ""
            yield Finding("WARN" if is_any_good else "FAIL", subject, broker.failure, hint)
        else:
            yield Finding("OK", subject, broker.reached)
    plain = [broker.url for broker in brokers if not broker.url.startswith("mqtts://")]
    if plain:
        text = f"{', '.join(plain)}: not encrypted, and anybody may call himself this station"
        yield Finding("WARN", "brokers", text, "mqtts:// and a certificate, unless this is a network of your own")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentFacts:
    """One instrument.

    Attributes:
        name: Its name.
        source: Kind of its source, as the settings call it.
        path: The drop folder, the device or the recorded files; empty where it has none.
        is_there: Whether the path exists.
        is_usable: Whether the service's user may do there what it must.
        is_in_unit: Whether the service may write there; None where no service is installed, or it need not.
        account: That user, for the words.
        last_capture_unix_s: When something came last; None where nothing is known.
        silent_after_s: When silence is too long; None where it never is.
        port: The port on which it is listened for; None where it is not.
        problem: Why it cannot be connected to or listened for, in words; empty where it can, or was not tried.
    """

    name: str
    source: str
    path: str = ""
    is_there: bool = True
    is_usable: bool = True
    is_in_unit: bool | None = None
    account: str = ""
    last_capture_unix_s: float | None = None
    silent_after_s: float | None = None
    port: int | None = None
    problem: str = ""


_ABSENT_HINTS = {
    "folder": "sudo fieldpost-agent install makes it",
    "serial": "is it plugged in? ls -l /dev/serial/by-id",
    "replay": "correct its path in the settings; until then the agent does not start",
}
_NEEDS = {"folder": "read, write and delete in", "serial": "read and write", "replay": "read"}
_PROBLEM_HINTS = {
    "tcp-client": "is it switched on and in the network? compare host and port in the settings with its own menu",
    "tcp-server": "ss -tlnp shows who listens; compare address and port in the settings",
    "udp": "ss -ulnp shows who listens; compare address and port in the settings",
}


def judge_instrument(facts: InstrumentFacts, now_unix_s: float) -> Iterator[Finding]:
    """Whether it can be heard, and is."""
    subject = f"instrument {facts.name}"
    obstacles = list(_obstacles(facts, subject))
    yield from obstacles
    if facts.last_capture_unix_s is None:
        if not obstacles:  # else that is why
            yield Finding("WARN", subject, "no observation yet", "is it switched on, and does it send?")
        return
    silent_s = now_unix_s - facts.last_capture_unix_s
    if facts.silent_after_s is not None and silent_s > facts.silent_after_s:
        text = f"nothing for {span(silent_s)}; expected something each {span(facts.silent_after_s)}"
        yield Finding("WARN", subject, text, "look at the instrument and at its cable, or raise silent_after_s")
    elif not obstacles:
        yield Finding("OK", subject, f"last observation {span(silent_s)} ago")


def _obstacles(facts: InstrumentFacts, subject: str) -> Iterator[Finding]:
    """Why it cannot be heard."""
    if not facts.is_there:
        yield Finding("FAIL", subject, f"there is no {facts.path}", _ABSENT_HINTS[facts.source])
    elif not facts.is_usable:
        hints = {
            "folder": f"sudo chgrp fieldpost {facts.path} && sudo chmod 2770 {facts.path}",
            "serial": f"sudo usermod -aG dialout {facts.account}",
            "replay": f"sudo chmod -R a+rX {facts.path}",
        }
        text = f"{facts.account} may not {_NEEDS[facts.source]} {facts.path}"
        yield Finding("FAIL", subject, text, hints[facts.source])
    elif facts.is_in_unit is False:
        hint = "sudo fieldpost-agent install"
        yield Finding("FAIL", subject, f"the service is not allowed to delete in {facts.path}", hint)
    if facts.port is not None and facts.port < FIRST_FREE_PORT:
        text = f"port {facts.port} is for root only, which the service is not"
        yield Finding("FAIL", subject, text, f"take one from {FIRST_FREE_PORT} on, here and at the instrument")
    if facts.problem:
        yield Finding("FAIL", subject, facts.problem, _PROBLEM_HINTS[facts.source])


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """The agent itself.

    Attributes:
        has_answered: Whether it answered at its control socket.
        is_running: Whether it holds the buffer.
        is_online: What it says of its link.
        alarms: What it says is wrong.
        is_enabled: Whether systemd begins it at boot; None where there is no systemd to ask.
    """

    has_answered: bool
    is_running: bool
    is_online: bool = False
    alarms: list[str] = field(default_factory=list)
    is_enabled: bool | None = None


def judge_agent(facts: AgentFacts) -> Iterator[Finding]:
    """Whether it runs, and will after the next power cut."""
    if facts.has_answered:
        if facts.is_online:
            yield Finding("OK", "agent", "running and online")
        else:
            yield Finding("WARN", "agent", "running without a connection; recording goes on", "see the brokers below")
    elif facts.is_running:
        hint = "it may be starting, or trying a model; if it stays so: sudo systemctl restart fieldpost-agent"
        yield Finding("WARN", "agent", "running, but it does not answer", hint)
    else:
        yield Finding("FAIL", "agent", "not running: nothing is recorded", "sudo systemctl start fieldpost-agent")
    if facts.is_enabled is False:
        hint = "sudo systemctl enable fieldpost-agent"
        yield Finding("FAIL", "agent", "it will not start after the next power cut", hint)
    yield from (Finding("WARN", "alarm", text) for text in facts.alarms)
