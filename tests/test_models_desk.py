"""Models come in, are numbered, activated, rolled back and retired, on both databases, with who did it and why."""

from __future__ import annotations

import asyncio
import functools
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from model_support import PROFILE_MANIFEST, make_profile, make_profile_model
from server_support import make_bundle, open_store
from sqlalchemy import insert, select, update

from fieldpost.errors import BrokenStateError, InvalidRequestError, OverloadedError, UnknownModelError
from fieldpost.v1 import model_pb2, models_service_pb2, prediction_pb2
from server.analyses import AnalysisCard, find_analyses
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.models import catalogue
from server.models.card import ModelState, Restriction
from server.models.desk import ModelDesk
from server.models.files import ModelFiles
from server.models.trial import TrialLimits
from server.queries.predictions import NewPrediction, write_predictions
from server.storage.store import Store
from server.storage.tables import instruments, model_versions, observations
from server.workers.jobs import ModelKey

ANALYSIS = "layer-height"
READY, SHADOW = model_pb2.MODEL_STATE_READY, model_pb2.MODEL_STATE_SHADOW
ACTIVE, RETIRED = model_pb2.MODEL_STATE_ACTIVE, model_pb2.MODEL_STATE_RETIRED


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


class Parts:
    """A desk on a store of its own."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.files = ModelFiles(folder)
        self.changed = Broadcast()
        self.desk = ModelDesk(store, self.files, changed=self.changed, limits=TrialLimits(measure_s=0.0))

    async def submit(self, gain: float, *, manifest: str = PROFILE_MANIFEST, actor: str = "anna") -> tuple[int, bool]:
        content = make_profile_model(gain=gain)
        model, is_known = await self.desk.submit(_submission(manifest), content, actor=actor)
        return model.model_version, is_known

    async def states(self) -> list[int]:
        return [each.state for each in await self.desk.list(ANALYSIS)]

    async def activate(self, version: int) -> None:
        await self.desk.set_state(ModelKey(ANALYSIS, version), ModelState.ACTIVE, actor="anna")


def _submission(manifest: str = PROFILE_MANIFEST) -> models_service_pb2.ModelSubmission:
    return models_service_pb2.ModelSubmission(manifest=manifest, sample_payload=make_profile(), provenance="made here")


@asynccontextmanager
async def _parts(folder: Path, database_url: str = "") -> AsyncIterator[Parts]:
    store = open_store(folder, database_url=database_url)
    try:
        yield Parts(store, folder / "models")
    finally:
        store.close()


@in_event_loop
async def test_a_model_is_submitted_activated_rolled_back_and_retired(tmp_path: Path, database_url: str) -> None:
    async with _parts(tmp_path, database_url) as parts:
        heard = parts.changed.listen()
        assert await parts.submit(1.0) == (1, False)
        assert await parts.submit(2.0) == (2, False)
        assert await parts.states() == [READY, READY]
        await parts.activate(1)
        await asyncio.wait_for(heard, 1)
        await parts.activate(2)
        assert await parts.states() == [READY, ACTIVE]
        back = await parts.desk.roll_back(ANALYSIS, actor="bert", reason="too low")
        assert (back.model_version, back.state) == (1, ACTIVE)
        assert await parts.states() == [ACTIVE, READY]
        await parts.desk.set_state(ModelKey(ANALYSIS, 2), ModelState.RETIRED, actor="anna", reason="useless")
        second = await parts.desk.get(ModelKey(ANALYSIS, 2))
        told = [(each.state, each.actor, each.reason) for each in second.events]
        assert told == [
            (READY, "anna", "submitted and tried"),
            (ACTIVE, "anna", ""),
            (READY, "bert", "version 1 became active: too low"),
            (RETIRED, "anna", "useless"),
        ]


@in_event_loop
async def test_what_was_submitted_is_told_again_as_it_was(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        await parts.submit(1.0)
        model = await parts.desk.get(ModelKey(ANALYSIS, 1))
        content = make_profile_model(gain=1.0)
        assert parts.files.read(model.sha256.hex()) == content
        assert (model.manifest, model.provenance, model.submitter) == (PROFILE_MANIFEST, "made here", "anna")
        assert (model.kind, model.content_bytes) == (model_pb2.MODEL_KIND_ONNX, len(content))
        assert list(model.instrument_models) == ["cl51"]
        assert "system call filter" in model.trial.confinements
        assert model.submit_time.seconds > 1_700_000_000


@in_event_loop
async def test_the_same_model_again_gets_the_version_that_it_has(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        assert await parts.submit(1.0) == (1, False)
        assert await parts.submit(1.0) == (1, True)
        assert await parts.submit(1.0, manifest=PROFILE_MANIFEST + "\n# another\n") == (2, False)
        together = await asyncio.gather(parts.submit(5.0), parts.submit(5.0))
        assert sorted(together) == [(3, False), (3, True)]


@in_event_loop
async def test_samples_are_read_by_nobody_but_a_trial(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        await parts.submit(1.0)
        await parts.activate(1)
        large = update(model_versions).values(sample=bytes(64 * 1024 * 1024))
        await asyncio.wrap_future(parts.store.write(lambda connection: connection.execute(large)))
        tracemalloc.start()
        try:
            await parts.desk.list(ANALYSIS)
            await parts.desk.get(ModelKey(ANALYSIS, 1))
            with parts.store.read() as connection:
                assert len(catalogue.find_at_work(connection)) == len(catalogue.find_fresh(connection, 0)) + 1
            assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
        finally:
            tracemalloc.stop()


@in_event_loop
async def test_a_refused_model_leaves_nothing(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        with pytest.raises(InvalidRequestError, match="format"):
            await parts.desk.submit(_submission(), b"not a model", actor="anna")
        assert await parts.desk.list() == []
        assert list((tmp_path / "models").iterdir()) == []


@in_event_loop
async def test_nobody_may_add_a_version_to_an_analysis_that_is_built_in(tmp_path: Path) -> None:
    name = find_analyses()[0].name
    async with _parts(tmp_path) as parts:
        with pytest.raises(InvalidRequestError, match="not built in"):
            await parts.submit(1.0, manifest=PROFILE_MANIFEST.replace(ANALYSIS, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda submission: submission.ClearField("sample_payload"), "expected a sample payload"),
        (lambda submission: setattr(submission, "sample_instrument_model", "ct25k"), "instrument_model among cl51"),
        (lambda submission: setattr(submission, "provenance", "a\0b"), "no NUL as provenance"),
    ],
)
@in_event_loop
async def test_a_submission_that_lacks_something_is_refused(
    change: Callable[[models_service_pb2.ModelSubmission], None], message: str, tmp_path: Path
) -> None:
    async with _parts(tmp_path) as parts:
        submission = _submission()
        change(submission)
        with pytest.raises(InvalidRequestError, match=message):
            await parts.desk.submit(submission, make_profile_model(), actor="anna")


@in_event_loop
async def test_more_than_a_few_models_that_wait_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.models.desk.WAITING_MAX", 2)
    async with _parts(tmp_path) as parts:
        outcomes = await asyncio.gather(*(parts.submit(float(gain)) for gain in range(1, 4)), return_exceptions=True)
        assert sum(isinstance(each, OverloadedError) for each in outcomes) == 1
        assert sorted(each[0] for each in outcomes if isinstance(each, tuple)) == [1, 2]


@in_event_loop
async def test_a_version_whose_file_was_damaged_does_not_become_active(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        await parts.submit(1.0)
        await parts.activate(1)
        await parts.submit(2.0)
        sha256 = (await parts.desk.get(ModelKey(ANALYSIS, 2))).sha256.hex()
        path = tmp_path / "models" / f"{sha256}.onnx"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BrokenStateError, match="SHA-256"):
            await parts.activate(2)
        path.unlink()
        with pytest.raises(BrokenStateError, match="cannot be read"):
            await parts.activate(2)
        assert await parts.states() == [ACTIVE, READY]


@in_event_loop
async def test_an_active_version_leaves_only_for_another_or_for_good(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        await parts.submit(1.0)
        await parts.activate(1)
        for wanted in (ModelState.READY, ModelState.SHADOW):
            with pytest.raises(InvalidRequestError, match="which is active, to become retired") as caught:
                await parts.desk.set_state(ModelKey(ANALYSIS, 1), wanted, actor="anna")
            assert "activate another version" in caught.value.hint
        with pytest.raises(InvalidRequestError, match="active before"):
            await parts.desk.roll_back(ANALYSIS, actor="anna")
        await parts.desk.set_state(ModelKey(ANALYSIS, 1), ModelState.RETIRED, actor="anna")
        with pytest.raises(UnknownModelError):
            await parts.desk.roll_back(ANALYSIS, actor="anna")
        with parts.store.read() as connection:
            assert catalogue.find_card(connection, ANALYSIS, 1) is None


@in_event_loop
async def test_the_same_state_again_changes_nothing(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        await parts.submit(1.0)
        await parts.activate(1)
        await parts.activate(1)
        assert len((await parts.desk.get(ModelKey(ANALYSIS, 1))).events) == 2


@in_event_loop
async def test_rolling_back_from_a_version_that_is_gone_already_does_nothing(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        for gain in (1.0, 2.0, 3.0):
            await parts.activate((await parts.submit(gain))[0])
        for _ in range(2):
            await parts.desk.roll_back(ANALYSIS, actor="server", only_from=3)
        assert await parts.states() == [READY, ACTIVE, READY]


@in_event_loop
async def test_what_does_not_exist_cannot_be_told_anything(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        for key in (ModelKey(ANALYSIS, 1), ModelKey("a\0b", 1), ModelKey("x" * 1000, 1)):
            with pytest.raises(UnknownModelError):
                await parts.desk.get(key)
            with pytest.raises(UnknownModelError):
                await parts.desk.set_state(key, ModelState.ACTIVE, actor="anna")
        with pytest.raises(InvalidRequestError):
            await parts.desk.set_state(ModelKey(ANALYSIS, 0), ModelState.RETIRED, actor="anna")


@in_event_loop
async def test_restricting_sends_a_version_back_to_the_beginning(tmp_path: Path, database_url: str) -> None:
    async with _parts(tmp_path, database_url) as parts:
        await parts.submit(1.0)
        parts.store.write(lambda c: c.execute(update(model_versions).values(settled_observation_id=99))).result()
        restriction = Restriction(stations=("lindenberg",), instruments=("lindenberg/cl51",))
        model = await parts.desk.restrict(ModelKey(ANALYSIS, 1), restriction, actor="anna")
        assert list(model.restriction.stations) == ["lindenberg"]
        assert model.events[-1].reason == "restricted to lindenberg, lindenberg/cl51"
        with parts.store.read() as connection:
            assert connection.scalar(select(model_versions.c.settled_observation_id)) == 0
            card = catalogue.find_card(connection, ANALYSIS, 1)
        assert card is not None and card.restriction == restriction
        for wrong in (Restriction(stations=("nowhere",)), Restriction(instruments=("lindenberg/none",))):
            with pytest.raises(InvalidRequestError, match="registered"):
                await parts.desk.restrict(ModelKey(ANALYSIS, 1), wrong, actor="anna")


@in_event_loop
async def test_what_is_at_work_is_what_is_active_and_what_is_a_shadow(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        for gain in (1.0, 2.0, 3.0):
            await parts.submit(gain)
        await parts.activate(1)
        await parts.desk.set_state(ModelKey(ANALYSIS, 2), ModelState.SHADOW, actor="anna")
        with parts.store.read() as connection:
            at_work = {card.key.version: card.state for card in catalogue.find_at_work(connection)}
            active = catalogue.find_card(connection, ANALYSIS, 0)
            package = catalogue.make_package(connection, parts.files, ModelKey(ANALYSIS, 3))
        assert at_work == {1: ModelState.ACTIVE, 2: ModelState.SHADOW}
        assert active is not None and active.key.version == 1
        assert package.content == make_profile_model(gain=3.0) and package.manifest == PROFILE_MANIFEST


@in_event_loop
async def test_a_shadow_is_compared_with_the_active_version(tmp_path: Path, database_url: str) -> None:
    async with _parts(tmp_path, database_url) as parts:
        ingest = Ingest(parts.store, payload_bytes_max=1024 * 1024, on_stored=lambda: None)
        ingest.submit(make_bundle(1, 2, 3, 4)).result()
        ingest.close()
        await parts.submit(1.0)
        await parts.submit(2.0)
        await parts.activate(1)
        await parts.desk.set_state(ModelKey(ANALYSIS, 2), ModelState.SHADOW, actor="anna")
        with parts.store.read() as connection:
            seen = list(connection.scalars(select(observations.c.id).order_by(observations.c.id)))
            instrument_id = connection.scalar(select(instruments.c.id))
            rows = {card.key.version: card.row_id for card in catalogue.find_at_work(connection)}
        assert instrument_id is not None

        def content(value: float | None) -> bytes:
            message = prediction_pb2.Prediction(sample_unix_nanos=[1], failure="" if value is not None else "broke")
            if value is not None:
                message.variables.add(name="layer_height", unit="m", values=[value])
            return message.SerializeToString()

        values = {1: [10.0, 20.0, 30.0, None], 2: [11.0, 19.0, None, 5.0]}
        new = [
            NewPrediction(observation_id, rows[version], instrument_id, 1, 1, content(value), value is None)
            for version, said in values.items()
            for observation_id, value in zip(seen, said, strict=True)
        ]
        parts.store.write(lambda connection: write_predictions(connection, new)).result()
        found = (await parts.desk.get(ModelKey(ANALYSIS, 2))).comparison
        assert (found.observation_count, found.only_shadow_failed_count, found.only_active_failed_count) == (4, 1, 1)
        [variable] = found.variables
        assert (variable.name, variable.unit, variable.sample_count) == ("layer_height", "m", 2)
        assert (variable.mean_difference, variable.mean_absolute_difference) == (0.0, 1.0)


def test_of_an_analysis_that_is_built_in_the_newest_version_is_active_at_first(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    def cards(*versions: int) -> list[AnalysisCard]:
        return [AnalysisCard("none", "heights", version, frozenset({"cl51"}), 64) for version in versions]

    def states() -> list[str]:
        with store.read() as connection:
            return list(connection.scalars(select(model_versions.c.state).order_by(model_versions.c.version)))

    store.write(lambda connection: catalogue.register_built_in(connection, cards(1, 2))).result()
    assert states() == ["ready", "active"]
    store.write(lambda connection: catalogue.register_built_in(connection, cards(1, 2, 3))).result()
    assert states() == ["ready", "active", "ready"], "a new checkout changes nothing by itself"
    store.close()


def test_a_row_of_a_built_in_version_that_is_not_in_this_checkout_is_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    row = {"analysis": "gone", "version": 1, "state": "active", "kind": "built-in", "first_active_unix_nanos": 0}
    store.write(lambda connection: connection.execute(insert(model_versions).values(**row))).result()
    with store.read() as connection:
        assert catalogue.find_at_work(connection) == []
    store.close()


@in_event_loop
async def test_a_version_whose_manifest_is_not_understood_any_more_stops_no_other(tmp_path: Path) -> None:
    async with _parts(tmp_path) as parts:
        await parts.submit(1.0)
        await parts.activate(1)
        await parts.submit(2.0)
        await parts.desk.set_state(ModelKey(ANALYSIS, 2), ModelState.SHADOW, actor="anna")
        older = update(model_versions).where(model_versions.c.version == 1).values(manifest="analysis = 1")
        parts.store.write(lambda connection: connection.execute(older)).result()
        with parts.store.read() as connection:
            assert [card.key.version for card in catalogue.find_at_work(connection)] == [2]
        assert [list(each.instrument_models) for each in await parts.desk.list()] == [[], ["cl51"]]
