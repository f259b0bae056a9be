"""Files that somebody might submit to harm the server, made here and never shipped. Only a confined child may load one.

Each is a function that makes the file, and the word that its refusal has to begin with: the name of the rule.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from model_support import floats, make_model, make_profile, make_profile_model, weights
from onnx import TensorProto, helper


@dataclass(frozen=True, slots=True)
class Hostile:
    """One of them.

    Attributes:
        make: Makes the file.
        rule: What the refusal begins with.
        sample: Makes the payload on which it is tried.
        extra: Appended to the usual manifest.
        wall_s: Time that its trial may take.
    """

    make: Callable[[], bytes]
    rule: str
    sample: Callable[[], bytes] = make_profile
    extra: str = ""
    wall_s: float = 30.0


def _serialized(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def _honest() -> onnx.ModelProto:
    return onnx.ModelProto.FromString(make_profile_model())


def _with_nodes(*nodes: onnx.NodeProto, constants: tuple[onnx.TensorProto, ...] = ()) -> bytes:
    return _serialized(make_model(nodes, [floats("x", "b", 8)], [floats("y", "b", 1)], constants))


def _external(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def external_data(location: str) -> bytes:
    model = _honest()
    model.graph.initializer[0].CopyFrom(_external(location))
    return _serialized(model)


def external_data_that_says_it_is_internal() -> bytes:
    model = _honest()
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return _serialized(model)


def external_data_in_a_branch() -> bytes:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["out"])], "branch", [], [floats("out", 8, 1)], [_external("../secret")]
    )
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=weights("c", np.array(True))),
        helper.make_node("If", ["yes"], ["w2"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["x", "w2"], ["y"]),
    ]
    return _with_nodes(*nodes)


def external_data_in_a_sparse_tensor() -> bytes:
    model = _honest()
    indices = weights("i", np.array([0], np.int64))
    model.graph.sparse_initializer.add(values=_external("values"), indices=indices, dims=[8, 1])
    return _serialized(model)


def external_data_in_an_attribute() -> bytes:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=_external("x")),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return _with_nodes(*nodes)


def external_data_in_a_function() -> bytes:
    model = _honest()
    constant = helper.make_node("Constant", [], ["w"], value=_external("x"))
    model.functions.append(helper.make_function("own", "f", [], ["w"], [constant], [helper.make_opsetid("", 20)]))
    return _serialized(model)


def function_that_calls_itself() -> bytes:
    model = _honest()
    call = helper.make_node("f", ["a"], ["b"], domain="own")
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [call], imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return _serialized(model)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def deep_protobuf() -> bytes:
    """Sequence types inside sequence types, four thousand deep, as the type of an input."""
    inner = b""
    for _ in range(2000):
        inner = b"\x0a" + _varint(len(inner)) + inner  # TypeProto.Sequence.elem_type
        inner = b"\x22" + _varint(len(inner)) + inner  # TypeProto.sequence_type
    value = b"\x12" + _varint(len(inner)) + inner  # ValueInfoProto.type
    graph = b"\x5a" + _varint(len(value)) + value  # GraphProto.input
    return b"\x3a" + _varint(len(graph)) + graph


def many_empty_messages() -> bytes:
    """Two bytes of file for each message in memory."""
    graph = b"\x0a\x00" * 6_000_000
    return b"\x3a" + _varint(len(graph)) + graph


def a_million_nodes() -> bytes:
    node = helper.make_node("Identity", ["x"], ["x"]).SerializeToString()
    graph = (b"\x0a" + _varint(len(node)) + node) * 1_000_000
    return b"\x3a" + _varint(len(graph)) + graph


def two_hundred_thousand_nodes() -> bytes:
    model = _honest()
    node = helper.make_node("Identity", ["x"], ["z"]).SerializeToString()
    graph = model.graph.SerializeToString() + (b"\x0a" + _varint(len(node)) + node) * 200_000
    model.ClearField("graph")
    return _serialized(model) + b"\x3a" + _varint(len(graph)) + graph


def nested_graphs() -> bytes:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [floats("y")])
    for _ in range(12):
        choice = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([choice], "g", [], [floats("y")])
        graph.node[0].attribute.pop()  # one branch, or it doubles each time
    model = _honest()
    model.graph.node.append(graph.node[0])
    return _serialized(model)


def zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.onnx", bytes(50_000_000))
    return stream.getvalue()


def gzip_bomb() -> bytes:
    return gzip.compress(bytes(50_000_000))


class _Marker:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle was loaded",))


def pickle_file() -> bytes:
    return pickle.dumps(_Marker())


def torch_archive() -> bytes:
    """What .pt and .pt2 files are: a ZIP archive with a pickle in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_file())
    return stream.getvalue()


