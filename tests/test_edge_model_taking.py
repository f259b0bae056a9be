"""Taking a model for the quick look: real signatures, real trials, models that are wrong or slow, and the disk."""

# ruff: noqa: F401, F811  (fixtures are found by their imported names)

from __future__ import annotations

import io
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from quick_look_support import (
    BUDGET_MS,
    ROOT,
    TELEGRAMS,
    fast_backoff,
    keys,
    look_at,
    model_without_numbers,
    npy,
    repacked,
    slowed_model,
    start,
    wait_for_look,
    wait_until,
    worker,
)

from edge_agent.quick_look.judgement import PROBATION_FAILURES_MAX
from edge_agent.quick_look.model_store import Model, ModelStore
from edge_agent.quick_look.package import MEMBER_BYTES_MAX, SHIPPED, describe, label, read_package
from edge_agent.quick_look.quick_look import QuickLook
from edge_agent.quick_look.signing import main as signing_main
from edge_agent.quick_look.signing import make_key, sign
from fieldpost.errors import BrokenStateError, InvalidRequestError

# --- taking a model ---


def test_a_signed_model_is_tried_and_taken_and_is_still_there_after_a_restart(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path]
) -> None:
    package = repacked()
    quick_look = start()
    wait_for_look(quick_look)
    name = quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    assert name == quick_look.model == read_package(package).label
    assert name.startswith("other@")
    assert wait_for_look(quick_look).model == name
    assert quick_look.take(package, b"", []) == name  # a command that comes twice
    assert start().model == name


def broken_packages() -> Iterator[tuple[str, bytes, str]]:
    """What is wrong, the package, and what the station says of it."""
    shipped = read_package(SHIPPED.read_bytes())
    height_m = np.load(io.BytesIO(shipped.samples["height_m"])) + 100
    yield "a model that is none", repacked(model=b"TFL3" * 1000), "LiteRT can read"
    yield "a model that is cut", repacked(model=shipped.model[:-20_000]), "expected"
    yield "another sample output", repacked(samples={"height_m": npy(height_m)}), "expected the sample's"
    yield (
        "a pickle",
        repacked(samples={"height_m": npy(np.array([print], object), allow_pickle=True)}),
        "expected an array",
    )
    yield "a model that gives no numbers", repacked(model=model_without_numbers()), "expected finite numbers"
    yield "no zip file", b"PK" * 1000, "expected a zip file"


@pytest.mark.parametrize(("package", "words"), [pytest.param(p, w, id=name) for name, p, w in broken_packages()])
def test_a_model_that_fails_its_trial_is_refused_and_the_old_one_goes_on(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], package: bytes, words: str
) -> None:
    quick_look = start()
    old = quick_look.model
    with pytest.raises(InvalidRequestError, match=words):
        quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    assert quick_look.model == start().model == old


def test_a_model_that_is_too_slow_on_the_stations_own_telegrams_is_refused(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path]
) -> None:
    package = repacked(model=slowed_model(8_000))
    with pytest.raises(InvalidRequestError, match="expected an estimate within 20 ms, but 4 of 4"):
        start(budget_ms=20).take(package, sign(package, keys[0]), TELEGRAMS[:4])


def test_a_model_that_is_not_signed_by_the_stations_key_is_refused(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path]
) -> None:
    package = repacked()
    other, _ = make_key()
    quick_look = start()
    for signature in (b"", sign(package, other), sign(package + b"x", keys[0])):
        with pytest.raises(InvalidRequestError, match="expected a signature of 64 bytes"):
            quick_look.take(package, signature, [])
    with pytest.raises(InvalidRequestError, match="model_key_file, but it is absent"):
        start(has_key=False).take(package, sign(package, keys[0]), [])


def test_a_model_that_is_slow_on_probation_is_rolled_back_told_of_and_not_taken_again(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], fast_backoff: None
) -> None:
    quick_look = start(budget_ms=20)
    old = quick_look.model
    package = repacked(model=slowed_model(8_000))
    # without telegrams the trial cannot see that it is slow
    taken = quick_look.take(package, sign(package, keys[0]), [])
    assert quick_look.model == taken
    wait_until(lambda: bool(look_at(quick_look, TELEGRAMS[0])) and quick_look.model == old)
    assert "longer than it may" in quick_look.problem
    assert taken in quick_look.problem
    again = start(budget_ms=BUDGET_MS)
    assert wait_for_look(again).model == old
    assert taken in again.problem
    with pytest.raises(InvalidRequestError, match="taken before and given up"):
        again.take(package, sign(package, keys[0]), [])


