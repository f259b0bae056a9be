"""A user's model from submission to retirement, and large observations in pieces, over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_support import Running, Stubs, run
from model_support import PROFILE_MANIFEST, make_profile, make_profile_model
from server_support import make_observation

from fieldpost.v1 import (
    ingest_service_pb2,
    model_pb2,
    models_service_pb2,
    models_service_pb2_grpc,
    observation_pb2,
    observations_service_pb2,
    predictions_service_pb2,
)


async def submit(stubs: Stubs, content: bytes, manifest: str = PROFILE_MANIFEST) -> Any:
    async def parts() -> AsyncIterator[models_service_pb2.SubmitModelRequest]:
        submission = models_service_pb2.ModelSubmission(manifest=manifest, sample_payload=make_profile())
        yield models_service_pb2.SubmitModelRequest(submission=submission)
        for start in range(0, len(content), 100):
            yield models_service_pb2.SubmitModelRequest(content=content[start : start + 100])

    return await stubs.models.Submit(parts())


async def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.details()
    return caught.value.code()


def refusal_of_large(address: str) -> grpc.StatusCode:
    """Submits more than the server takes. Not over grpc.aio, whose client may tell of its own failed write instead."""
    submission = models_service_pb2.ModelSubmission(manifest=PROFILE_MANIFEST, sample_payload=make_profile())
    parts = [models_service_pb2.SubmitModelRequest(submission=submission)]
    parts += [models_service_pb2.SubmitModelRequest(content=b"x" * (1 << 19))] * 8
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        models_service_pb2_grpc.ModelsStub(channel).Submit(iter(parts), timeout=20)
    code: grpc.StatusCode = caught.value.code()  # type: ignore[attr-defined]
    return code


def test_a_model_goes_from_submission_to_retirement(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        answer = await submit(stubs, make_profile_model())
        assert (answer.model.model_version, answer.model.submitter, answer.is_known) == (1, "local", False)
        assert (await submit(stubs, make_profile_model())).is_known
        state = models_service_pb2.SetModelStateRequest(
            analysis="layer-height", model_version=1, state=model_pb2.MODEL_STATE_ACTIVE, reason="trusted"
        )
        assert (await stubs.models.SetState(state)).model.state == model_pb2.MODEL_STATE_ACTIVE
        restrict = models_service_pb2.RestrictModelRequest(
            analysis="layer-height", model_version=1, restriction={"stations": ["lindenberg"]}
        )
        assert (await stubs.models.Restrict(restrict)).model.restriction.stations == ["lindenberg"]
        listed = await stubs.models.List(models_service_pb2.ListModelsRequest(analysis="layer-height"))
        assert [each.model_version for each in listed.models] == [1]
        got = await stubs.models.Get(models_service_pb2.GetModelRequest(analysis="layer-height", model_version=1))
        assert {each.actor for each in got.model.events} == {"local"}
        assert "trusted" in {each.reason for each in got.model.events}

    run(tmp_path, scenario)


def test_what_makes_no_sense_of_models_is_refused(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
        assert await refusal(submit(stubs, b"not an ONNX file")) is invalid
        assert await asyncio.to_thread(refusal_of_large, running.address) is invalid
        assert await refusal(stubs.models.Submit(iter([]))) is invalid
        chunk = models_service_pb2.SubmitModelRequest(content=b"x")
        assert await refusal(stubs.models.Submit(iter([chunk]))) is invalid
        named = {"analysis": "layer-height", "model_version": 4}
        assert await refusal(stubs.models.Get(models_service_pb2.GetModelRequest(**named))) is missing
        assert await refusal(stubs.models.SetState(models_service_pb2.SetModelStateRequest(**named))) is invalid
        activate = models_service_pb2.SetModelStateRequest(**named, state=model_pb2.MODEL_STATE_ACTIVE)
        assert await refusal(stubs.models.SetState(activate)) is missing
        assert await refusal(stubs.models.RollBack(models_service_pb2.RollBackModelRequest(analysis="x"))) is missing

    run(tmp_path, scenario)


def large_observation(size_bytes: int) -> observation_pb2.Observation:
    content = random.Random(1).randbytes(size_bytes)
    observation = make_observation(1, content)
    assert observation.payload == content
    return observation


def start_of(observation: observation_pb2.Observation) -> ingest_service_pb2.UploadRequest:
    start = ingest_service_pb2.UploadStart(header=observation.header, encoded_bytes=len(observation.payload))
    return ingest_service_pb2.UploadRequest(start=start)


def piece(content: bytes, offset: int, length: int) -> ingest_service_pb2.UploadRequest:
    chunk = ingest_service_pb2.UploadChunk(offset_bytes=offset, content=content[offset : offset + length])
    return ingest_service_pb2.UploadRequest(chunk=chunk)


def test_an_upload_goes_on_after_a_cut_and_is_read_back(tmp_path: Path) -> None:
    observation = large_observation(5 << 20)
    content, step = observation.payload, 1 << 20

    async def upload(stubs: Stubs, *, cut_at: int | None = None) -> tuple[int, Any]:
        call = stubs.ingest.Upload()
        await call.write(start_of(observation))
        answer = await call.read()
        held = first = answer.held_bytes
        while not answer.HasField("receipt") and held < len(content):
            if cut_at is not None and held >= cut_at:
                await call.done_writing()
                with pytest.raises(grpc.aio.AioRpcError) as caught:  # what came is on the disk, and it says so
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                return first, None
            await call.write(piece(content, held, step))
            held += step
        while not answer.HasField("receipt"):
            answer = await call.read()
        return first, answer.receipt

    async def scenario(running: Running, stubs: Stubs) -> None:
        assert await upload(stubs, cut_at=3 * step) == (0, None)
        first, receipt = await upload(stubs)
        assert first == 3 * step
        assert [(each.first_sequence, each.last_sequence) for each in receipt.held_ranges] == [(1, 1)]
        assert (await upload(stubs))[1].duplicate_count == 1  # held already: nothing is sent
        request = observations_service_pb2.ReadObservationRequest(
            station="lindenberg", epoch=observation.header.epoch, sequence=1
        )
        read = b"".join([each.content async for each in stubs.observations.Read(request)])
        assert hashlib.sha256(read).digest() == observation.header.sha256

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda content: [piece(content, 0, 10)],
        lambda content: [start_of(large_observation(2 << 20)), start_of(large_observation(2 << 20))],
        lambda content: [start_of(large_observation(2 << 20)), piece(content, 10, 10)],
        lambda content: [],
    ],
)
def test_an_upload_in_a_wrong_order_is_refused_and_lets_go(tmp_path: Path, wrong: Any) -> None:
    observation = large_observation(2 << 20)

    async def scenario(running: Running, stubs: Stubs) -> None:
        call = stubs.ingest.Upload(iter(wrong(observation.payload)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        again = stubs.ingest.Upload()
        await again.write(start_of(observation))
        assert (await again.read()).held_bytes == 0  # nobody holds it any more
        again.cancel()

    run(tmp_path, scenario)


def test_a_caller_that_goes_while_it_changes_something_stops_nobody_elses_writing(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        retry = predictions_service_pb2.RetryPredictionsRequest(analysis="height")
        for _ in range(30):
            call = stubs.predictions.Retry(retry)
            await asyncio.sleep(0.001)
            call.cancel()
        assert (await stubs.predictions.Retry(retry, timeout=10)).retry_count == 0

    run(tmp_path, scenario)
