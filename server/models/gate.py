"""The first look at a stranger's ONNX file: refuses what could reach outside it, without running anything.

It knows no onnxruntime and no manifest. It runs in the confined process of the trial, since a parser may have faults.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, defs

from fieldpost.errors import InvalidRequestError
from server.models.wire import check_wire

DOMAINS = ("", "ai.onnx.ml")
"""The operators that ONNX itself defines; "ai.onnx" is another name of the first."""
OPSET_MIN = 7
NODES_MAX = 100_000
GRAPHS_DEPTH_MAX = 8
ELEMENTS_MAX = 2**31
"""Numbers in one tensor, as declared."""
METADATA_BYTES_MAX = 32 * 1024 * 1024

PICKLE_HINT = "export it to ONNX: torch.onnx.export(..., dynamo=True, external_data=False); docs/models.md says how"
FOREIGN_STARTS = {
    b"PK\x03\x04": "a ZIP archive (.pt, .pt2, .npz, .keras or TorchScript)",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
}


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How much a model may be.

    Attributes:
        model_bytes_max: Length of the file.
        nodes_max: Operators, those of nested graphs among them.
    """

    model_bytes_max: int = 512 * 1024 * 1024
    nodes_max: int = NODES_MAX


def look(content: bytes, limits: GateLimits) -> None:
    """Looks at an ONNX file.

    Raises:
        InvalidRequestError: It breaks a rule; the message names the rule and the place, the hint what to do.
    """
    if len(content) > limits.model_bytes_max:
        raise InvalidRequestError(
            f"size: expected a model of at most {limits.model_bytes_max} bytes, but got {len(content)}",
            hint="use a smaller model or float16 weights, or ask the operator for a larger model_bytes_max",
        )
    if not content:
        raise InvalidRequestError("format: expected an ONNX file, but got nothing")
    for start, name in FOREIGN_STARTS.items():
        if content.startswith(start):
            raise InvalidRequestError(f"format: expected an ONNX file, but got {name}", hint=PICKLE_HINT)
    check_wire(content, ModelProto.DESCRIPTOR)
    try:
        model = ModelProto.FromString(content)
    except DecodeError as error:
        raise InvalidRequestError(f"format: expected an ONNX file, but got: {error}", hint=PICKLE_HINT) from error
    _check_model(model)
    opsets = _read_opsets(model)
    _check_graphs(model.graph, opsets, limits)


def _check_model(model: ModelProto) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise InvalidRequestError("format: expected an ONNX file with a graph, but got one without")
    if model.functions:
        raise InvalidRequestError(
            f"own functions: expected none, but got {_shown(model.functions[0].name)}",
            hint="inline them before submitting: onnx.inliner.inline_local_functions(model)",
        )
    if model.training_info:
        raise InvalidRequestError(
            "training: expected a model for inference, but got training information", hint="clear training_info"
        )


def _read_opsets(model: ModelProto) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for each in model.opset_import:
        domain = _plain(each.domain)
        if domain in DOMAINS:
            opsets[domain] = each.version
    newest = defs.onnx_opset_version()
    version = opsets.get("", 0)
    if not OPSET_MIN <= version <= newest:
        raise InvalidRequestError(
            f"opset: expected version {OPSET_MIN} to {newest} of the ONNX operators, but got {version or 'none'}",
            hint="export with opset_version=20",
        )
    return opsets


def _check_graphs(graph: GraphProto, opsets: dict[str, int], limits: GateLimits) -> None:
    """All graphs, the nested ones of If, Loop and Scan too."""
    node_count = metadata_bytes = 0
    waiting = [(graph, 0)]
    while waiting:
        graph, depth = waiting.pop()
        if depth > GRAPHS_DEPTH_MAX:
            raise InvalidRequestError(
                f"nesting: expected at most {GRAPHS_DEPTH_MAX} graphs inside each other, but got more",
                hint="flatten the control flow of the model before exporting it",
            )
        node_count += len(graph.node)
        if node_count > limits.nodes_max:
            raise InvalidRequestError(
                f"number of nodes: expected at most {limits.nodes_max} operators, but got more",
                hint="export loops as loops instead of unrolled",
            )
        metadata_bytes += _metadata_size(graph)
        for tensor in graph.initializer:
            _check_tensor(tensor, f"initializer {_shown(tensor.name)}")
        for sparse in graph.sparse_initializer:
            _check_sparse(sparse, f"sparse initializer {_shown(sparse.values.name)}")
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_declared(value)
        for node in graph.node:
            metadata_bytes += _metadata_size(node)
            _check_operator(node, opsets)
            for attribute in node.attribute:
                _check_attribute(attribute, node)
                waiting += [(nested, depth + 1) for nested in _graphs_of(attribute)]
        if metadata_bytes > METADATA_BYTES_MAX:
            raise InvalidRequestError(
                f"metadata: expected at most {METADATA_BYTES_MAX} bytes of notes in the model, but got more",
                hint="clear doc_string and metadata_props",
            )


