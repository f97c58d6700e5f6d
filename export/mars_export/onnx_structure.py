"""What a lazy .onnx graph must look like for the runtime that will load it; checked, where that runtime is not here.

Axes: none.
Design decision: a rule refuses; nothing is rewritten. TensorRT and a browser cannot run in a test of this package, so
what their importers say about graphs is held here as rules, and a passed check is not a run.
Source: operators and restrictions of TensorRT's importer, https://github.com/onnx/onnx-tensorrt (docs/operators.md);
conditionals, https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-with-conditionals.html;
onnxruntime-web's WebAssembly backend has every operator of the ONNX domain, https://github.com/microsoft/onnxruntime
(js/web/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from mars_edge.errors import UsageError

Runtime = Literal["onnxruntime", "onnxruntime-web", "tensorrt"]
RUNTIMES = get_args(Runtime)
# A protobuf message, which a model without external data is, ends here.
_MOST_BYTES = (1 << 31) - 1
# TensorRT 10.0 reads opsets 9 to 20.
_TENSORRT_OPSET = 20
# Of TensorRT's list those that the layers of this package can become.
_TENSORRT_OPERATORS = """
    Abs Add AveragePool Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose DequantizeLinear Div Equal Erf
    Exp Expand Flatten GRU Gather Gemm GlobalAveragePool Greater HardSigmoid HardSwish Identity If
    InstanceNormalization LSTM LayerNormalization LeakyRelu Less MatMul Max MaxPool Min Mul Neg Not PRelu Pad Pow
    QuantizeLinear ReduceMax ReduceMean ReduceSum Relu Reshape Resize Sigmoid Slice Softmax Split Sqrt Squeeze Sub
    Sum Tanh TopK Transpose Unsqueeze Where