def truncated() -> bytes:
    return make_profile_model()[:-20]


def unknown_operator() -> bytes:
    return _with_nodes(helper.make_node("RunShell", ["x"], ["y"]))


def vendor_operator() -> bytes:
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")
    model = make_model(
        [node], [floats("x", "b", 8)], [floats("y", "b", 1)], [weights("w", np.ones((8, 1), np.float32))]
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return _serialized(model)


def operator_of_a_nested_graph() -> bytes:
    branch = helper.make_graph(
        [helper.make_node("PyOp", ["x"], ["out"], domain="ai.onnx.contrib")], "b", [], [floats("out", "b", 1)]
    )
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=weights("c", np.array(True))),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    return _with_nodes(*nodes)


def opset_of_the_future() -> bytes:
    model = _honest()
    model.opset_import[0].version = 9999
    return _serialized(model)


def training_information() -> bytes:
    model = _honest()
    model.training_info.add().algorithm.node.append(helper.make_node("Identity", ["x"], ["y"]))
    return _serialized(model)


def strings() -> bytes:
    node = helper.make_node("Constant", [], ["s"], value=helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]))
    return _with_nodes(node, helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1))


def declared_too_large() -> bytes:
    model = _honest()
    model.graph.value_info.append(floats("huge", 2**40, 2**40))
    return _serialized(model)


def sparse_tensor_of_a_terabyte() -> bytes:
    model = _honest()
    one, where = weights("v", np.ones(1, np.float32)), weights("i", np.array([0], np.int64))
    model.graph.sparse_initializer.add(values=one, indices=where, dims=[2**38])
    return _serialized(model)


def negative_dimension() -> bytes:
    model = _honest()
    model.graph.initializer[0].dims[0] = -8
    return _serialized(model)


def much_metadata() -> bytes:
    model = _honest()
    model.graph.metadata_props.add(key="note", value="x" * 40_000_000)
    return _serialized(model)


def endless_loop() -> bytes:
    """A Loop without a bound whose condition never changes."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("v", "b", 1),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), floats("v2", "b", 1)],
    )
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=weights("c", np.array(True))),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Loop", ["", "yes", "m"], ["y"], body=body),
    ]
    return _with_nodes(*nodes, constants=(weights("w", np.ones((8, 1), np.float32)),))


def giant_constant(elements: int) -> bytes:
    """ConstantOfShape, told the shape by a constant."""
    shape = weights("shape", np.array([elements], np.int64))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"], value=weights("v", np.ones(1, np.float32))),
        helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "s"], ["y"]),
    ]
    return _with_nodes(*nodes, constants=(shape, weights("w", np.ones((8, 1), np.float32))))


def giant_tile() -> bytes:
    """Each payload is repeated a hundred million times."""
    nodes = [
        helper.make_node("Tile", ["x", "repeats"], ["big"]),
        helper.make_node("ReduceSum", ["big", "axis"], ["y"], keepdims=1),
    ]
    constants = (weights("repeats", np.array([1, 10**8], np.int64)), weights("axis", np.array([1], np.int64)))
    return _with_nodes(*nodes, constants=constants)


def wrong_output_shape() -> bytes:
    node = helper.make_node("Identity", ["x"], ["y"])
    return _serialized(make_model([node], [floats("x", "b", 8)], [floats("y", "b", 8)]))


def wrong_input_shape() -> bytes:
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)
    return _serialized(make_model([node], [floats("x", "b", 9)], [floats("y", 1, 1)]))


def two_inputs() -> bytes:
    node = helper.make_node("Add", ["x", "z"], ["y"])
    return _serialized(make_model([node], [floats("x", "b", 8), floats("z", "b", 8)], [floats("y", "b", 8)]))


def nan_outputs() -> bytes:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Log", ["m"], ["y"])]
    return _with_nodes(*nodes, constants=(weights("w", -np.ones((8, 1), np.float32)),))


def batch_mixer() -> bytes:
    """What it says of one payload depends on the others of the batch."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("CumSum", ["m", "axis"], ["y"]),
    ]
    constants = (weights("w", np.ones((8, 1), np.float32)), weights("axis", np.array(0, np.int64)))
    return _with_nodes(*nodes, constants=constants)


