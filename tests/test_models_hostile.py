"""What somebody might submit to harm the server is refused with its reason, and the server's process is unharmed."""

from __future__ import annotations

import asyncio
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_models import AT_WORK, STATIC, Hostile, image_bomb, torch_archive
from model_support import CLASSIFIER_MANIFEST, PROFILE_MANIFEST, make_classifier, make_profile, make_profile_model

from fieldpost.errors import FieldpostError, InvalidRequestError
from server.models.trial import TrialLimits, try_model
from server.workers.jobs import ModelKey, ModelPackage

MIB = 1024 * 1024
LIMITS = TrialLimits(memory_bytes=1024 * MIB, wall_s=30.0, measure_s=0.0)
AT_ONCE = 3


@pytest.fixture(scope="module")
def findings() -> dict[str, FieldpostError | None]:
    """What the trial says of each, some at once; None where it found nothing wrong."""

    async def try_all() -> dict[str, FieldpostError | None]:
        room = asyncio.Semaphore(AT_ONCE)

        async def try_one(name: str, hostile: Hostile) -> tuple[str, FieldpostError | None]:
            async with room:
                package = ModelPackage(ModelKey("layer-height", 1), PROFILE_MANIFEST + hostile.extra, hostile.make())
                try:
                    await try_model(package, hostile.sample(), replace(LIMITS, wall_s=hostile.wall_s))
                except FieldpostError as error:
                    return name, error
                return name, None

        return dict(await asyncio.gather(*(try_one(*each) for each in {**STATIC, **AT_WORK}.items())))

    return asyncio.run(try_all())


@pytest.mark.parametrize("name", [*STATIC, *AT_WORK])
def test_a_hostile_model_is_refused_with_its_reason(name: str, findings: dict[str, FieldpostError | None]) -> None:
    error = findings[name]
    assert type(error) is InvalidRequestError, repr(error)
    assert str(error).startswith({**STATIC, **AT_WORK}[name].rule), str(error)


async def _try(manifest: str, content: bytes, sample: bytes, limits: TrialLimits = LIMITS) -> None:
    await try_model(ModelPackage(ModelKey("cloud-type", 1), manifest, content), sample, limits)


def test_a_sample_that_is_an_image_bomb_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="sample: expected an image of at most"):
        asyncio.run(_try(CLASSIFIER_MANIFEST, make_classifier(), image_bomb()))


def test_a_file_larger_than_the_limit_is_refused() -> None:
    limits = TrialLimits(model_bytes_max=100)
    with pytest.raises(InvalidRequestError, match="size: expected a model of at most 100 bytes"):
        asyncio.run(_try(PROFILE_MANIFEST, make_profile_model(), make_profile(), limits))


def test_trying_hostile_models_leaves_no_process_no_file_and_no_memory_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (torch_archive(), STATIC["a deep protobuf"].make(), AT_WORK["a giant constant"].make()):
        with pytest.raises(InvalidRequestError):
            asyncio.run(_try(PROFILE_MANIFEST, content, make_profile()))
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before < 100 * 1024
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not any("trial_child" in Path(f"/proc/{each}/cmdline").read_text() for each in children)
