"""The parts of a retrain that need no Prefect: its decision, its data, its climate, its folder, its processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archive_support import DAY, NOW_NANOS, archive_day, ingest_all, make_archivist, open_site
from hypothesis import given, settings
from hypothesis import strategies as st
from server_support import START_NANOS, make_observation
from sqlalchemy import delete

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from fieldpost.simulation import HELD_OUT, TRAINING, SimulatedCl51
from flows.retraining.days import find_real_days, read_real_day
from flows.retraining.decision import DAYS_MIN, decide
from flows.retraining.drift_core import find_drift
from flows.retraining.folder import finish, make_file, make_json, open_run
from flows.retraining.parameters import RetrainParams, make_retrain_params
from flows.retraining.references import ReferenceDays, read_reference_file
from flows.retraining.report import to_rows
from flows.retraining.training import run_command
from server.analyses import AnalysisInput
from server.analyses.boundary_layer.retrain import find_weights, read_progress, write_references
from server.analyses.boundary_layer.retraining.climate import make_climate, summarise
from server.analyses.boundary_layer.retraining.days import simulate_day, to_known_days
from server.analyses.boundary_layer.retraining.measures import MEASURES
from server.analyses.boundary_layer.retraining.scores import score_day
from server.analyses.boundary_layer.retraining.statistics import INPUT_STATISTICS, describe_inputs, describe_profiles
from server.analyses.boundary_layer.scoring.simulated_courses import Heights
from server.analyses.retraining import ALL, DayScore, DayStatistics, Measure, Version
from server.archive.shelf_folder import FolderShelf
from server.storage.store import Store
from server.storage.tables import observations

RMSE = Measure("RMSE", unit="m", is_root=True, must_improve=True)
SHARE = Measure("no height")


def make_scores(
    gain_m: float, *, days: int = 40, group: str = ALL, measure: Measure = RMSE, seed: int = 1
) -> list[DayScore]:
    """Days of very different difficulty, on each of which the trained version's error is gain_m smaller."""
    random = np.random.default_rng(seed)
    error_m = random.uniform(50, 300, days)
    after_m = np.maximum(error_m - gain_m + random.normal(0, 10, days), 1)
    pairs = zip(error_m, after_m, strict=True)
    return [DayScore(f"{n}", group, measure.name, 100 * a**2, 100 * b**2, 100) for n, (a, b) in enumerate(pairs)]


def test_a_version_that_is_better_on_most_days_is_promoted() -> None:
    decision = decide(make_scores(15), [RMSE])
    assert decision.is_promoted
    assert decision.reasons[0].startswith("better beyond noise: RMSE (all, 40 days): ")


def test_a_difference_that_chance_would_make_is_no_reason() -> None:
    decision = decide(make_scores(0.5), [RMSE])
    assert not decision.is_promoted
    (reason,) = decision.reasons
    assert reason.startswith("not better beyond noise: RMSE (all, 40 days)")
    assert "the active one" in reason and " m" in reason


def test_the_same_version_again_is_rejected() -> None:
    same = [each._replace(candidate=each.active) for each in make_scores(0)]
    assert not decide(same, [RMSE]).is_promoted


def test_days_are_paired_so_that_hard_days_hide_no_gain() -> None:
    """The spread between days is 70 m, the gain 8 m: without pairing it would be lost."""
    assert decide(make_scores(8), [RMSE]).is_promoted


def test_a_regime_that_has_become_worse_is_named_and_rejects() -> None:
    scores = [*make_scores(30), *make_scores(30, group="night"), *make_scores(-40, group="decay", seed=2)]
    decision = decide(scores, [RMSE])
    assert not decision.is_promoted
    (reason,) = decision.reasons
    assert reason.startswith("worse beyond noise: RMSE (decay, 40 days): ")
    verdicts = {row["group"]: row["verdict"] for row in to_rows(decision)}
    assert verdicts == {ALL: "better", "night": "better", "decay": "worse"}


def test_leaving_out_what_is_hard_is_not_better() -> None:
    silent = [DayScore(f"{n}", ALL, SHARE.name, 1.0, 10.0 + n % 3, 100) for n in range(40)]
    decision = decide([*make_scores(30), *silent], [RMSE, SHARE])
    assert not decision.is_promoted
    assert "worse beyond noise: no height (all, 40 days): 11.0%, the active one 1.0%" in decision.reasons[0]


def test_of_too_few_days_nothing_is_concluded() -> None:
    decision = decide(make_scores(30, days=DAYS_MIN - 1), [RMSE])
    assert decision.reasons == (f"too few days to tell: expected {DAYS_MIN}, but got {DAYS_MIN - 1} (RMSE)",)
    assert not decide([], [RMSE]).is_promoted


