"""The numbers a piece in ONNX stores and computes with: float16, or one of three forms of trained int8.

Axes: none; a piece is one flat graph, `mars_export.to_onnx` puts it into its branch.
Source: onnxruntime, "Quantize ONNX models" (U8S8, U8U8 and S8S8 on x86, saturation without VNNI),
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from mars_edge.errors import ParityError, UsageError

Weights = Literal["uint8", "int8", "int8-7bit"]
WEIGHTS = get_args(Weights)
LARGEST_HALF = float(np.finfo(np.float16).max)
_INTEGERS = (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8)


def set_weights(model: ModelProto, form: Weights) -> None:
    """Rewrites the trained int8 quantizers of a piece, in place.

    uint8: activations and weights shifted by 128, the same real values. int8: as trained. int8-7bit: weights
    halved to -64..63 under a doubled scale, at most one trained weight step away; activations as trained.

    Raises:
        UsageError: unknown form, or a quantizer has no zero point to shift.
    """
    if form not in WEIGHTS:
        raise UsageError(f"weights {form!r} are unknown; allowed: {', '.join(WEIGHTS)}")
    if form == "uint8":
        rewrite(model.graph, activations=shifted, weights=shifted)
    elif form == "int8-7bit":
        rewrite(model.graph, weights=halved)
    del model.graph.value_info[:]


Rewrite = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def shifted(quantizer: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same real values as uint8: 128 added to the zero point and to the stored values, if there are any."""
    moved = {key: (quantizer[key].astype(np.int16) + 128).astype(np.uint8) for key in quantizer if key != "scale"}
    return quantizer | moved


