"""The quick look as the agent knows it: adds a first estimate to observations, takes new models, and never harms.

Every way in which a model, its process or its file can fail ends in an observation without an estimate. What counts as
failing is decided in `judgement`; what lies on the disk is `model_store`'s.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.quick_look.child import Child, LateError, run_trial
from edge_agent.quick_look.judgement import Judgement, Probation
from edge_agent.quick_look.model_store import Model, ModelStore
from edge_agent.quick_look.package import SHIPPED, label
from fieldpost.errors import BrokenStateError, FieldpostError, InvalidRequestError
from fieldpost.v1 import observation_pb2 as pb

logger = logging.getLogger(__name__)

PAYLOAD_FORMAT = "vaisala-cl"
"""The one format that the child can decode."""
START_TIMEOUT_S = 60.0
TOGETHER_MAX = 64
"""Telegrams given to the child at once: half a megabyte."""
QUALITIES = {
    "good": pb.QUICK_LOOK_QUALITY_GOOD,
    "doubtful": pb.QUICK_LOOK_QUALITY_DOUBTFUL,
    "bad": pb.QUICK_LOOK_QUALITY_BAD,
}


class QuickLook:
    """First estimates, by a model in a process of its own. Several threads may call it.

    Args:
        folder: Where models lie.
        budget_ms: What one observation may take.
        key_file: The public key that signs models; None to take none but the one that came with the software.
        shipped: That one.
    """

    def __init__(self, folder: Path, *, budget_ms: int, key_file: Path | None, shipped: Path = SHIPPED) -> None:
        self._budget_s = budget_ms / 1000
        self._key_file = key_file
        self._shipped_label = _label_of(shipped)
        self._store = ModelStore(folder, shipped)
        self._judgement = Judgement(is_on_probation=self._store.state.is_on_probation)
        self._child: Child | None = None
        self._is_closed = False
        self._disk_problem = ""
        self._lock = threading.Lock()
        self._taking = threading.Lock()

    @property
    def model(self) -> str:
        """The active model's name and hash; empty where there is none."""
        return self._store.active_label or self._shipped_label

    @property
    def problem(self) -> str:
        """What is wrong, in plain words; empty where all is well."""
        texts = (self._judgement.problem, self._store.state.rolled_back, self._store.damage, self._disk_problem)
        return "; ".join(text for text in texts if text)

    def add(self, observations: Sequence[pb.Observation], contents: Sequence[bytes]) -> None:
        """Sets header.quick_look where an estimate comes in time. Never raises.

        Takes at most the budget for each observation, and nothing where the child has failed a moment ago.

        Args:
            observations: As observation_of made them.
            contents: The instrument's bytes of each.
        """
        pairs = [
            (observation, content)
            for observation, content in zip(observations, contents, strict=False)
            if observation.header.payload_format == PAYLOAD_FORMAT
        ]
        deadline_s = time.monotonic() + self._budget_s * len(pairs)
        if not pairs or not self._lock.acquire(timeout=self._budget_s * len(pairs) / 2):
            return  # another source has the child
        try:
            self._add(pairs, deadline_s)
        except Exception as error:  # the promise of this class: the observation goes its way whatever happens here
            logger.exception("quick look failed")
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._lock.release()

    def take(self, package: bytes, signature: bytes, samples: Sequence[bytes]) -> str:
        """Tries a model and makes it the active one. Takes seconds; meanwhile the old one goes on.

        Args:
            package: The model package.
            signature: Of its SHA-256, 64 bytes.
            samples: The station's last telegrams: the model has to do on them, too.

        Returns:
            The model's name and hash.

        Raises:
            InvalidRequestError: It is refused; the message says why. The old one stays.
            TryAgainError: The disk is full.
            BrokenStateError: The disk refuses.
        """
        sha256 = hashlib.sha256(package).hexdigest()
        with self._taking:
            state = self._store.state
            if sha256 == state.active.sha256:
                return self.model
            if sha256 in state.refused:
                raise InvalidRequestError(f"this model was taken before and given up: {state.refused[sha256]}")
            key = _read_key(self._key_file)
            name = run_trial(package, signature, key, samples, budget_ms=self._budget_s * 1000)
            with self._lock:
                self._store.activate(package, Model(sha256, name))
                self._disk_problem = ""
                self._restart()
            logger.info("model taken", extra={"model": self.model})
            return label(name, sha256)

    def close(self) -> None:
        """Ends the child."""
        with self._lock:
            self._is_closed = True
            self._end_child()

    # --- below, the lock is held ---

    def _add(self, pairs: Sequence[tuple[pb.Observation, bytes]], deadline_s: float) -> None:
        # one that comes alone waits for no child that is starting; those of a whole file may
        if not self._is_child_ready(deadline_s - self._budget_s):
            return
        for first in range(0, len(pairs), TOGETHER_MAX):
            if not self._ask(pairs[first : first + TOGETHER_MAX], deadline_s):
                return

    def _is_child_ready(self, deadline_s: float) -> bool:
        """Whether the child can be asked; starts it where it may be started."""
        now_s = time.monotonic()
        if self._is_closed or not self._judgement.may_ask(now_s):
            return False
        if self._child is None:
            self._child = Child(self._store.active_path)
        try:
            is_ready = self._child.is_ready(deadline_s)
        except BrokenStateError as error:
            self._give_up_file(str(error))
            return False
        except FieldpostError as error:
            self._fail(str(error))
            return False
        if not is_ready and now_s - self._child.started_s > START_TIMEOUT_S:
            self._fail(f"the process of the model was not ready after {START_TIMEOUT_S:g} s")
        elif is_ready and self._store.state.active.sha256 not in ("", self._child.sha256):
            self._give_up_file("its file has changed")
            return False
        return is_ready

    def _ask(self, pairs: Sequence[tuple[pb.Observation, bytes]], deadline_s: float) -> bool:
        """Asks for some observations; returns whether the child still lives."""
        assert self._child is not None
        if deadline_s - time.monotonic() < self._budget_s / 2:
            return False  # the time went to another source: nobody's fault
        answers = self._child.ask([content for _, content in pairs], self._budget_s)
        try:
            for (observation, _), answer in zip(pairs, answers, strict=True):
                self._note(observation, answer)
                if time.monotonic() > deadline_s:
                    raise LateError("the model took longer than it may")
        except FieldpostError as error:
            self._fail(f"{error} ({1000 * self._budget_s:g} ms)" if isinstance(error, LateError) else str(error))
        self._judge()
        return self._child is not None

    def _note(self, observation: pb.Observation, answer: dict[str, object]) -> None:
        if "fault" in answer:
            self._judgement.faulted(str(answer["fault"]), time.monotonic())
        elif "undecodable" not in answer:  # the framing has let it through, and the server will say what is wrong
            assert self._child is not None
            look = pb.QuickLook(
                model=self._child.label,
                quality=QUALITIES[str(answer["quality"])],
                duration_ms=float(str(answer["duration_ms"])),
            )
            if answer["height_m"] is not None:
                look.mixing_layer_height_m = float(str(answer["height_m"]))
            observation.header.quick_look.CopyFrom(look)
            self._judgement.answered()

    def _fail(self, reason: str) -> None:
        """The child is of no more use: it is ended, and started again when its time has come."""
        self._end_child()
        self._judgement.failed(reason, time.monotonic())
        logger.warning("quick look failed", extra={"model": self.model, "reason": reason})
        self._judge()

    def _give_up_file(self, reason: str) -> None:
        """The package on the disk cannot be loaded: for all but the software's own there is another one."""
        if self._store.is_shipped_active:
            self._fail(reason)
        else:
            self._roll_back(reason, is_blamed=False)

    def _judge(self) -> None:
        """Writes down what probation has brought."""
        match self._judgement.probation:
            case Probation.PASSED:
                # where the disk takes nothing now, the next observation tries again
                if self._change_disk(self._store.confirm):
                    self._judgement.probation = Probation.NONE
            case Probation.FAILED:
                self._roll_back(self._judgement.last_reason, is_blamed=True)

    def _roll_back(self, reason: str, *, is_blamed: bool) -> None:
        logger.warning("model rolled back", extra={"model": self.model, "reason": reason})
        if self._change_disk(lambda: self._store.roll_back(reason, is_blamed=is_blamed)):
            self._restart()
        else:  # the model stays; without the breaker each observation would start its process anew
            self._end_child()
            self._judgement.failed(reason, time.monotonic(), is_counted=False)

    def _restart(self) -> None:
        self._end_child()
        self._judgement = Judgement(is_on_probation=self._store.state.is_on_probation)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _change_disk(self, change: Callable[[], None]) -> bool:
        """Whether the disk has taken it; where not, that is a problem until it does."""
        try:
            change()
        except FieldpostError as error:
            self._disk_problem = str(error)
            return False
        self._disk_problem = ""
        return True


def _read_key(path: Path | None) -> bytes:
    if path is None:
        raise InvalidRequestError(
            "expected the setting model_key_file, but it is absent",
            hint="this station takes no model but the one that came with its software",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"expected a public key at {path}, but got {error.strerror or error}") from error


def _label_of(package: Path) -> str:
    """A package's name and hash by its file alone: reading what is in it would load more than the agent needs."""
    try:
        return label(package.stem, hashlib.sha256(package.read_bytes()).hexdigest())
    except OSError:
        return ""
