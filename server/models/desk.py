"""Where users' models come in and are told what to do: looks, tries, numbers, activates, rolls back. Knows no gRPC.

What a model version is stays what it was when it was submitted; only its state changes, always in one transaction, and
always with who did it and why.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from fieldpost.errors import InvalidRequestError, OverloadedError, TryAgainError, UnknownModelError
from fieldpost.names import NAME_PATTERN
from fieldpost.v1 import inference_service_pb2, model_pb2, models_service_pb2
from server.analyses import find_analyses
from server.broadcast import Broadcast
from server.models import catalogue
from server.models.card import ModelKind, ModelState, Restriction
from server.models.comparing import compare
from server.models.files import SAFETENSORS, ModelFiles
from server.models.manifest import read_manifest
from server.models.messages import to_message
from server.models.trial import TrialLimits, try_model
from server.storage.store import Store
from server.workers.jobs import ModelKey, ModelPackage

logger = logging.getLogger(__name__)

T = TypeVar("T")
Models: TypeAlias = list[model_pb2.Model]
WAITING_MAX = 8
"""Models that wait for their trial; each holds its content in memory."""
REASON_CHARACTERS_MAX = 10_000
PROVENANCE_CHARACTERS_MAX = 1_000_000
NUMBERING_TRIES = 5


class ModelDesk:
    """Takes models and orders about them.

    Args:
        store: Whose model versions they are.
        files: Where their contents lie.
        changed: Told, in the event loop, when something about a version changed that is at work or was.
        limits: What a model may take while it is tried.
        sample_bytes_max: Length of a sample.
    """

    def __init__(
        self,
        store: Store,
        files: ModelFiles,
        *,
        changed: Broadcast,
        limits: TrialLimits | None = None,
        sample_bytes_max: int = 32 * 1024 * 1024,
    ) -> None:
        self._store, self._files, self._changed = store, files, changed
        self._limits = limits or TrialLimits()
        self._sample_bytes_max = sample_bytes_max
        self._trial = asyncio.Lock()
        self._waiting_count = 0

    async def submit(
        self, submission: models_service_pb2.ModelSubmission, content: bytes, *, actor: str
    ) -> tuple[model_pb2.Model, bool]:
        """Tries a model and gives it a version; tells whether it had one already.

        Raises:
            InvalidRequestError: It is refused; the message names the rule.
            OverloadedError: Too many wait for their trial.
        """
        manifest = await asyncio.to_thread(read_manifest, submission.manifest)  # long ones take a while
        analysis = manifest.analysis
        if analysis in {card.name for card in find_analyses()}:
            raise InvalidRequestError(
                f"expected an analysis that is not built in, but got {analysis!r}",
                hint="give the analysis another name in the manifest",
            )
        if len(content) > self._limits.model_bytes_max:
            raise InvalidRequestError(
                f"size: expected a model of at most {self._limits.model_bytes_max} bytes, but got {len(content)}",
                hint="the server's setting model_bytes_max says how large one may be",
            )
        _check_text("provenance", submission.provenance, PROVENANCE_CHARACTERS_MAX)
        sample = self._check_sample(submission, manifest.instrument_models)
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        known = await self._read(
            lambda connection: catalogue.find_same(connection, analysis, sha256, submission.manifest)
        )
        if known is not None:
            return await self.get(known), True
        package = ModelPackage(ModelKey(analysis, 0), submission.manifest, content)
        async with self._turn():
            trial = await try_model(package, sample.payload, self._limits)
        await asyncio.to_thread(self._files.keep, content)
        new = catalogue.NewModel(
            analysis=analysis,
            sha256=sha256,
            content_bytes=len(content),
            manifest=submission.manifest,
            provenance=submission.provenance,
            submitter=actor,
            sample=sample.SerializeToString(),
            trial=trial,
        )
        key, is_known = await self._number(new)
        logger.info("model submitted", extra={"model": str(key), "actor": actor, "is_known": is_known})
        return await self.get(key), is_known

    async def list(self, analysis: str = "") -> Models:
        """All versions, of one analysis or of all, without manifest, provenance, events and comparison."""
        if analysis and not NAME_PATTERN.fullmatch(analysis):
            return []
        return await self._read(
            lambda connection: [to_message(row, is_whole=False) for row in catalogue.list_rows(connection, analysis)]
        )

    async def get(self, key: ModelKey) -> model_pb2.Model:
        """Everything of one version; version 0: the active one. Raises UnknownModelError where there is none."""
        _check_name(key.analysis)
        return await self._read(lambda connection: _read_model(connection, key))

    async def set_state(self, key: ModelKey, state: ModelState, *, actor: str, reason: str = "") -> model_pb2.Model:
        """Gives a version another state. Activating proves it on its sample first.

        Raises:
            UnknownModelError: There is no such version.
            InvalidRequestError: It cannot go there from where it is, or did not pass its sample again.
        """
        _check_version(key)
        _check_text("reason", reason, REASON_CHARACTERS_MAX)
        if state is ModelState.ACTIVE:
            await self._prove(key)
        await self._change(key, state, actor, reason)
        return await self.get(key)

    async def roll_back(self, analysis: str, *, actor: str, reason: str = "", only_from: int = 0) -> model_pb2.Model:
        """Makes the version active that was active before. It has proved itself at work, and is not tried again.

        Args:
            analysis: Of which analysis.
            actor: Who wants it.
            reason: Why, for those who ask later.
            only_from: Nothing is done where another version than this one is active by now; 0 for any.

        Raises:
            UnknownModelError: The analysis has no active version.
            InvalidRequestError: No other version was active before, or it is retired.
        """
        _check_name(analysis)
        _check_text("reason", reason, REASON_CHARACTERS_MAX)

        def go_back(connection: Connection) -> ModelKey:
            catalogue.lock(connection, analysis)
            active = catalogue.get_row(connection, ModelKey(analysis, 0))
            if only_from not in (0, active.version):
                return ModelKey(analysis, active.version)
            previous = catalogue.find_before(connection, analysis)
            if previous is None:
                raise InvalidRequestError(
                    f"expected a version of {analysis} that was active before, but there is none",
                    hint="activate the version that you want by its number",
                )
            why = reason or "rolled back"
            catalogue.change_state(connection, previous, ModelState.ACTIVE, actor, why, time.time_ns())
            return previous

        key = await self._write(go_back)
        logger.info("model rolled back", extra={"model": str(key), "actor": actor, "reason": reason})
        self._changed.tell()
        return await self.get(key)

    async def restrict(self, key: ModelKey, restriction: Restriction, *, actor: str) -> model_pb2.Model:
        """Says for which stations and instruments a version predicts.

        Raises:
            UnknownModelError: There is no such version.
            InvalidRequestError: A station or an instrument is not registered.
        """
        _check_version(key)
        for name in (*restriction.stations, *restriction.instruments):
            if not all(NAME_PATTERN.fullmatch(part) for part in name.split("/")):
                raise InvalidRequestError(f"expected names of stations and station/instrument, but got {name[:200]!r}")
        await self._write(
            lambda connection: catalogue.restrict_version(connection, key, restriction, actor, time.time_ns())
        )
        self._changed.tell()
        return await self.get(key)

    def _check_sample(
        self, submission: models_service_pb2.ModelSubmission, instrument_models: tuple[str, ...]
    ) -> inference_service_pb2.PredictItem:
        payload = submission.sample_payload
        if not payload or len(payload) > self._sample_bytes_max:
            raise InvalidRequestError(
                f"expected a sample payload of 1 to {self._sample_bytes_max} bytes, but got {len(payload)}",
                hint="submit one payload as the instrument writes it; the model is tried on it",
            )
        instrument_model = submission.sample_instrument_model or (
            instrument_models[0] if len(instrument_models) == 1 else ""
        )
        if instrument_model not in instrument_models:
            raise InvalidRequestError(
                f"expected sample_instrument_model among {', '.join(instrument_models)}, "
                f"but got {instrument_model[:80]!r}"
            )
        return inference_service_pb2.PredictItem(
            payload=payload, payload_bytes=len(payload), instrument_model=instrument_model
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One trial at a time: it measures."""
        if self._waiting_count >= WAITING_MAX:
            raise OverloadedError(
                f"expected at most {WAITING_MAX} models that wait for their trial, but one more came",
                hint="submit it again in a minute",
            )
        self._waiting_count += 1
        try:
            async with self._trial:
                yield
        finally:
            self._waiting_count -= 1

    async def _prove(self, key: ModelKey) -> None:
        """Tries a version once more, as its file is now and on this machine."""
        row = await self._read(lambda connection: catalogue.get_row(connection, key))
        if row.kind == ModelKind.BUILT_IN or row.state == ModelState.ACTIVE:
            return
        if row.kind == ModelKind.TRAINED:  # numbers for code that is ours: whole is all that they can be proved to be
            await asyncio.to_thread(self._files.read, row.sha256, SAFETENSORS)
            return
        package = ModelPackage(key, row.manifest, await asyncio.to_thread(self._files.read, row.sha256))
        content = await self._read(lambda connection: catalogue.read_sample(connection, row.id))
        sample = inference_service_pb2.PredictItem.FromString(content)
        async with self._turn():
            await try_model(package, sample.payload, self._limits)

    async def _number(self, new: catalogue.NewModel) -> tuple[ModelKey, bool]:
        def add(connection: Connection) -> tuple[ModelKey, bool]:
            known = catalogue.find_same(connection, new.analysis, new.sha256, new.manifest)
            if known is not None:
                return known, True
            return catalogue.add_version(connection, new, time.time_ns()), False

        for _ in range(NUMBERING_TRIES):
            try:
                return await self._write(add)
            except IntegrityError:  # another server process took the number
                continue
        raise TryAgainError(f"expected a free number for a version of {new.analysis}, but others took them all")

    async def _change(self, key: ModelKey, state: ModelState, actor: str, reason: str) -> None:
        is_new = await self._write(
            lambda connection: catalogue.change_state(connection, key, state, actor, reason, time.time_ns())
        )
        if is_new:
            facts = {"model": str(key), "state": str(state), "actor": actor, "reason": reason}
            logger.info("model changed", extra=facts)
            self._changed.tell()

    async def _read(self, query: Callable[[Connection], T]) -> T:
        def read() -> T:
            with self._store.read() as connection:
                return query(connection)

        return await asyncio.to_thread(read)

    async def _write(self, operation: Callable[[Connection], T]) -> T:
        return await asyncio.wrap_future(self._store.write(operation))


def _read_model(connection: Connection, key: ModelKey) -> model_pb2.Model:
    row = catalogue.get_row(connection, key)
    message = to_message(row, catalogue.list_events(connection, row.id))
    if row.state == ModelState.SHADOW:
        active = catalogue.find_row(connection, ModelKey(key.analysis, 0))
        if active is not None:
            message.comparison.CopyFrom(compare(connection, row.id, active.id))
    return message


def _check_name(analysis: str) -> None:
    if not NAME_PATTERN.fullmatch(analysis):
        raise UnknownModelError(f"expected the name of an analysis, but got {analysis[:80]!r}")


def _check_version(key: ModelKey) -> None:
    _check_name(key.analysis)
    if key.version < 1:
        raise InvalidRequestError(f"expected the number of a version, 1 or higher, but got {key.version}")


def _check_text(what: str, text: str, characters_max: int) -> None:
    if len(text) > characters_max or "\0" in text:
        raise InvalidRequestError(
            f"expected at most {characters_max} characters and no NUL as {what}, but got {len(text)} characters"
        )
