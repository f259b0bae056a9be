"""Results as bytes: the same that the protobuf library makes."""

from __future__ import annotations

import numpy as np
import pytest

from fieldpost.v1 import inference_service_pb2 as pb
from server.analyses import AnalysisResult, AnalysisVariable
from server.prediction.answer_bytes import TOGETHER_MIN, encode_results, varint
from server.workers.jobs import pack_results

NOW = 1_750_000_000 * 10**9
LIMITS = (0, -1, -(1 << 63), (1 << 56) - 1, 1 << 56, (1 << 63) - 1)


def make_result(instants: list[int], *names: str) -> AnalysisResult:
    variables = (
        AnalysisVariable(
            name, "m s⁻¹", np.float32([number / 3, *[np.nan] * (len(instants) - 1)][: len(instants)]), ("sky", "cloud")
        )
        for number, name in enumerate(names)
    )
    return AnalysisResult(np.array(instants, np.int64), tuple(variables))


def by_library(result: AnalysisResult, item_id: int) -> pb.PredictResult:
    message = pb.PredictResult(item_id=item_id, model_version=3, sample_unix_nanos=result.sample_unix_nanos.tolist())
    for each in result.variables:
        message.variables.add(
            name=each.name, unit=each.unit, values=each.values.tolist(), flag_meanings=each.flag_meanings
        )
    return message


@pytest.mark.parametrize("times", [1, TOGETHER_MIN])
@pytest.mark.parametrize(
    "results",
    [
        [make_result([NOW + place], "height", "depth") for place in range(5)],
        [make_result([NOW, NOW + 1, NOW + 2][:count], "höhe") for count in (1, 3, 0, 3, 2)],
        [make_result([instant], "height") for instant in LIMITS],
        [make_result([NOW] * 200, *(f"variable_{number}" for number in range(40)))],
        [make_result([NOW])],
        [make_result([NOW], "")],
    ],
)
def test_results_are_the_bytes_that_the_library_makes(results: list[AnalysisResult], times: int) -> None:
    results = results * times
    (block,) = pack_results(1, results).blocks
    item_ids = ([0, 1, 127, 128, -1, (1 << 63) - 1] * len(results))[: len(results)]
    wanted = [by_library(*pair).SerializeToString(deterministic=True) for pair in zip(results, item_ids, strict=True)]
    found = encode_results(block, range(len(results)), item_ids, 3)
    assert [
        pb.PredictResponse.FromString(each).result.SerializeToString(deterministic=True) for each in found
    ] == wanted
    together = pb.PredictStreamResponse.FromString(b"".join(found))
    assert [each.SerializeToString(deterministic=True) for each in together.results] == wanted


def test_only_the_rows_that_are_asked_for_are_encoded_in_their_order() -> None:
    (block,) = pack_results(1, [make_result([NOW + place] * (1 + place % 2), "height") for place in range(60)]).blocks
    rows = [4, 1, 3, *range(59, 20, -1)]
    contents = encode_results(block, rows, [row * 10 for row in rows], 1)
    found = [pb.PredictResponse.FromString(each).result for each in contents]
    assert [(each.item_id, each.sample_unix_nanos[0] - NOW) for each in found] == [(row * 10, row) for row in rows]


def test_numbers_are_written_as_the_library_writes_them() -> None:
    for number in (0, 1, 127, 128, 300, 1 << 40, -1, (1 << 63) - 1, -(1 << 63)):
        assert b"\x08" + varint(number) == (pb.PredictResult(item_id=number).SerializeToString() or b"\x08\x00")
