"""A user's model at work: payloads in, results out, onnxruntime in between. Runs in confined processes alone.

It opens no file: the model comes as bytes, and what may be read has been imported here, at the top.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

# Before it is imported: from version 1.29 on onnxruntime otherwise tells its maker over the network about models and
# machine, keeps a database and a number of this machine in the home folder, and waits 30 s at exit to be rid of it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError, InvalidRequestError
from server.analyses import AnalysisInput, AnalysisResult
from server.models.answers import interpret
from server.models.manifest import InputDeclaration, Manifest, read_manifest
from server.models.payloads import Preparation
from server.workers.jobs import ModelPackage, ResultBlock

BATCH_MAX = 64
TYPE_NAMES = {"float32": "float", "float64": "double"}
"""What onnxruntime calls differently than NumPy."""
FATAL_ONLY = 4


class OnnxAnalysis:
    """A loaded model of a user.

    Attributes:
        preparation: From payloads to the model's input.
        fixed_batch: The only batch that the model takes; None where it takes any. Smaller ones are filled up.
    """

    max_batch = BATCH_MAX

    def __init__(self, package: ModelPackage, manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
        self.name, self.version = package.key
        self.instrument_models = frozenset(manifest.instrument_models)
        self._manifest, self._session = manifest, session
        self._input_name, self.fixed_batch = _check_input(manifest.input, session)
        self._output_names = [each.name for each in manifest.outputs]
        _check_outputs(self._output_names, session)
        self.preparation = Preparation(manifest.input)

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        """Answers for each observation, in order; InvalidObservationError in the place of what cannot be decoded."""
        blocks, refusals = self.predict_blocks(batch)
        answers: dict[int, AnalysisResult | Exception] = dict(refusals)
        for block in blocks:
            answers |= {place: block.result(row) for row, place in enumerate(block.places)}
        return [answers[place] for place in range(len(batch))]

    def predict_blocks(
        self, batch: Sequence[AnalysisInput]
    ) -> tuple[list[ResultBlock], dict[int, InvalidObservationError]]:
        """The same as few large arrays, and by its place why an observation has no answer."""
        refusals: dict[int, InvalidObservationError] = {}
        alike: dict[tuple[int, ...], tuple[list[int], list[NDArray[np.generic]]]] = {}
        decode = self.preparation.decode
        for place, observation in enumerate(batch):
            try:
                decoded = decode(observation.payload)
            except InvalidObservationError as error:
                refusals[place] = error
                continue
            members = alike.get(decoded.shape)
            if members is None:
                members = alike[decoded.shape] = ([], [])
            members[0].append(place)
            members[1].append(decoded)
        blocks = []
        for places, arrays in alike.values():
            outputs = self.run(self.preparation.prepare(arrays))
            starts = [batch[place].measure_unix_nanos for place in places]
            blocks.append(replace(interpret(self._manifest, outputs, starts), places=places))
        return blocks, refusals

    def run(self, prepared: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """The model's own outputs, those that the manifest declares, for a prepared batch of any size."""
        count, fixed = len(prepared), self.fixed_batch
        if fixed is None or count == fixed:
            return self._run_once(prepared)
        parts = []
        for start in range(0, count, fixed):
            part = prepared[start : start + fixed]
            lacking = fixed - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], lacking, axis=0)]) if lacking else part
            parts.append([output[: len(part)] for output in self._run_once(filled)])
        return [np.concatenate(of_output) for of_output in zip(*parts, strict=True)]

    def _run_once(self, prepared: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        outputs: list[NDArray[np.generic]] = self._session.run(self._output_names, {self._input_name: prepared})
        return outputs


def load_onnx(package: ModelPackage, *, threads: int, device: str) -> OnnxAnalysis:
    """Loads a user's model out of its bytes.

    Raises:
        InvalidRequestError: The manifest does not fit the model, or the device is not the CPU: a GPU's driver opens
            files all the time, which a confined process cannot.
    """
    if device != "cpu":
        raise InvalidRequestError(f"expected the device cpu for a user's model, but got {device}")
    manifest = read_manifest(package.manifest)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL_ONLY  # what matters is raised; the rest is a stranger's text in our log
    options.add_session_config_entry("session.load_model_format", "ONNX")  # else its own format, unseen by the gate
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(package.content, options, providers=["CPUExecutionProvider"])
    return OnnxAnalysis(package, manifest, session)


def _check_input(declared: InputDeclaration, session: onnxruntime.InferenceSession) -> tuple[str, int | None]:
    """Whether the manifest fits the model's input; its name, and the batch where the model takes only one size."""
    inputs = {each.name: each for each in session.get_inputs()}
    shown = ", ".join(inputs)[:200]
    if len(inputs) != 1:
        raise InvalidRequestError(f"input: expected a model with one input, but got {len(inputs)} ({shown})")
    name = declared.name or next(iter(inputs))
    if name not in inputs:
        raise InvalidRequestError(
            f"input: expected an input {name!r} as in the manifest, but the model has {shown!r}",
            hint="leave input.name out of the manifest",
        )
    wanted = f"tensor({TYPE_NAMES.get(declared.dtype, declared.dtype)})"
    if inputs[name].type != wanted:
        raise InvalidRequestError(
            f"input: expected {wanted} as in the manifest, but the model takes {inputs[name].type}",
            hint="set input.dtype in the manifest to what the model takes",
        )
    shape = inputs[name].shape
    _check_shape(declared, shape)
    return name, shape[0] if isinstance(shape[0], int) else None


def _check_shape(declared: InputDeclaration, shape: Sequence[int | str | None]) -> None:
    item_shape = declared.item_shape or (None,) * 3
    fits = len(shape) == 1 + len(item_shape) and all(
        not isinstance(side, int) or wanted is None or side == wanted
        for side, wanted in zip(shape[1:], item_shape, strict=True)
    )
    if not fits or (isinstance(shape[0], int) and not 1 <= shape[0] <= BATCH_MAX):
        batch_and_item = ", ".join(["batch", *(str(side or "any") for side in item_shape)])
        raise InvalidRequestError(
            f"input: expected shape ({batch_and_item}) as in the manifest, but the model takes {list(shape)}",
            hint="set shape, resize or layout in the manifest to what the model takes; "
            f"a fixed batch is 1 to {BATCH_MAX}",
        )


def _check_outputs(wanted: list[str], session: onnxruntime.InferenceSession) -> None:
    there = [each.name for each in session.get_outputs()]
    for name in wanted:
        if name not in there:
            raise InvalidRequestError(
                f"outputs: expected an output {name!r} as in the manifest, but the model has {', '.join(there)[:200]}"
            )