def runtime_format() -> bytes:
    """The runtime's own format, told by its mark, which it would load unseen."""
    return b"\x18\x00\x00\x00ORTM" + bytes(64)


def image_bomb() -> bytes:
    """A PNG whose head says 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


STATIC: dict[str, Hostile] = {
    "external data beside the model": Hostile(lambda: external_data("weights.bin"), "external data"),
    "external data above the model": Hostile(lambda: external_data("../../etc/passwd"), "external data"),
    "external data anywhere": Hostile(lambda: external_data("/etc/passwd"), "external data"),
    "external data that says it is internal": Hostile(external_data_that_says_it_is_internal, "external data"),
    "external data in a branch": Hostile(external_data_in_a_branch, "external data"),
    "external data in a sparse tensor": Hostile(external_data_in_a_sparse_tensor, "external data"),
    "external data in an attribute": Hostile(external_data_in_an_attribute, "external data"),
    "external data in a function": Hostile(external_data_in_a_function, "own functions"),
    "a function that calls itself": Hostile(function_that_calls_itself, "own functions"),
    "a deep protobuf": Hostile(deep_protobuf, "nesting"),
    "many empty messages": Hostile(many_empty_messages, "number of fields"),
    "a million nodes": Hostile(a_million_nodes, "number of fields"),
    "two hundred thousand nodes": Hostile(two_hundred_thousand_nodes, "number of nodes"),
    "nested graphs": Hostile(nested_graphs, "nesting"),
    "a zip bomb": Hostile(zip_bomb, "format"),
    "a gzip bomb": Hostile(gzip_bomb, "format"),
    "a pickle": Hostile(pickle_file, "format"),
    "a torch archive": Hostile(torch_archive, "format"),
    "a truncated file": Hostile(truncated, "format"),
    "an empty file": Hostile(bytes, "format"),
    "a graph without nodes": Hostile(lambda: _serialized(onnx.ModelProto(ir_version=10)), "format"),
    "the format of onnxruntime": Hostile(runtime_format, "format"),
    "an unknown operator": Hostile(unknown_operator, "operators"),
    "an operator of a vendor": Hostile(vendor_operator, "operator domain"),
    "an operator of a nested graph": Hostile(operator_of_a_nested_graph, "operator domain"),
    "an opset of the future": Hostile(opset_of_the_future, "opset"),
    "training information": Hostile(training_information, "training"),
    "strings": Hostile(strings, "strings"),
    "a declared size": Hostile(declared_too_large, "size of tensors"),
    "a sparse tensor of a terabyte": Hostile(sparse_tensor_of_a_terabyte, "size of tensors"),
    "a negative dimension": Hostile(negative_dimension, "size of tensors"),
    "much metadata": Hostile(much_metadata, "metadata"),
}
"""Refused at the first look."""

AT_WORK: dict[str, Hostile] = {
    "an endless loop": Hostile(endless_loop, "time", wall_s=2.0),
    "a giant constant": Hostile(lambda: giant_constant(2**40), "memory"),
    "a giant tile": Hostile(giant_tile, "memory"),
    "a wrong shape of the output": Hostile(wrong_output_shape, "expected output"),
    "a wrong shape of the input": Hostile(wrong_input_shape, "input"),
    "two inputs": Hostile(two_inputs, "input"),
    "NaN for the sample": Hostile(nan_outputs, "values"),
    "answers that depend on the batch": Hostile(batch_mixer, "batches"),
    "a sample of another length": Hostile(make_profile_model, "sample", sample=lambda: b"short"),
    "expected outputs that it does not give": Hostile(make_profile_model, "expected", extra="expected = [99.0]\n"),
}
"""Refused when they are loaded or run."""
