"""The process in which a stranger's model is looked at, loaded, run on its sample and measured. It can do no harm.

It imports what it needs, confines itself, and only then reads a byte of what it is to try. It says on stdout, one JSON
object a line, what it begins with; the last line is its finding. Run by server.models.trial.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import FieldpostError, InvalidObservationError, InvalidRequestError
from server.analyses import AnalysisInput, AnalysisResult
from server.models.answers import interpret, shape_output
from server.models.card import Trial
from server.models.cost import Timing, choose_batch_max, fit_cost
from server.models.gate import GateLimits, look
from server.models.manifest import Manifest, read_manifest
from server.models.onnx_analysis import BATCH_MAX, OnnxAnalysis, load_onnx
from server.models.sandbox import PR_SET_PDEATHSIG, confine
from server.models.trial_wire import LENGTHS, MEMORY_HINT, TrialOptions
from server.workers.jobs import ModelKey, ModelPackage
from server.workers.worker import is_out_of_memory

BATCH_TOLERANCE_MIN = 1e-3
"""A batch may be summed up in another order than one item."""
REPEATS = 3


def main() -> None:
    """Tries one model."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    lengths = LENGTHS.unpack(_read(sys.stdin.buffer, LENGTHS.size))
    options = TrialOptions(**json.loads(_read(sys.stdin.buffer, lengths[0])))
    confinements = confine(memory_bytes=options.memory_bytes, cpu_s=options.cpu_s)
    _say(step="looked at")
    manifest_text, content, sample = (_read(sys.stdin.buffer, length) for length in lengths[1:])
    try:
        package = ModelPackage(ModelKey(options.analysis, options.version), manifest_text.decode(), content)
        trial = _try(package, sample, options, confinements)
        _say(trial=asdict(trial))
    except FieldpostError as error:
        _say(refused=str(error), hint=error.hint)
    except PermissionError as error:
        _say(refused=f"forbidden: expected a model that computes, but it tried something else: {error}")
    except Exception as error:  # whatever onnxruntime says of a model: it has no types for what matters here
        if is_out_of_memory(error):
            _say(
                refused=f"memory: expected a model that needs at most {options.memory_bytes} bytes, but got one that "
                "asked for more",
                hint=MEMORY_HINT,
            )
        else:
            _say(
                refused=f"onnxruntime refuses it: {str(error)[:1000]}", hint="does it run in onnxruntime on your side?"
            )


def _try(package: ModelPackage, sample: bytes, options: TrialOptions, confinements: tuple[str, ...]) -> Trial:
    manifest = read_manifest(package.manifest)
    look(package.content, GateLimits(model_bytes_max=options.model_bytes_max))
    _say(step="loaded")
    analysis = load_onnx(package, threads=options.threads, device="cpu")
    _say(step="run on its sample")
    difference = _check_sample(analysis, manifest, sample)
    _say(step="measured")
    timings = _measure(analysis, AnalysisInput(sample, manifest.instrument_models[0], 0), manifest.timeout_s, options)
    fixed_s, observation_s = fit_cost(timings)
    return Trial(
        batch_fixed_s=fixed_s,
        observation_s=observation_s,
        max_batch_count=choose_batch_max(timings),
        memory_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        difference_max_ratio=difference,
        confinements=confinements,
    )


def _check_sample(analysis: OnnxAnalysis, manifest: Manifest, sample: bytes) -> float:
    """Whether the sample's outputs are what the manifest says; the largest difference to the expected ones."""
    try:
        decoded = analysis.preparation.decode(sample)
    except InvalidObservationError as error:
        raise InvalidRequestError(
            f"sample: {error}", hint="the sample has to be a payload as the manifest says"
        ) from error
    outputs = analysis.run(analysis.preparation.prepare([decoded]))
    _check_values(manifest, interpret(manifest, outputs, [0]).result(0))
    together = analysis.run(analysis.preparation.prepare([decoded] * 3))
    difference = float("nan")
    for declared, alone, in_batch in zip(manifest.outputs, outputs, together, strict=True):
        scores = shape_output(manifest, declared, alone, 1)
        for row in shape_output(manifest, declared, in_batch, 3):
            off = _relative_difference(row, scores[0])
            if not off <= max(manifest.tolerance, BATCH_TOLERANCE_MIN):
                raise InvalidRequestError(
                    f"batches: expected the same answer in a batch as alone, but output {declared.name!r} differs by "
                    f"{off:.3g} of its largest value",
                    hint="export in inference mode (model.eval()), with a batch axis that is dynamic",
                )
        if declared.expected:
            difference = max(
                _check_expected(manifest, declared.name, declared.expected, scores), np.nan_to_num(difference)
            )
    return float(difference)


def _check_values(manifest: Manifest, result: AnalysisResult) -> None:
    may_be_missing = {
        name
        for each in manifest.outputs
        if each.is_missing_allowed or each.fill_value is not None
        for name in each.variable_names
    }
    for variable in result.variables:
        has_nan = bool(np.isnan(variable.values).any()) and variable.name not in may_be_missing
        if has_nan or np.isinf(variable.values).any():
            raise InvalidRequestError(
                f"values: expected numbers for the sample, but got {'NaN' if has_nan else 'infinity'} "
                f"in {variable.name}",
                hint="where NaN means missing, set is_missing_allowed = true for the output in the manifest",
            )


def _check_expected(manifest: Manifest, name: str, expected: Sequence[float], scores: NDArray[np.float32]) -> float:
    if len(expected) != scores.size:
        raise InvalidRequestError(
            f"expected: output {name!r} has {scores.size} numbers, but the manifest {len(expected)}"
        )
    off = _relative_difference(scores.ravel(), np.asarray(expected, np.float32))
    if not off <= manifest.tolerance:
        raise InvalidRequestError(
            f"expected: output {name!r} differs from the manifest by {off:.3g} of its largest value, more than "
            f"the tolerance {manifest.tolerance:g}",
            hint="is the sample the one that the expected outputs belong to, and is it prepared as in training?",
        )
    return off


def _relative_difference(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest difference as part of the largest wanted value; infinite where one is missing and the other not."""
    if (np.isnan(got) != np.isnan(wanted)).any():
        return float("inf")
    if np.isnan(wanted).all():
        return 0.0
    largest = float(np.nanmax(np.abs(wanted)))
    off = float(np.nanmax(np.abs(got - wanted)))
    return off / largest if largest else off


def _measure(analysis: OnnxAnalysis, item: AnalysisInput, timeout_s: float, options: TrialOptions) -> list[Timing]:
    """Times of batches of 1, 2, 4 and so on, the best of a few each, as the worker will run them."""
    began = time.perf_counter()
    timings: list[Timing] = []
    count = 1
    while count <= BATCH_MAX:
        took_s = []
        try:
            for _ in range(REPEATS):
                started = time.perf_counter()
                analysis.predict([item] * count)
                took_s.append(time.perf_counter() - started)
                if time.perf_counter() - began > options.measure_s:
                    break
        except Exception as error:
            if count > 1 and is_out_of_memory(error):
                break  # then smaller batches are all that it can have
            raise
        timings.append(Timing(count, min(took_s)))
        if min(took_s) > timeout_s:
            if count > 1:
                timings.pop()
                break
            raise InvalidRequestError(
                f"time: expected the sample within timeout_s = {timeout_s:g}, but it took {min(took_s):.3g} s",
                hint="set a longer timeout_s in the manifest, or use a smaller model",
            )
        if time.perf_counter() - began > options.measure_s:
            break
        count *= 2
    return timings


def _read(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length)
    if len(content) != length:
        sys.exit("the server is gone")
    return content


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
