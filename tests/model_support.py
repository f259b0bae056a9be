"""What the tests of users' models share: small honest models, made here, with their manifests and samples."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

OPSET = 20
PROFILE_LENGTH = 8

CLASSIFIER_MANIFEST = """
analysis = "cloud-type"
instrument_models = ["sky-camera"]
timeout_s = 20

[input]
decode = "image"
resize = { width = 8, height = 8 }
scale = 0.00392156862745098

[[outputs]]
name = "scores"
kind = "class"
activation = "softmax"
variable = "cloud_type"
labels = ["red", "green", "blue"]
probability = "cloud_type_probability"
"""

PROFILE_MANIFEST = """
analysis = "layer-height"
instrument_models = ["cl51"]

[input]
decode = "tensor"
stored_dtype = "float32"
shape = [8]

[[outputs]]
name = "y"
kind = "values"
variables = [{ name = "layer_height", unit = "m" }]
"""


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model of these nodes."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A declared float32 value."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def weights(name: str, values: NDArray[np.generic]) -> onnx.TensorProto:
    """A constant."""
    return numpy_helper.from_array(values, name)


def make_classifier(*, batch: int | str = "b", gain: float = 20.0) -> bytes:
    """Images in colour, nchw, to scores of which channel is the strongest."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    w = weights("w", (np.eye(3) * gain).astype(np.float32))
    model = make_model(nodes, [floats("image", batch, 3, 8, 8)], [floats("scores", batch, 3)], [w])
    return bytes(model.SerializeToString())


def make_profile_model(*, gain: float = 1.0, batch: int | str = "b") -> bytes:
    """The mean of a profile times a gain."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    w = weights("w", np.full((PROFILE_LENGTH, 1), gain / PROFILE_LENGTH, np.float32))
    model = make_model(nodes, [floats("x", batch, PROFILE_LENGTH)], [floats("y", batch, 1)], [w])
    return bytes(model.SerializeToString())


def make_profile(value: float = 3.0) -> bytes:
    """A payload for make_profile_model."""
    return np.full(PROFILE_LENGTH, value, "<f4").tobytes()


def make_image(
    colour: tuple[int, ...] | int,
    size: tuple[int, int] = (20, 10),
    *,
    kind: str = "PNG",
    mode: str = "RGB",
    compression: str | None = None,
) -> bytes:
    """An image of one colour."""
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, kind, **({"compression": compression} if compression else {}))
    return stream.getvalue()