def test_an_interval_that_covers_too_much_is_as_wrong_as_one_that_covers_too_little() -> None:
    coverage = Measure("coverage", target=0.9, must_improve=True)
    wide = [DayScore(f"{n}", ALL, "coverage", 99 + n % 2, 90 + n % 2, 100) for n in range(40)]
    assert decide(wide, [coverage]).is_promoted
    assert not decide(
        [each._replace(active=each.candidate, candidate=each.active) for each in wide], [coverage]
    ).is_promoted


@settings(max_examples=15, deadline=None)
@given(seeds=st.integers(0, 10_000))
def test_a_decision_depends_on_the_scores_alone(seeds: int) -> None:
    scores = make_scores(5, days=12, seed=seeds)
    assert decide(scores, [RMSE]) == decide(list(reversed(scores)), [RMSE])


def test_chance_alone_promotes_about_one_version_in_forty() -> None:
    promoted = sum(decide(make_scores(0, days=30, seed=seed), [RMSE]).is_promoted for seed in range(60))
    assert promoted <= 6  # 1.5 are expected


def make_day(count: int = 4) -> tuple[np.ndarray, Heights]:
    true_m = np.array([500.0, 500.0, np.nan, 500.0][:count])
    found_m = np.array([520.0, 1200.0, 700.0, np.nan][:count])
    return true_m, Heights(found_m, found_m - 50, found_m + 50, np.full(count, 2.0))


def test_heights_are_compared_where_both_give_one_and_the_rest_is_counted_apart() -> None:
    day = replace(simulate_day(1, TRAINING, "cl31", 400), groups={})
    true_m, active = make_day()
    day = replace(day, true_m=true_m, is_undefined=np.isnan(true_m))
    candidate = Heights(np.array([500.0, 510.0, np.nan, 510.0]), np.full(4, 460.0), np.full(4, 560.0), np.full(4, 2.0))
    sums = {each.measure: each[3:] for each in score_day("d", "simulated", day, active, candidate) if each.group == ALL}
    assert sums["RMSE"] == (20.0**2 + 700.0**2, 10.0**2, 2)
    assert sums["wrong layer"] == (1, 0, 2)
    assert sums["no height"] == (1, 0, 3)
    assert sums["height in rain or fog"] == (1, 0, 1)
    assert sums["90 % interval off by"] == (1, 2, 2)
    assert set(sums) == {each.name for each in MEASURES}


def describe_days(climate: object, model: str, first: int, count: int = 6, factor: float = 1.0) -> list[DayStatistics]:
    days = []
    for seed in range(first, first + count):
        day = simulate_day(seed, climate, model, 20)  # type: ignore[arg-type]
        profiles = [replace(each, beta=each.beta * np.float32(factor)) for each in day.observations]
        days.append(
            DayStatistics("s", "i", model, day.latitude_deg, day.longitude_deg, "", describe_profiles(profiles))
        )
    return days


@pytest.fixture(scope="module")
def usual() -> dict[str, dict[str, tuple[float, float]]]:
    return summarise({"cl51": [each.values for each in describe_days(TRAINING, "cl51", 1000, 10)]})


def test_a_noisier_network_makes_a_noisier_climate(usual: dict[str, dict[str, tuple[float, float]]]) -> None:
    noisy = replace(TRAINING, noise_factor=(2.4, 2.6), latitude_deg=(60.0, 62.0), southern_share=0.0)
    climate = make_climate(describe_days(noisy, "cl51", 2000, 10), usual)
    assert climate.noise_factor[0] < 2.5 < climate.noise_factor[1]
    assert climate.noise_factor[0] > TRAINING.noise_factor[1]
    assert 57 < climate.latitude_deg[0] < 61 and 60 < climate.latitude_deg[1] < 65
    assert climate.southern_share == 0.0
    assert climate.collapse_h == TRAINING.collapse_h


def test_a_wet_network_makes_a_wet_climate(usual: dict[str, dict[str, tuple[float, float]]]) -> None:
    wet = replace(TRAINING, rain_share=1.0, rain_h=(6.0, 7.0), virga_share=0.0, deck_share=0.9)
    climate = make_climate(describe_days(wet, "cl51", 3000), usual)
    assert climate.rain_share > TRAINING.rain_share
    assert climate.rain_share <= TRAINING.rain_share * 1.5  # met halfway


def test_of_a_few_days_the_shipped_climate_is_kept(usual: dict[str, dict[str, tuple[float, float]]]) -> None:
    assert make_climate(describe_days(HELD_OUT, "cl51", 4000, 2), usual) == TRAINING
    assert make_climate([], usual) == TRAINING