def test_a_model_whose_process_dies_on_probation_gives_way_to_the_one_taken_before_it(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], fast_backoff: None
) -> None:
    quick_look = start()
    first, second = repacked(name="first"), repacked(name="second")
    first_name = quick_look.take(first, sign(first, keys[0]), TELEGRAMS)
    look_at(quick_look, *TELEGRAMS * 10)  # it proves itself
    second_name = quick_look.take(second, sign(second, keys[0]), TELEGRAMS)
    for _ in range(PROBATION_FAILURES_MAX + 1):
        assert wait_for_look(quick_look).model == second_name
        worker().kill()
        look_at(quick_look, TELEGRAMS[0])
    assert wait_for_look(quick_look).model == quick_look.model == first_name
    assert "SIGKILL" in quick_look.problem
    third = repacked(name="third")
    quick_look.take(third, sign(third, keys[0]), TELEGRAMS)
    assert quick_look.problem == ""


def test_a_model_that_proved_itself_is_not_rolled_back_later(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], fast_backoff: None
) -> None:
    quick_look = start()
    package = repacked()
    name = quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    look_at(quick_look, *TELEGRAMS * 10)
    for _ in range(PROBATION_FAILURES_MAX + 1):
        wait_for_look(quick_look)
        worker().kill()
        look_at(quick_look, TELEGRAMS[0])
    assert quick_look.model == start().model == name


def test_a_taken_model_whose_file_is_damaged_gives_way_but_may_be_taken_again(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], tmp_path: Path
) -> None:
    package = repacked()
    name = start().take(package, sign(package, keys[0]), TELEGRAMS)
    (path,) = (tmp_path / "models").glob("*.fpmodel")
    for damaged in (package[:1000], repacked(name="stranger")):
        path.write_bytes(damaged)
        quick_look = start()
        assert quick_look.model == name
        assert wait_for_look(quick_look).model == label("boundary-layer", describe(SHIPPED)["sha256"])
        assert name in quick_look.problem
        assert quick_look.take(package, sign(package, keys[0]), TELEGRAMS) == name


# --- the disk ---

KILL_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from edge_agent.quick_look.model_store import Model, ModelStore

folder, kill_at = Path(sys.argv[1]), 0

def die_at(function, *, after):
    def counted(*arguments, **named):
        global steps
        steps += 1
        if steps == kill_at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if steps == kill_at and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted

def change(folder):
    store = ModelStore(folder)
    store.activate(b"second" * 5000, Model("22", "second"))

for after in (False, True):
    for kill_at in range(1, 100):
        here = folder / f"{after}-{kill_at}"
        ModelStore(here).activate(b"first" * 5000, Model("11", "first"))
        ModelStore(here).confirm()
        child = os.fork()
        if child == 0:
            steps = 0
            for module, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "open"), (os, "open")):
                setattr(module, name, die_at(getattr(module, name), after=after))
            change(here)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
