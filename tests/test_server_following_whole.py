"""A whole server that is killed while it follows the learned heights: in the end it is as if nothing had happened.

What is expected is one fold of the same model version over each course, in this process, with nothing in between.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from whole_support import WholeServer, until

from fieldpost import Outbox, TryAgainError
from fieldpost.payload import decode_checked
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1.prediction_pb2 import Prediction
from server.analyses import AnalysisInput, Stretch, load_analysis
from server.analyses.boundary_layer import LEARNED, NAME, course_start

INSTRUMENTS = ("east", "west")
EVERY_NANOS = 120 * 10**9
COUNT = 90
"""Observations of each instrument: three hours, with a noon among them."""


def make_observations() -> list[pb.Observation]:
    """What a station has measured until now, in its order; so it is fresh, and a gap in it is waited for."""
    simulated = {name: SimulatedCl51(seed=seed) for seed, name in enumerate(INSTRUMENTS)}
    now_nanos = time.time_ns()
    noon_nanos = course_start(LEARNED, now_nanos - COUNT * EVERY_NANOS // 3, None)
    assert noon_nanos is not None
    first_nanos = noon_nanos - COUNT * EVERY_NANOS // 3
    outbox = Outbox("lindenberg", payload_format="vaisala-cl")
    return [
        outbox.observation(name, simulated[name].telegram(at / 1e9), np.datetime64(at, "ns"))
        for at in range(first_nanos, first_nanos + COUNT * EVERY_NANOS, EVERY_NANOS)
        for name in INSTRUMENTS
    ]


def fold(observations: list[pb.Observation]) -> dict[int, np.ndarray]:
    """By sequence, all that the learned version says of it, in the order of its variables."""
    analysis = load_analysis(NAME, LEARNED)
    courses: dict[tuple[str, int | None], list[pb.Observation]] = {}
    for each in observations:
        measured = each.header.measure_time.ToNanoseconds()
        courses.setdefault((each.header.instrument, course_start(LEARNED, measured, None)), []).append(each)
    assert len(courses) == 2 * len(INSTRUMENTS)
    found = {}
    for course in courses.values():
        inputs = [
            AnalysisInput(decode_checked(each), "cl51", each.header.measure_time.ToNanoseconds()) for each in course
        ]
        (followed,) = analysis.follow([Stretch(b"", inputs)])
        for each, result in zip(course, followed.results, strict=True):
            assert not isinstance(result, Exception)
            found[each.header.sequence] = np.concatenate([variable.values for variable in result.variables])
    return found


def values_of(prediction: Prediction) -> np.ndarray:
    assert not prediction.failure, prediction.failure
    return np.concatenate([np.array(each.values) for each in prediction.variables])


def test_a_server_that_is_killed_while_it_follows_has_one_final_prediction_of_each_as_if_undisturbed(
    tmp_path: Path,
) -> None:
    observations = make_observations()
    early, late = observations[: len(observations) // 2], observations[len(observations) // 2 :]
    server = WholeServer(tmp_path, {f"lindenberg/{name}": "cl51" for name in INSTRUMENTS}, "workers = 1\n")
    seen: list[Prediction] = []
    try:
        with server.client() as client:
            watch = client.watch(analysis=NAME, after_prediction_id=0)
            watching = threading.Thread(target=lambda: seen.extend(watch), daemon=True)
            watching.start()
            client.send(late)
            until(lambda: len(seen) == len(late))
            assert all(each.is_provisional for each in seen), "what came before is missing"
            client.send(early)
            until(lambda: len(seen) > len(late))
            server.close()
            server.start()
            predictions = until(lambda: when_final(server, len(observations)))
            until(lambda: seen[-1].prediction_id == max(each.prediction_id for each in predictions))
        watching.join()
        server.stop()
    finally:
        server.close()
    assert sorted(each.sequence for each in predictions) == [each.header.sequence for each in observations]
    assert {each.model_version for each in predictions} == {LEARNED}
    expected = fold(observations)
    for each in predictions:
        np.testing.assert_allclose(values_of(each), expected[each.sequence], rtol=1e-5, atol=0.01)
    numbers = [each.prediction_id for each in seen]
    assert numbers == sorted(set(numbers)), "each was told once, in order"
    told = {each.sequence: each for each in seen}
    assert told == {each.sequence: each for each in predictions}, "who watched all along knows what stands"


def when_final(server: WholeServer, count: int) -> list[Prediction]:
    """All predictions, once there are so many and none of them is provisional; before that, none."""
    try:
        with server.client() as client:
            found = list(client.iter_predictions(analysis=NAME))
    except TryAgainError:  # it was away
        return []
    return found if len(found) >= count and not any(each.is_provisional for each in found) else []
