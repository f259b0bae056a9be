"""From the arrays that a model gives to results, as its manifest declares. Pure arithmetic; knows no ONNX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError
from server.models.manifest import Manifest, OutputDeclaration
from server.workers.jobs import ResultBlock

RESULT_BYTES_MAX = 16 * 1024 * 1024
"""Of the numbers said of one payload. What does not fit into a message can be stored, and never be served."""
Column = tuple[str, str, tuple[str, ...], NDArray[np.float32]]
"""Name, unit and flag meanings of a variable, and its values, (batch, samples)."""


def interpret(
    manifest: Manifest, outputs: Sequence[NDArray[np.generic]], measure_unix_nanos: Sequence[int]
) -> ResultBlock:
    """The results of a batch, in its order.

    Args:
        manifest: What the outputs mean.
        outputs: Those that it declares, in its order, batch axis first.
        measure_unix_nanos: When each item was measured.

    Raises:
        InvalidRequestError: An output does not have the shape that is declared.
    """
    count = len(measure_unix_nanos)
    columns: list[Column] = []
    for declared, output in zip(manifest.outputs, outputs, strict=True):
        scores = shape_output(manifest, declared, output, count)
        columns += _read_class(declared, scores) if declared.kind == "class" else _read_values(declared, scores)
    sample_count = columns[0][3].shape[1]
    for name, _, _, values in columns:
        if values.shape[1] != sample_count:
            raise InvalidRequestError(
                f"expected as many instants in all outputs, but got {sample_count} and {values.shape[1]} ({name})"
            )
    result_bytes = sample_count * (8 + 4 * len(columns))
    if result_bytes > RESULT_BYTES_MAX:
        raise InvalidRequestError(
            f"expected at most {RESULT_BYTES_MAX} bytes of results for one payload, but got {result_bytes}: "
            f"{sample_count} instants of {len(columns)} variables",
            hint="let the model say less, for example one value for every minute",
        )
    spacing_nanos = round((manifest.sample_spacing_s or 0.0) * 1e9)
    since_start = np.arange(sample_count, dtype=np.int64) * spacing_nanos
    instants = np.asarray(measure_unix_nanos, np.int64)[:, None] + since_start  # (batch, samples)
    return ResultBlock(
        places=list(range(count)),
        counts=[sample_count] * count,
        sample_unix_nanos=instants.reshape(-1),
        variables=tuple((name, unit, meanings) for name, unit, meanings, _ in columns),
        values=np.stack([values for *_, values in columns]).reshape(len(columns), -1),
    )


def shape_output(
    manifest: Manifest, declared: OutputDeclaration, output: NDArray[np.generic], batch_count: int
) -> NDArray[np.float32]:
    """An output as (batch, samples, width); raises InvalidRequestError where it has another shape."""
    has_time = manifest.sample_spacing_s is not None
    sample_count = (output.shape[1] if output.ndim > 1 else 0) if has_time else 1
    wanted = (batch_count, sample_count, declared.width)
    if output.ndim == 0 or output.shape[0] != batch_count or output.size != int(np.prod(wanted)) or sample_count == 0:
        shape = ("batch", "instants", declared.width) if has_time else ("batch", declared.width)
        raise InvalidRequestError(
            f"expected output {declared.name!r} of shape ({', '.join(map(str, shape))}), "
            f"but got {output.shape} for a batch of {batch_count}",
            hint="the last axis of an output has one number for each of variables, or one score for each of labels",
        )
    if output.dtype.kind not in "fiub":
        raise InvalidRequestError(f"expected numbers from output {declared.name!r}, but got {output.dtype}")
    return output.reshape(wanted).astype(np.float32, copy=False)


def _read_values(declared: OutputDeclaration, scores: NDArray[np.float32]) -> list[Column]:
    values = _activate(declared.activation, scores)
    if declared.fill_value is not None:
        values = np.where(scores == np.float32(declared.fill_value), np.float32(np.nan), values)
    return [(each.name, each.unit, (), values[:, :, place]) for place, each in enumerate(declared.variables)]


def _read_class(declared: OutputDeclaration, scores: NDArray[np.float32]) -> list[Column]:
    chances = _activate(declared.activation, scores)
    if declared.is_binary:
        chances = np.concatenate([1 - chances, chances], axis=2)
    chosen = np.argmax(chances, axis=2)
    score = np.take_along_axis(chances, chosen[:, :, None], axis=2)[:, :, 0]
    is_missing = np.isnan(chances).any(axis=2)
    number = np.where(is_missing, np.float32(np.nan), chosen.astype(np.float32))
    assert declared.variable is not None  # the manifest was checked
    columns: list[Column] = [(declared.variable, "1", declared.labels, number)]
    if declared.probability is not None:
        columns.append((declared.probability, "1", (), np.where(is_missing, np.float32(np.nan), score)))
    return columns


def _activate(activation: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    if activation == "softmax":
        grown = np.exp(scores - scores.max(axis=2, keepdims=True))
        result: NDArray[np.float32] = grown / grown.sum(axis=2, keepdims=True)
        return result
    if activation == "sigmoid":
        # by tanh, which does not overflow
        half = np.float32(0.5)
        risen: NDArray[np.float32] = half * (1 + np.tanh(half * scores))
        return risen
    return scores
