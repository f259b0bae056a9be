"""The calls about models, for both clients. What they ask for is built in _model_requests.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fieldpost._async_connection import AsyncConnection
from fieldpost._connection import Connection
from fieldpost._model_requests import (
    SUBMIT_TIMEOUT_S,
    Content,
    Progress,
    get_request,
    restrict_request,
    roll_back_request,
    state_request,
    submission_parts,
    submit_requests,
)
from fieldpost.errors import UnknownModelError
from fieldpost.v1 import models_service_pb2 as pb
from fieldpost.v1.model_pb2 import (
    MODEL_STATE_ACTIVE,
    MODEL_STATE_RETIRED,
    MODEL_STATE_SHADOW,
    Model,
    ModelState,
)
from fieldpost.v1.models_service_pb2_grpc import ModelsStub

if TYPE_CHECKING:
    from fieldpost.v1.models_service_pb2_grpc import ModelsAsyncStub

PROVE_TIMEOUT_S = 120.0
"""Activating proves the version on its sample before anything is switched."""


class Models:
    """Model versions: trained answers to an analysis. `client.models` is one."""

    def __init__(self, connection: Connection, stub: ModelsStub) -> None:
        self._connection = connection
        self._stub = stub

    def submit(
        self,
        model: Content,
        *,
        manifest: str | Path,
        sample: Content | None = None,
        sample_instrument_model: str = "",
        provenance: str = "",
        progress: Progress | None = None,
        timeout_s: float = SUBMIT_TIMEOUT_S,
    ) -> pb.SubmitModelResponse:
        """Submits an ONNX model, and returns when it has been tried.

        In the answer, `model` is its version, `is_known` whether it was there before.

        It predicts nothing before `shadow` or `activate`, but what it is asked by its number.

        Args:
            model: The ONNX file: its bytes, or its path.
            manifest: What goes in and comes out: TOML text, or the path of a file that holds it.
            sample: A payload on which it is tried: its bytes, or its path.
            sample_instrument_model: Which instrument model wrote the sample, where the manifest names several.
            provenance: What is to be kept about where the model comes from: data, code, metrics.
            progress: Told how many bytes of the model are sent.
            timeout_s: How long sending and trying may take together.

        Raises:
            RejectedError: The server refuses the model, and says which rule it breaks, where.
            NotAllowedError: Only operators may.
            TryAgainError: The server cannot be reached. Submitting the same again gets the same version.
        """
        submission, pieces = submission_parts(model, manifest, sample, sample_instrument_model, provenance)
        requests = submit_requests(submission, pieces, progress)
        return self._connection.call(self._stub.Submit, requests, timeout_s=timeout_s, unknown=UnknownModelError)

    def list(self, analysis: str = "") -> list[Model]:
        """The versions of an analysis, or all; without events and comparison."""
        return [*self._connection.call(self._stub.List, pb.ListModelsRequest(analysis=analysis)).models]

    def get(self, analysis: str, version: int) -> Model:
        """Everything that is known of a version.

        Raises:
            UnknownModelError: There is none.
        """
        return self._connection.call(self._stub.Get, get_request(analysis, version), unknown=UnknownModelError).model

    def shadow(self, analysis: str, version: int, *, reason: str = "") -> Model:
        """Lets a version predict beside the active one; what it says is compared, not served."""
        return self._set(analysis, version, MODEL_STATE_SHADOW, reason)

    def activate(self, analysis: str, version: int, *, reason: str = "") -> Model:
        """Lets a version predict everything that comes, once it has been proved on its sample."""
        return self._set(analysis, version, MODEL_STATE_ACTIVE, reason)

    def retire(self, analysis: str, version: int, *, reason: str = "") -> Model:
        """Lets a version predict no more. What it predicted while it was active is still served."""
        return self._set(analysis, version, MODEL_STATE_RETIRED, reason)

    def _set(self, analysis: str, version: int, state: ModelState.ValueType, reason: str) -> Model:
        request = state_request(analysis, version, state, reason)
        return self._connection.call(
            self._stub.SetState, request, timeout_s=PROVE_TIMEOUT_S, unknown=UnknownModelError
        ).model

    def roll_back(self, analysis: str, *, reason: str = "") -> Model:
        """Makes the version active that was active before; returns it."""
        request = roll_back_request(analysis, reason)
        return self._connection.call(
            self._stub.RollBack, request, timeout_s=PROVE_TIMEOUT_S, unknown=UnknownModelError
        ).model

    def restrict(
        self, analysis: str, version: int, *, stations: Iterable[str] = (), instruments: Iterable[str] = ()
    ) -> Model:
        """Lets a version predict for these stations and instruments only, each as station/instrument; none: for all."""
        request = restrict_request(analysis, version, stations, instruments)
        return self._connection.call(self._stub.Restrict, request, unknown=UnknownModelError).model


class AsyncModels:
    """The same calls for asyncio programs; see Models."""

    def __init__(self, connection: AsyncConnection, stub: ModelsAsyncStub) -> None:
        self._connection = connection
        self._stub = stub

    async def submit(
        self,
        model: Content,
        *,
        manifest: str | Path,
        sample: Content | None = None,
        sample_instrument_model: str = "",
        provenance: str = "",
        progress: Progress | None = None,
        timeout_s: float = SUBMIT_TIMEOUT_S,
    ) -> pb.SubmitModelResponse:
        """Submits an ONNX model; see Models.submit."""
        submission, pieces = await asyncio.to_thread(
            submission_parts, model, manifest, sample, sample_instrument_model, provenance
        )
        requests = submit_requests(submission, pieces, progress)

        async def as_they_are_asked_for() -> AsyncIterator[pb.SubmitModelRequest]:
            while (request := await asyncio.to_thread(next, requests, None)) is not None:
                yield request

        return await self._connection.call(
            self._stub.Submit, as_they_are_asked_for(), timeout_s=timeout_s, unknown=UnknownModelError
        )

    async def list(self, analysis: str = "") -> list[Model]:
        """The versions of an analysis, or all; without events and comparison."""
        return [*(await self._connection.call(self._stub.List, pb.ListModelsRequest(analysis=analysis))).models]

    async def get(self, analysis: str, version: int) -> Model:
        """Everything that is known of a version."""
        request = get_request(analysis, version)
        return (await self._connection.call(self._stub.Get, request, unknown=UnknownModelError)).model

    async def shadow(self, analysis: str, version: int, *, reason: str = "") -> Model:
        """Lets a version predict beside the active one; see Models.shadow."""
        return await self._set(analysis, version, MODEL_STATE_SHADOW, reason)

    async def activate(self, analysis: str, version: int, *, reason: str = "") -> Model:
        """Lets a version predict everything that comes; see Models.activate."""
        return await self._set(analysis, version, MODEL_STATE_ACTIVE, reason)

    async def retire(self, analysis: str, version: int, *, reason: str = "") -> Model:
        """Lets a version predict no more; see Models.retire."""
        return await self._set(analysis, version, MODEL_STATE_RETIRED, reason)

    async def _set(self, analysis: str, version: int, state: ModelState.ValueType, reason: str) -> Model:
        request = state_request(analysis, version, state, reason)
        response = await self._connection.call(
            self._stub.SetState, request, timeout_s=PROVE_TIMEOUT_S, unknown=UnknownModelError
        )
        return response.model

    async def roll_back(self, analysis: str, *, reason: str = "") -> Model:
        """Makes the version active that was active before; see Models.roll_back."""
        request = roll_back_request(analysis, reason)
        response = await self._connection.call(
            self._stub.RollBack, request, timeout_s=PROVE_TIMEOUT_S, unknown=UnknownModelError
        )
        return response.model

    async def restrict(
        self, analysis: str, version: int, *, stations: Iterable[str] = (), instruments: Iterable[str] = ()
    ) -> Model:
        """Lets a version predict for these stations and instruments only; see Models.restrict."""
        request = restrict_request(analysis, version, stations, instruments)
        return (await self._connection.call(self._stub.Restrict, request, unknown=UnknownModelError)).model