"""
_TENSORRT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.BOOL)
_TENSORRT_RESIZE = {
    "mode": (b"nearest", b"linear"),
    "coordinate_transformation_mode": (b"half_pixel", b"pytorch_half_pixel", b"asymmetric", b"align_corners"),
}
_LAZY = re.compile(r"(encode_[^/]+|expert_\d+)/")


def check_structure(model: ModelProto, runtime: Runtime) -> None:
    """Passes when the graph is lazy, static, and made of what `runtime` lists as loadable.

    Raises:
        UsageError: unknown runtime, or the first rule that is broken, with the node that breaks it.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime {runtime!r} is unknown; allowed: {', '.join(RUNTIMES)}")
    _check_operators(model)
    _check_shapes(model.graph)
    _check_branches(model.graph)
    _check_lazy(model.graph)
    if model.ByteSize() > _MOST_BYTES:
        raise UsageError(f"the graph has {model.ByteSize():,} bytes; one file ends at {_MOST_BYTES:,}")
    if runtime == "tensorrt":
        _check_tensorrt(model)


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node of the graph and of all branches inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def initializers_of(graph: GraphProto) -> Iterator[TensorProto]:
    """Every initializer of the graph and of all branches inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from initializers_of(attribute.g)


def _check_operators(model: ModelProto) -> None:
    for node in nodes_of(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise UsageError(f"node {_where(node)} is of the domain {node.domain!r}; only ONNX's own runs everywhere")


def _check_shapes(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if not value.type.tensor_type.HasField("shape") or not all(axis.dim_value > 0 for axis in axes):
            raise UsageError(f"{value.name} has no fixed shape; every axis must be a number above 0")


def _check_branches(graph: GraphProto) -> None:
    """Both branches of every If give values of other names, the same types and the same shapes."""
    for node in nodes_of(graph):
        if node.op_type == "If":
            then, other = ([_signature(v) for v in branch.output] for branch in branches(node).values())
            names = [v.name for branch in branches(node).values() for v in branch.output]
            if then != other or len(set(names)) != len(names):
                raise UsageError(f"the branches of {_where(node)} give {then} and {other}; they must be alike")


def branches(node: NodeProto) -> dict[str, GraphProto]:
    """The two graphs of an If node: then_branch, else_branch."""
    found = {a.name: a.g for a in node.attribute if a.HasField("g")}
    return {name: found[name] for name in ("then_branch", "else_branch")}


def _signature(value: ValueInfoProto) -> tuple[int, tuple[int, ...]]:
    kind = value.type.tensor_type
    return kind.elem_type, tuple(axis.dim_value for axis in kind.shape.dim)


def _check_lazy(graph: GraphProto) -> None:
    """Nothing of an encoder or a routed expert lies outside the branch that its own If takes when it is wanted."""
    _refuse_strays(graph, owner=None)
    for node in graph.node:
        if node.op_type == "If":
            taken = branches(node)
            _refuse_strays(taken["then_branch"], owner=node.name)
            _refuse_strays(taken["else_branch"], owner=None, kept=("Identity", "ConstantOfShape"))


def _refuse_strays(graph: GraphProto, *, owner: str | None, kept: tuple[str, ...] = ()) -> None:
    for node in graph.node:
        for name in node.output:
            match = _LAZY.match(name)
            if match and match.group(1) != owner and node.op_type not in kept:
                raise UsageError(f"{name} is computed whether {match.group(1)} is wanted or not; put it into its If")
    for tensor in graph.initializer:
        match = _LAZY.match(tensor.name)
        if match and match.group(1) != owner:
            raise UsageError(f"the weight {tensor.name} lies outside the branch of {match.group(1)}")


def _check_tensorrt(model: ModelProto) -> None:
    opset = next(o.version for o in model.opset_import if o.domain == "")
    if opset > _TENSORRT_OPSET:
        raise UsageError(f"opset is {opset}; TensorRT 10.0 reads up to {_TENSORRT_OPSET}")
    constants = {t.name: t for t in initializers_of(model.graph)}
    rules: dict[str, Callable[[NodeProto, Mapping[str, TensorProto]], None]] = {
        "QuantizeLinear": _check_symmetric,
        "DequantizeLinear": _check_symmetric,
        "TopK": _check_top_k,
        "Resize": _check_resize,
        "If": _check_if_types,
    }
    for node in nodes_of(model.graph):
        if node.op_type not in _TENSORRT_OPERATORS.split():
            raise UsageError(f"TensorRT does not list the operator {node.op_type} of {_where(node)}")
        if node.op_type in rules:
            rules[node.op_type](node, constants)


def _check_symmetric(node: NodeProto, constants: Mapping[str, TensorProto]) -> None:
    """int8 with zero point 0: activations trained with another zero point cannot be had there without other scales."""
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None or zero.data_type != TensorProto.INT8 or np.any(numpy_helper.to_array(zero)):
        raise UsageError(
            f"TensorRT takes int8 quantizers whose zero point is 0, {_where(node)} has another; "
            "export fp16 or fp32 for it"
        )


def _check_top_k(node: NodeProto, constants: Mapping[str, TensorProto]) -> None:
    if node.input[1] not in constants:
        raise UsageError(f"TensorRT wants K of {_where(node)} to be a constant")


def _check_resize(node: NodeProto, constants: Mapping[str, TensorProto]) -> None:
    for attribute in node.attribute:
        if attribute.s not in _TENSORRT_RESIZE.get(attribute.name, (attribute.s,)):
            raise UsageError(f"TensorRT does not list {attribute.name} {attribute.s.decode()!r} of {_where(node)}")


def _check_if_types(node: NodeProto, constants: Mapping[str, TensorProto]) -> None:
    for graph in branches(node).values():
        if any(value.type.tensor_type.elem_type not in _TENSORRT_TYPES for value in graph.output):
            raise UsageError(f"TensorRT gives float, int32 or bool from an If; {_where(node)} gives another type")


def _where(node: NodeProto) -> str:
    return str(node.name or node.output[0])