def halved(quantizer: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Symmetric values in 7 bits: half of each, rounded to even and clipped to -64..63, at twice the scale."""
    values = np.clip(np.rint(quantizer["values"] / 2.0), -64, 63).astype(np.int8)
    return quantizer | {"values": values, "scale": quantizer["scale"] * np.float32(2.0)}


def rewrite(graph: GraphProto, *, activations: Rewrite | None = None, weights: Rewrite | None = None) -> None:
    """Gives every 8-bit quantizer of a graph the constants that its rewrite makes, in place; branches stay as they are.

    A rewrite maps {"scale", "zero"} of an activation, and {"values", "scale", "zero"} of a weight.

    Raises:
        UsageError: a quantizer has no zero point, so that its type would not change with it.
    """
    lift_constants(graph)
    constants = {t.name: t for t in graph.initializer}
    for node in _quantizers(graph.node):
        stored = node.op_type == "DequantizeLinear" and node.input[0] in constants
        change = weights if stored else activations
        if change is None:
            continue
        if len(node.input) < 3:
            raise UsageError(f"quantizer {node.name!r} has no zero point: it cannot be made unsigned")
        if constants[node.input[2]].data_type in (TensorProto.INT8, TensorProto.UINT8):
            _replace_constants(node, constants, change, stored=stored)
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(t for t in constants.values() if t.name in used)


def _quantizers(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    return (node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _replace_constants(node: NodeProto, constants: dict[str, TensorProto], change: Rewrite, *, stored: bool) -> None:
    """Points `node` at changed copies: others may share its constants, and be of the other kind."""
    places = {"scale": 1, "zero": 2} | ({"values": 0} if stored else {})
    given = {key: numpy_helper.to_array(constants[node.input[i]]) for key, i in places.items()}
    for key, value in change(given).items():
        if value is not given[key]:
            name = f"{node.input[places[key]]}/{change.__name__}"
            constants[name] = numpy_helper.from_array(np.asarray(value), name)
            node.input[places[key]] = name


def lift_constants(graph: GraphProto) -> None:
    """Turns every `Constant` node that holds a tensor into an initializer, in place."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def to_half(model: ModelProto) -> None:
    """Makes a float32 piece store and compute float16, in place; inputs and outputs stay float32.

    Inputs that are read as whole numbers, the words of a text, are read before they are rounded.

    Raises:
        UsageError: a weight is beyond float16's range (the converter would clip it silently).
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    for tensor in _float_tensors(model):
        largest = _largest_finite(numpy_helper.to_array(tensor))
        if largest > LARGEST_HALF:
            raise UsageError(
                f"weight {tensor.name!r} reaches {largest:.6g}, float16 ends at {LARGEST_HALF:.0f}; "
                "export fp32 or int8 instead"
            )
    half = convert_float_to_float16(model, keep_io_types=True)
    _read_integers_unrounded(half)
    # The converter appends its casts: ONNX wants a node after what it reads.
    OnnxModel.graph_topological_sort(half.graph)
    del half.graph.value_info[:]
    model.CopyFrom(half)


def _float_tensors(model: ModelProto) -> Iterator[TensorProto]:
    attributes = (a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))
    return (t for t in (*model.graph.initializer, *attributes) if t.data_type == TensorProto.FLOAT)


def _largest_finite(values: NDArray[Any]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def _read_integers_unrounded(half: ModelProto) -> None:
    """Feeds casts to whole numbers from the float32 input itself: float16 is exact only up to 2048."""
    inputs = {value.name for value in half.graph.input}
    rounded = {n.output[0]: n.input[0] for n in half.graph.node if n.op_type == "Cast" and n.input[0] in inputs}
    for node in half.graph.node:
        if node.op_type == "Cast" and _target(node) in _INTEGERS:
            node.input[0] = rounded.get(node.input[0], node.input[0])


def require_half_range(models: Mapping[str, ModelProto], inputs: Mapping[str, Sequence[Sequence[Any]]]) -> None:
    """Passes when no value inside any float32 piece leaves float16's range.

    onnxruntime on a CPU computes float16 graphs in float32 and rounds in between, where it rounds at all: it does not
    show the overflow that a GPU would meet.

    Args:
        models: float32 pieces by method.
        inputs: per method, a list of calls, each a sequence of float32 arrays.

    Raises:
        ParityError: names the method and the largest value, or a method was never called.
    """
    for method, model in models.items():
        calls = inputs.get(method, ())
        if not calls:
            raise ParityError(f"{method} met no sample: its range in float16 is unknown")
        largest = max(largest_value(model, calls))
        if not largest <= LARGEST_HALF:
            raise ParityError(
                f"{method}: a value inside reaches {largest:.6g}, float16 ends at {LARGEST_HALF:.0f}; "
                "export fp32 or int8 instead"
            )


def largest_value(model: ModelProto, calls: Sequence[Sequence[Any]]) -> list[float]:
    """Per call the largest absolute float32 value a piece computes; infinite where one is not finite.

    The words of a text, which are read as whole numbers and compared with 0, do not count.
    """
    import onnxruntime

    open_model = onnx.shape_inference.infer_shapes(model)
    known = {v.name for v in (*model.graph.output, *model.graph.input)} | _whole_numbers(model)
    inner = [v for v in open_model.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    open_model.graph.output.extend(v for v in inner if v.name not in known)
    options = onnxruntime.SessionOptions()
    # Fused nodes would hide the values in between.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(open_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return [_largest(session.run(None, dict(zip(names, call, strict=True)))) for call in calls]


def _whole_numbers(model: ModelProto) -> set[str]:
    """Inputs that are cast to whole numbers, and what is merely picked from them."""
    inputs = {value.name for value in model.graph.input}
    whole = {n.input[0] for n in model.graph.node if n.op_type == "Cast" and _target(n) in _INTEGERS} & inputs
    return whole | {n.output[0] for n in model.graph.node if n.op_type in ("Gather", "Slice") and n.input[0] in whole}


def _target(cast: NodeProto) -> int:
    return int(next(a.i for a in cast.attribute if a.name == "to"))


def _largest(values: Iterable[NDArray[Any]]) -> float:
    extremes = [float(np.abs(value).max()) for value in values if value.size]
    # max() over a NaN depends on the order.
    return max(extremes) if all(math.isfinite(x) for x in extremes) else math.inf