def test_a_day_without_its_night_says_nothing_about_noise() -> None:
    instrument = SimulatedCl51(seed=5)
    nanos = START_NANOS + 60 * 10**9 * np.arange(120)
    inputs = [AnalysisInput(instrument.telegram(each / 1e9), "cl51", int(each)) for each in nanos[::10]]
    described = describe_inputs([*inputs, AnalysisInput(b"noise", "cl51", int(nanos[-1]))], nanos)
    assert all(np.isnan(described[name]) for name in INPUT_STATISTICS)
    assert described["cadence_s"] == 60.0
    assert described["undecodable_share"] == pytest.approx(1 / 13)


def test_drift_is_what_lasts_and_lies_far_outside(usual: dict[str, dict[str, tuple[float, float]]]) -> None:
    dirty = describe_days(TRAINING, "cl51", 5000, 5, factor=0.1)
    (deviation, *_) = [each for each in find_drift(dirty, usual) if each.statistic == "noise_low"]
    assert (deviation.station, deviation.day_count) == ("s", 5)
    assert deviation.found < deviation.usual - 0.8
    assert "noise_low is -" in str(deviation)
    fine = describe_days(TRAINING, "cl51", 6000, 5)
    assert find_drift(fine, usual) == []
    assert find_drift([*fine[:4], dirty[0]], usual) == []  # one odd day
    assert find_drift(dirty[:2], usual) == []  # too few
    assert find_drift([replace(each, instrument_model="ct25k") for each in dirty], usual) == []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Store, Path]]:
    """A store with a telegram each five minutes of six hours, and its archive."""
    store = open_site(tmp_path / "data")
    instrument = SimulatedCl51(seed=5)
    telegrams = [instrument.telegram(START_NANOS / 1e9 + 15 * each) for each in range(1, 721, 20)]
    ingest_all(store, [make_observation(20 * n + 1, content) for n, content in enumerate(telegrams)])
    yield store, tmp_path / "archive"
    store.close()


def test_a_day_that_the_store_has_let_go_is_read_from_its_bag(site: tuple[Store, Path]) -> None:
    store, archive = site
    (day,) = find_real_days(store, DAY, DAY)
    hot = read_real_day(store, FolderShelf(archive), day, 10)
    archive_day(make_archivist(store, archive), NOW_NANOS)
    store.write(lambda connection: connection.execute(delete(observations))).result(10)
    assert find_real_days(store, DAY, DAY) == [day]
    archived = read_real_day(store, FolderShelf(archive), day, 10)
    assert hot is not None and archived is not None
    assert len(hot.observations) == 9
    assert archived.observations == hot.observations
    assert archived.measure_unix_nanos.tolist() == hot.measure_unix_nanos.tolist()


def test_a_damaged_bag_costs_its_day_alone(site: tuple[Store, Path], caplog: pytest.LogCaptureFixture) -> None:
    store, archive = site
    (day,) = find_real_days(store, DAY, DAY)
    archive_day(make_archivist(store, archive), NOW_NANOS)
    store.write(lambda connection: connection.execute(delete(observations))).result(10)
    (tar,) = archive.rglob("*.tar.zst")
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 0xFF
    tar.write_bytes(content)
    assert read_real_day(store, FolderShelf(archive), day, 10) is None
    assert "day is left out" in caplog.text


def write_reference_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["station,instrument,time,height_m", *lines]) + "\n")
    return path


def test_references_are_joined_to_the_observations_of_their_course(site: tuple[Store, Path], tmp_path: Path) -> None:
    store, archive = site
    file = write_reference_csv(
        tmp_path / "r.csv", "lindenberg,cl51,2025-06-15T17:30:00+01:00,850", "elsewhere,cl51,2025-06-15T16:30:00Z,900"
    )
    references = read_reference_file(file)
    assert references[0].time.isoformat() == "2025-06-15T16:30:00+00:00"
    (real,) = ReferenceDays(store, FolderShelf(archive), references)
    assert real.height_m.tolist() == [850.0]
    (known,) = to_known_days(real)
    assert known.true_m[np.isfinite(known.true_m)].tolist() == [850.0]
    assert abs(known.unix_s[np.isfinite(known.true_m)][0] - real.unix_s[0]) <= 150
    assert write_references(tmp_path / "r.npz", [real])