def _check_operator(node: NodeProto, opsets: dict[str, int]) -> None:
    where = f"node {_shown(node.name)}, operator {_shown(node.op_type)}"
    domain = _plain(node.domain)
    if domain not in DOMAINS:
        raise InvalidRequestError(
            f"operator domain: expected ai.onnx or ai.onnx.ml, but got {_shown(node.domain)} ({where})",
            hint="export without operators of a vendor, and before a runtime has optimised the file",
        )
    if domain not in opsets:
        raise InvalidRequestError(f"opset: expected an import of domain {domain}, but got none ({where})")
    try:
        defs.get_schema(node.op_type, opsets[domain], domain)
    except defs.SchemaError as error:
        raise InvalidRequestError(
            f"operators: expected one that ONNX defines in opset {opsets[domain]}, but got {_shown(node.op_type)} "
            f"({where})",
            hint="export with a newer opset_version, or write it with standard operators",
        ) from error


def _check_attribute(attribute: AttributeProto, node: NodeProto) -> None:
    where = f"attribute {_shown(attribute.name)} of node {_shown(node.name)}"
    for tensor in _tensors_of(attribute):
        _check_tensor(tensor, where)
    for sparse in _sparse_of(attribute):
        _check_sparse(sparse, where)
    if attribute.ref_attr_name:
        raise InvalidRequestError(f"own functions: expected values in attributes, but got a reference ({where})")


def _check_tensor(tensor: TensorProto, where: str) -> None:
    if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
        places = {each.key: each.value for each in tensor.external_data}
        raise InvalidRequestError(
            f"external data: expected all weights inside the file, but got a place outside of it, "
            f"{_shown(places.get('location', ''))} ({where})",
            hint="export with external_data=False, or load it and save it with onnx.save(model, path)",
        )
    if tensor.data_type == TensorProto.STRING:
        raise InvalidRequestError(
            f"strings: expected tensors of numbers, but got one of strings ({where})",
            hint="declare labels in the manifest",
        )
    _check_size(tensor.dims, where)


def _check_sparse(sparse: SparseTensorProto, where: str) -> None:
    _check_tensor(sparse.values, where)
    _check_tensor(sparse.indices, where)
    _check_size(sparse.dims, where)


def _check_declared(value: ValueInfoProto) -> None:
    where = f"value {_shown(value.name)}"
    if value.type.HasField("tensor_type"):
        if value.type.tensor_type.elem_type == TensorProto.STRING:
            raise InvalidRequestError(f"strings: expected tensors of numbers, but got one of strings ({where})")
        _check_size([each.dim_value or 1 for each in value.type.tensor_type.shape.dim], where)


def _check_size(dims: Iterable[int], where: str) -> None:
    sides = list(dims)
    if any(each < 0 for each in sides) or math.prod(sides) > ELEMENTS_MAX:
        raise InvalidRequestError(
            f"size of tensors: expected at most {ELEMENTS_MAX} numbers in one, "
            f"but got shape {_shown(str(sides))} ({where})",
            hint="a model of this size does not fit a worker",
        )


def _tensors_of(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _sparse_of(attribute: AttributeProto) -> Iterator[SparseTensorProto]:
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor
    yield from attribute.sparse_tensors


def _graphs_of(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _metadata_size(part: GraphProto | NodeProto) -> int:
    return len(part.doc_string) + sum(len(each.key) + len(each.value) for each in part.metadata_props)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _shown(text: str) -> str:
    """A stranger's text, so that it can neither flood nor forge a log."""
    return repr(text[:80])