"""


def test_a_kill_at_any_step_of_taking_a_model_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILL_EVERY_STEP, tmp_path], check=True, cwd=ROOT, timeout=60)
    found = []
    for folder in tmp_path.iterdir():
        store = ModelStore(folder)
        assert store.damage == ""
        assert store.active_path.read_bytes() == store.state.active.name.encode() * 5000
        found.append(store.state.active.name)
        # and whatever was left behind is no hindrance to taking it again
        store.activate(b"second" * 5000, Model("22", "second"))
        assert {path.name for path in folder.iterdir()} <= {"active.json", "11.fpmodel", "22.fpmodel"}
    assert len(found) > 16
    assert set(found) == {"first", "second"}


def test_a_damaged_record_of_the_active_model_means_that_of_the_software_and_is_told(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "active.json").write_bytes(b'{"active": {"sha')
    quick_look = start()
    assert quick_look.model == describe(SHIPPED)["model"]
    assert "active.json is damaged" in quick_look.problem
    package = repacked()
    quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    assert quick_look.problem == "", "it is written anew, and whole"


def test_what_cannot_be_removed_does_not_keep_a_model_from_being_taken(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], tmp_path: Path
) -> None:
    (tmp_path / "models" / "odd.fpmodel").mkdir(parents=True)  # unlink refuses a folder, as a sick disk a file
    quick_look = start()
    wait_for_look(quick_look)
    package = repacked()
    name = quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    assert wait_for_look(quick_look).model == quick_look.model == name
    assert quick_look.problem == ""


def test_a_place_that_takes_no_model_is_an_error_with_a_hint_and_the_old_one_goes_on(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], tmp_path: Path
) -> None:
    (tmp_path / "models").write_bytes(b"no folder")
    quick_look = start()
    old = quick_look.model
    package = repacked()
    with pytest.raises(BrokenStateError, match="models") as caught:
        quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    assert caught.value.hint
    assert wait_for_look(quick_look).model == quick_look.model == old


def test_a_roll_back_that_the_disk_refuses_is_made_up_for_when_it_takes_it(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], fast_backoff: None, tmp_path: Path
) -> None:
    quick_look = start()
    old = quick_look.model
    package = repacked()
    name = quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    hindrance = tmp_path / "models" / "active.json.new"
    hindrance.mkdir()
    for _ in range(PROBATION_FAILURES_MAX + 1):
        wait_for_look(quick_look)
        worker().kill()
        look_at(quick_look, TELEGRAMS[0])
    assert quick_look.model == name
    assert "active.json" in quick_look.problem
    hindrance.rmdir()
    wait_until(lambda: bool(look_at(quick_look, TELEGRAMS[0])) and quick_look.model == old)
    assert "active.json" not in quick_look.problem


def test_a_model_proves_itself_once_the_disk_takes_it(
    start: Callable[..., QuickLook], keys: tuple[bytes, Path], tmp_path: Path
) -> None:
    quick_look = start()
    package = repacked()
    quick_look.take(package, sign(package, keys[0]), TELEGRAMS)
    wait_for_look(quick_look)
    hindrance = tmp_path / "models" / "active.json.new"
    hindrance.mkdir()
    look_at(quick_look, *TELEGRAMS * 10)
    assert "active.json" in quick_look.problem
    hindrance.rmdir()
    look_at(quick_look, TELEGRAMS[0])
    assert quick_look.problem == ""
    assert not ModelStore(tmp_path / "models").state.is_on_probation


# --- packages and keys ---


def test_the_shipped_model_is_small_and_says_what_it_is() -> None:
    described = describe(SHIPPED)
    assert described["model_bytes"] <= 100_000
    assert described["model"] == label(SHIPPED.stem, described["sha256"])
    scores = described["metrics"]["quick_look"]
    assert {"night", "growth", "mature", "decay", "all", "flag good"} == set(scores)


def test_the_same_content_makes_the_same_package() -> None:
    assert repacked() == repacked()


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"../../evil": b"x"}, "expected the files"),
        ({"model.tflite": b"\0" * (MEMBER_BYTES_MAX["model.tflite"] + 1)}, "stored or deflated"),
        ({"manifest.json": b"{"}, "expected JSON"),
        ({"manifest.json": b'{"format": 2}'}, "expected the keys"),
    ],
    ids=["a strange name", "a bomb", "half a manifest", "a manifest of another format"],
)
def test_a_package_with_anything_unexpected_is_refused(change: dict[str, bytes], words: str) -> None:
    with zipfile.ZipFile(SHIPPED) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert read_package(zip_of(members)).manifest.name == "boundary-layer"
    with pytest.raises(InvalidRequestError, match=words):
        read_package(zip_of({**members, **change}))
    with pytest.raises(InvalidRequestError, match="stored or deflated"):
        read_package(zip_of(members, zipfile.ZIP_LZMA))


def test_a_package_of_which_any_byte_was_changed_is_refused_or_says_the_same() -> None:
    content = SHIPPED.read_bytes()
    whole = read_package(content)
    for place in range(0, len(content), 997):
        changed = bytearray(content)
        changed[place] ^= 0x10
        try:
            package = read_package(bytes(changed))
        except InvalidRequestError:
            continue
        assert (package.manifest, package.model) == (whole.manifest, whole.model)


def test_keys_and_signatures_are_made_on_the_command_line(
    start: Callable[..., QuickLook], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, package = tmp_path / "key.pem", tmp_path / "new.fpmodel"
    package.write_bytes(repacked())
    assert signing_main(["keygen", str(key)]) == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert signing_main(["sign", str(package), "--key", str(key)]) == 0
    quick_look = QuickLook(tmp_path / "models", budget_ms=BUDGET_MS, key_file=tmp_path / "key.pub.pem")
    signature = (tmp_path / "new.fpmodel.sig").read_bytes()
    assert quick_look.take(package.read_bytes(), signature, TELEGRAMS).startswith("other@")
    assert signing_main(["keygen", str(key)]) == 1  # never over a key that is there
    assert "File exists" in capsys.readouterr().err