def test_whole_weeks_of_references_are_held_out(tmp_path: Path) -> None:
    lines = [f"a,cl51,2025-{month:02}-{day:02}T12:00:00Z,900" for month in range(1, 13) for day in range(1, 29)]
    references = read_reference_file(write_reference_csv(tmp_path / "r.csv", *lines))
    sides: dict[tuple[int, int], set[bool]] = {}
    for each in references:
        year, week, _ = each.time.isocalendar()
        sides.setdefault((year, week), set()).add(each.is_held_out)
    assert all(len(side) == 1 for side in sides.values())
    assert 0.1 < np.mean([each.is_held_out for each in references]) < 0.45


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a,cl51,2025-06-15T17:30:00,850", "expected a time with its offset, but got '2025-06-15T17:30:00' .line 2 of"),
        ("a,cl51,noon,850", "expected a time in ISO 8601 and a height in m, but got .*line 2 of"),
        ("a,cl51,2025-06-15T17:30:00Z,-1", "expected 0 to 20000 m, but got '-1' .line 2 of"),
        ("a,cl51,2025-06-15T17:30:00Z,nan", "expected 0 to 20000 m, but got 'nan' .line 2 of"),
        ("a,cl51,2025-06-15T17:30:00Z", "expected a time in ISO 8601 and a height in m"),
    ],
)
def test_a_wrong_reference_is_named(line: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        read_reference_file(write_reference_csv(tmp_path / "r.csv", line))


def test_an_ended_run_is_taken_up_with_what_it_had(tmp_path: Path) -> None:
    with open_run(tmp_path, {"epochs": 2}, {"seed": 1}, afresh=False) as folder:
        make_json(folder / "days.json", lambda: [1, 2])
    with open_run(tmp_path, {"epochs": 2}, {"seed": 9}, afresh=False) as folder:
        assert make_json(folder / "request.json", dict) == {"epochs": 2, "seed": 1}
        assert make_json(folder / "days.json", lambda: [3]) == [1, 2]
    with open_run(tmp_path, {"epochs": 3}, {"seed": 9}, afresh=False) as folder:
        assert not (folder / "days.json").exists()
        make_json(folder / "days.json", lambda: [3])
    with open_run(tmp_path, {"epochs": 3}, {"seed": 10}, afresh=True) as folder:
        assert not (folder / "days.json").exists()
        assert finish(folder, "1001").name == "1001"
    with open_run(tmp_path, {"epochs": 3}, {"seed": 11}, afresh=False) as folder:
        assert make_json(folder / "request.json", dict)["seed"] == 11


def test_a_second_run_beside_the_first_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, {}, {}, afresh=False),
        pytest.raises(TryAgainError, match="another run has held"),
        open_run(tmp_path, {}, {}, afresh=False),
    ):
        pytest.fail("it was let in")


def test_a_step_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def break_off(part: Path) -> None:
        part.write_text("half")
        raise TryAgainError("the disk is full")

    with pytest.raises(TryAgainError):
        make_file(tmp_path / "climate.json", break_off)
    assert not (tmp_path / "climate.json").exists()


def test_what_a_command_writes_is_told_and_its_failure_too() -> None:
    lines: list[str] = []
    program = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    with pytest.raises(BrokenStateError, match=r"ended with status 3: .*two"):
        run_command([sys.executable, "-c", program], {}, on_line=lines.append)
    assert sorted(lines) == ["one", "two"]


def test_a_training_ends_with_the_run_that_wanted_it(tmp_path: Path) -> None:
    """Even where the run is killed, so that it can say nothing any more."""
    told = tmp_path / "pid"
    inner = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(60)"
    outer = (
        "import sys; from flows.retraining.training import run_command; "
        f"run_command([sys.executable, '-c', {inner!r}], {{}}, on_line=print)"
    )
    run = subprocess.Popen([sys.executable, "-c", outer], cwd=Path(__file__).resolve().parent.parent)
    try:
        deadline = time.monotonic() + 30
        while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        child = int(told.read_text())
        run.send_signal(signal.SIGKILL)
        run.wait()
        while _is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _is_alive(child)
    finally:
        run.kill()
        run.wait()


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_progress_is_read_from_what_the_training_writes() -> None:
    assert read_progress("epoch 3/12  loss 2.1") == 0.25
    assert read_progress("courses 25/768") is None


def test_a_classical_version_has_no_weights_to_start_from() -> None:
    assert find_weights(Version(1)) == b""
    assert find_weights(Version(1001, b"weights")) == b"weights"


@pytest.mark.parametrize(
    ("given_parameters", "expected"),
    [
        ({"epochs": 0}, "epochs: .*greater than or equal to 1"),
        ({"start_from": "scratch"}, "start_from: "),
        ({"offer_to": ["alpha"]}, "offer_to: .*expected a model package and a signing key"),
        ({"epoch": 1}, "epoch: Extra inputs are not permitted"),
    ],
)
def test_wrong_parameters_are_named(given_parameters: dict[str, object], expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        make_retrain_params(**given_parameters)


def test_the_form_has_a_title_a_description_and_a_place_for_each_field() -> None:
    properties = RetrainParams.model_json_schema()["properties"]
    assert all({"title", "description", "position"} <= set(each) for each in properties.values())
    assert sorted(each["position"] for each in properties.values()) == list(range(1, len(properties) + 1))
