"""The station's certificate and key: which pair to show next, a new one promoted once a broker took it, and alarms.

Renewal can never stop a station: a new pair is tried beside the old one, and takes its place only when it has proved
itself. Knows no MQTT; what is chosen when stands in pair_choice, how files move in pair_files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.link.certificate_facts import CertificateFacts, certificate_alarm, read_facts
from edge_agent.link.failures import LinkFailure
from edge_agent.link.pair_choice import Choice, Trials
from edge_agent.link.pair_files import FoundPairs, Pair, PairFiles, Version
from fieldpost.errors import FieldpostError, InvalidRequestError

logger = logging.getLogger(__name__)

FACTS_INTERVAL_S = 86_400.0
FACTS_RETRY_INTERVAL_S = 3600.0
KNOWN_FILES_MAX = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """The pair of one attempt.

    Attributes:
        pair: Its files.
        choice: Whether it is the one in use or the new one.
        version: Which files these were at the attempt.
        is_trial: Whether this is the new one, and there is another to go back to.
    """

    pair: Pair
    choice: Choice
    version: Version | None
    is_trial: bool


class Identity:
    """The certificates of one station. All but the properties is for the uplink's thread alone.

    Args:
        certificate_file: The certificate in use.
        key_file: Its key.
        station: The common name that it should have.
        wall_clock: Unix time in seconds.
    """

    def __init__(
        self, certificate_file: Path, key_file: Path, station: str, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._files = PairFiles(certificate_file, key_file)
        self._station = station
        self._wall_clock = wall_clock
        self._trials = Trials()
        self._facts: dict[tuple[int, int, int], _KnownFacts] = {}
        self._current_facts: CertificateFacts | None = None
        self._file_alarms: tuple[str, ...] = ()
        self._trial_alarm = ""
        self._promotion_alarm = ""
        self._failure: LinkFailure | None = None

    @property
    def alarm(self) -> str:
        """What is wrong with the station's certificates, or soon will be; "" for nothing."""
        facts = self._current_facts
        present = certificate_alarm(facts, self._station, self._wall_clock()) if facts else ""
        return "; ".join(
            text for text in (present, *self._file_alarms, self._trial_alarm, self._promotion_alarm) if text
        )

    @property
    def expiry_unix_s(self) -> float | None:
        """When the certificate in use ends; None where that is not known."""
        facts = self._current_facts
        return facts.valid_until_unix_s if facts else None

    def choose(self, now_s: float) -> Shown:
        """The pair for the next attempt.

        Args:
            now_s: Monotonic time.

        Raises:
            InvalidRequestError: There is none that could be used.
        """
        found = self._look(now_s)
        choice = self._trials.choose(found.current is not None, now_s)
        pair = found.new if choice is Choice.NEW else found.current
        if choice is None or pair is None:
            raise InvalidRequestError(
                "; ".join(found.problems), hint="put the station's certificate and its key there; recording goes on"
            )
        return Shown(pair, choice, pair.version(), is_trial=choice is Choice.NEW and found.current is not None)

    def is_trial_due(self, shown: Shown, now_s: float) -> bool:
        """Whether to leave a connection that stands, in order to try a new pair.

        Args:
            shown: The pair of that connection.
            now_s: Monotonic time.
        """
        found = self._look(now_s)
        return found.new is not None and shown.version != found.new.version() and self._trials.is_new_due(now_s)

    def note_accepted(self, shown: Shown, now_s: float) -> None:
        """A broker took the pair and granted the subscriptions: a new one becomes the one in use."""
        self._trials = self._trials.accepted(shown.choice)
        if shown.choice is Choice.NEW:
            self._trial_alarm = ""
            self._promote(shown)
            self._look(now_s)
        elif self._failure is not None:
            self._trial_alarm = self._trial_text(self._failure)

    def note_failed(self, shown: Shown, failure: LinkFailure, now_s: float) -> None:
        """The attempt with this pair did not get as far as the subscriptions."""
        self._trials = self._trials.failed(shown.choice, now_s)
        if shown.choice is Choice.NEW:
            self._failure = failure
            # Where the network is down, that says nothing about the new pair, unless the old one then connects.
            if failure.is_refusal:
                self._trial_alarm = self._trial_text(failure)

    def _promote(self, shown: Shown) -> None:
        try:
            is_done = self._files.promote(shown.pair, shown.version)
        except FieldpostError as error:
            self._promotion_alarm = (
                f"the new certificate is in use, but could not take the old one's place: {error}; {error.hint}"
            )
            return
        if is_done:
            self._promotion_alarm = ""
            logger.info("new certificate in use", extra={"certificate_file": str(self._files.in_use.certificate)})

    def _look(self, now_s: float) -> FoundPairs:
        """What lies there now; reads what certificates say where they are others than before, and once a day."""
        found = self._files.find()
        alarms = list(found.problems)
        if found.new is not None:
            fault = self._fault_of_new(found.new, now_s)
            if fault:
                alarms.append(fault)
                found = FoundPairs(found.current, None, tuple(alarms))
        new_version = found.new.version() if found.new else None
        if new_version != self._trials.new_version:
            self._trials = self._trials.see(new_version)
            self._trial_alarm, self._failure = "", None
        in_use = found.new if self._trials.is_new_accepted or found.current is None else found.current
        self._current_facts, unreadable = self._facts_of(in_use, now_s) if in_use else (None, "")
        self._file_alarms = (*alarms, *([unreadable] if unreadable else []))
        return found

    def _fault_of_new(self, new: Pair, now_s: float) -> str:
        """A broker would let it in, and then drop in silence what it sends: so it is not even tried."""
        facts, _ = self._facts_of(new, now_s)
        if facts is None or facts.common_name == self._station:
            return ""
        whose = facts.common_name or "nobody"
        return f"the new certificate {new.certificate} is one of {whose}, not of {self._station}: it is not tried"

    def _facts_of(self, pair: Pair, now_s: float) -> tuple[CertificateFacts | None, str]:
        """What the certificate says, or why that could not be read; known by the file itself, whatever its name is."""
        version = pair.version()
        if version is None:
            return None, ""
        known = self._facts.get(version[0])
        if known is None or now_s >= known.again_at_s:
            facts, fault = None, ""
            try:
                facts = read_facts(pair.certificate)
            except FieldpostError as error:
                fault = f"{error}; {error.hint}" if error.hint else str(error)
            while len(self._facts) >= KNOWN_FILES_MAX:
                del self._facts[next(iter(self._facts))]
            again_at_s = now_s + (FACTS_INTERVAL_S if facts else FACTS_RETRY_INTERVAL_S)
            known = self._facts[version[0]] = _KnownFacts(facts, fault, again_at_s)
        return known.facts, known.fault

    def _trial_text(self, failure: LinkFailure) -> str:
        new = self._files.in_use.certificate.with_name(self._files.in_use.certificate.name + ".new")
        return (
            f"the new certificate {new} did not connect: {failure.text}; "
            "it is tried again every hour, and at once when it changes"
        )


@dataclass(frozen=True, slots=True)
class _KnownFacts:
    """What was read of a file, or why it could not be, and when to read it again."""

    facts: CertificateFacts | None
    fault: str
    again_at_s: float
