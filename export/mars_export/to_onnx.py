"""Assemble the pieces of a deployed model into one lazy .onnx graph.

Axes: N experts, K experts that run, M modalities.
Design decision: one graph with an `If` per modality and per expert. onnxruntime runs only the branch that is
taken, so a missing sensor's encoder and an expert that is not chosen cost nothing, and one session owns one
thread pool. Weights live inside the branches that use them.
Source: ONNX operator `If` (opset 20), QuantizeLinear/DequantizeLinear; quantization formats of onnxruntime,
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper, numpy_helper
from torch import nn

from mars_edge.errors import UsageError
from mars_export.hush import hushed
from mars_export.pieces import Examples

OPSET = 20
# The IR version that introduced nothing beyond what opset 20 needs; newer ones shut out older onnxruntimes.
_IR_VERSION = 9


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """One piece as ONNX nodes, all names prefixed by its method."""

    nodes: list[NodeProto]
    initializers: list[TensorProto]
    outputs: list[str]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names and shapes the graph is assembled by; shapes have batch 1.

    Attributes:
        modalities: in fusion order.
        active_experts: K.
    """

    modalities: tuple[str, ...]
    experts: int
    active_experts: int
    shared_expert: bool
    inputs: Mapping[str, tuple[int, ...]]
    features: Mapping[str, tuple[int, ...]]
    expert_output: tuple[int, ...]
    classes: int


class _SideBySide(nn.Module):
    """Every piece on inputs of its own; outputs in the order of the pieces."""

    def __init__(self, pieces: Mapping[str, nn.Module], examples: Examples) -> None:
        super().__init__()
        self.pieces = nn.ModuleDict(dict(pieces))
        self.widths = [len(examples[method]) for method in pieces]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        start = 0
        for piece, width in zip(self.pieces.values(), self.widths, strict=True):
            given = piece(*inputs[start : start + width])
            outputs += given if isinstance(given, tuple | list) else [given]
            start += width
        return tuple(outputs)


def export_pieces(pieces: Mapping[str, nn.Module], examples: Examples) -> dict[str, ModelProto]:
    """Each piece as a model of its own, static batch 1, opset 20; int8 pieces keep their trained scales.

    All are exported in one pass, because a pass costs 3 s however small its graph, and then cut apart.
    """
    inputs = [f"{method}.in{i}" for method in pieces for i in range(len(examples[method]))]
    outputs = {method: 2 if method == "route" else 1 for method in pieces}
    names = [f"{method}.out{i}" for method, count in outputs.items() for i in range(count)]
    flat = tuple(x for method in pieces for x in examples[method])
    with hushed(), torch.no_grad():
        program = torch.export.export(_SideBySide(pieces, examples).eval(), flat)
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=names, verbose=False
        )
    assert exported is not None
    whole = exported.model_proto
    if whole.functions:
        whole = onnx.inliner.inline_local_functions(whole)
    return {
        method: cut(
            whole,
            [f"{method}.in{i}" for i in range(len(examples[method]))],
            [f"{method}.out{i}" for i in range(count)],
        )
        for method, count in outputs.items()
    }


def cut(whole: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The part of a graph that computes `outputs`, without documentation strings.

    Raises:
        UsageError: it reads an input that is not among `inputs`.
    """
    graph = whole.graph
    producers = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name and name not in needed:
            needed.add(name)
            pending += producers[name].input if name in producers else []
    foreign = {i.name for i in graph.input} & needed - set(inputs)
    if foreign:
        raise UsageError(f"{outputs[0]} reads {sorted(foreign)[0]}: the pieces are not independent")
    values = {v.name: v for v in (*graph.input, *graph.output)}
    part = helper.make_graph(
        [_bare(node) for node in graph.node if needed.intersection(node.output)],
        outputs[0],
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        [t for t in graph.initializer if t.name in needed],
    )
    return helper.make_model(part, opset_imports=whole.opset_import, ir_version=_IR_VERSION)


def _bare(node: NodeProto) -> NodeProto:
    """The node without the exporter's notes, which hold source paths of the exporting machine."""
    bare = NodeProto()
    bare.CopyFrom(node)
    bare.doc_string = ""
    del bare.metadata_props[:]
    return bare


def to_unsigned(model: ModelProto) -> None:
    """Rewrites every int8 quantizer, in place, as uint8 with 128 added to its zero point and its weights.

    The real values are the same. onnxruntime's x86 kernels without VNNI add pairs of u8 x s8 products in
    16 bits and saturate; with both sides unsigned they do not.
    """
    constants = {n.output[0]: n for n in model.graph.node if n.op_type == "Constant"}
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in constants.values()):
        raise UsageError("constants cannot be quantizers")
    initializers = {t.name: t for t in model.graph.initializer}
    for name, tensor in initializers.items():
        if tensor.data_type == TensorProto.INT8:
            shifted = (numpy_helper.to_array(tensor).astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(numpy_helper.from_array(shifted, name))
    for node in constants.values():
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.INT8:
                shifted = (numpy_helper.to_array(attribute.t).astype(np.int16) + 128).astype(np.uint8)
                attribute.t.CopyFrom(numpy_helper.from_array(shifted, attribute.t.name))
    _require_zero_points(model.graph.node)
    del model.graph.value_info[:]


def _require_zero_points(nodes: Iterable[NodeProto]) -> None:
    # Without a zero point the type of QuantizeLinear's output is uint8 with zero 0, not int8 shifted by 128.
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) < 3:
            raise UsageError(f"quantizer {node.name!r} has no zero point: it cannot be made unsigned")


def fragment(model: ModelProto, method: str, inputs: Sequence[str]) -> Fragment:
    """The nodes of a piece, reading the values called `inputs`; every other name gets the prefix `method/`."""
    prefixed = compose.add_prefix(model, f"{method}/")
    graph = prefixed.graph
    if len(graph.input) != len(inputs):
        raise UsageError(f"{method} reads {len(graph.input)} inputs, expected {len(inputs)}")
    renamed = dict(zip((i.name for i in graph.input), inputs, strict=True))
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    return Fragment(
        nodes=list(graph.node), initializers=list(graph.initializer), outputs=[o.name for o in graph.output]
    )


def assemble(layout: Layout, models: Mapping[str, ModelProto], manifest: str) -> ModelProto:
    """The whole decision as one checked graph; `models` by method name.

    Inputs, in this order, for each modality m: x_m, fresh_m (bool, scalar), feature_m. Outputs: logits,
    router_logits, then f_m for each modality.
    """
    nodes: list[NodeProto] = []
    initializers: list[TensorProto] = []
    for name in layout.modalities:
        piece = fragment(models[f"encode_{name}"], f"encode_{name}", [f"x_{name}"])
        nodes.append(_encoder_branch(name, piece, layout.features[name]))
    route = fragment(models["route"], "route", [f"f_{name}" for name in layout.modalities])
    z, router_logits = route.outputs
    nodes += [*route.nodes, helper.make_node("Identity", [router_logits], ["router_logits"])]
    initializers += route.initializers
    nodes += _gates(layout, initializers)
    terms = [
        _expert_branch(i, fragment(models[f"expert_{i}"], f"expert_{i}", [z]), layout) for i in range(layout.experts)
    ]
    nodes += terms
    summed = [node.output[0] for node in terms]
    if layout.shared_expert:
        shared = fragment(models["expert_shared"], "expert_shared", [z])
        nodes, initializers = nodes + shared.nodes, initializers + shared.initializers
        summed.append(shared.outputs[0])
    nodes.append(helper.make_node("Sum", summed, ["combined"], name="combine"))
    head = fragment(models["head"], "head", ["combined"])
    nodes += [*head.nodes, helper.make_node("Identity", [head.outputs[0]], ["logits"])]
    initializers += head.initializers
    graph = helper.make_graph(nodes, "mars_edge", _inputs(layout), _outputs(layout), initializers)
    return _model(graph, manifest)


def _model(graph: GraphProto, manifest: str) -> ModelProto:
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="mars-edge", ir_version=_IR_VERSION
    )
    helper.set_model_props(model, {"manifest": manifest})
    onnx.checker.check_model(model, full_check=True)
    return model


def serialize(model: ModelProto) -> bytes:
    """The bytes of the model; equal for equal models."""
    buffer = io.BytesIO()
    buffer.write(model.SerializeToString(deterministic=True))
    return buffer.getvalue()


def _inputs(layout: Layout) -> list[ValueInfoProto]:
    values: list[ValueInfoProto] = []
    for name in layout.modalities:
        values.append(_float(f"x_{name}", layout.inputs[name]))
        values.append(helper.make_tensor_value_info(f"fresh_{name}", TensorProto.BOOL, []))
        values.append(_float(f"feature_{name}", layout.features[name]))
    return values


def _outputs(layout: Layout) -> list[ValueInfoProto]:
    features = [_float(f"f_{name}", layout.features[name]) for name in layout.modalities]
    return [_float("logits", (1, layout.classes)), _float("router_logits", (1, layout.experts)), *features]


def _float(name: str, shape: Sequence[int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _encoder_branch(name: str, piece: Fragment, shape: Sequence[int]) -> NodeProto:
    """If(fresh_m) encode_m(x_m) else feature_m."""
    cached = f"encode_{name}/cached"
    return helper.make_node(
        "If",
        [f"fresh_{name}"],
        [f"f_{name}"],
        name=f"encode_{name}",
        then_branch=helper.make_graph(
            piece.nodes, f"encode_{name}", [], [_float(piece.outputs[0], shape)], piece.initializers
        ),
        else_branch=helper.make_graph(
            [helper.make_node("Identity", [f"feature_{name}"], [cached])], f"keep_{name}", [], [_float(cached, shape)]
        ),
    )


def _gates(layout: Layout, initializers: list[TensorProto]) -> list[NodeProto]:
    """Per expert a scalar `gate_i` (softmax over the K largest logits) and `selected_i` (among the K)."""
    constants = {
        "gates/k": np.array([layout.active_experts], np.int64),
        "gates/ids": np.arange(layout.experts, dtype=np.int64).reshape(1, -1),
        "gates/column": np.array([layout.active_experts, 1], np.int64),
        "gates/over_k": np.array([0], np.int64),
    }
    constants |= {f"gates/{i}": np.array(i, np.int64) for i in range(layout.experts)}
    initializers += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    nodes = [
        helper.make_node(
            "TopK", ["router_logits", "gates/k"], ["gates/kept", "gates/chosen"], axis=1, name="gates/top_k"
        ),
        helper.make_node("Softmax", ["gates/kept"], ["gates/row"], axis=1),
        helper.make_node("Reshape", ["gates/row", "gates/column"], ["gates/weights"]),
        helper.make_node("Reshape", ["gates/chosen", "gates/column"], ["gates/chosen_column"]),
        helper.make_node("Equal", ["gates/chosen_column", "gates/ids"], ["gates/hits"]),
        helper.make_node("Cast", ["gates/hits"], ["gates/one_hot"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["gates/one_hot", "gates/weights"], ["gates/spread"]),
        helper.make_node("ReduceSum", ["gates/spread", "gates/over_k"], ["gates/all"], keepdims=0),
        helper.make_node("ReduceMax", ["gates/one_hot", "gates/over_k"], ["gates/any"], keepdims=0),
        helper.make_node("Cast", ["gates/any"], ["gates/selected"], to=TensorProto.BOOL),
    ]
    for i in range(layout.experts):
        nodes.append(helper.make_node("Gather", ["gates/all", f"gates/{i}"], [f"gate_{i}"]))
        nodes.append(helper.make_node("Gather", ["gates/selected", f"gates/{i}"], [f"selected_{i}"]))
    return nodes


def _expert_branch(i: int, piece: Fragment, layout: Layout) -> NodeProto:
    """If(selected_i) gate_i * expert_i(z) else zeros."""
    weighted, zeros, size = f"expert_{i}/weighted", f"expert_{i}/zeros", f"expert_{i}/size"
    then_branch = helper.make_graph(
        [*piece.nodes, helper.make_node("Mul", [piece.outputs[0], f"gate_{i}"], [weighted])],
        f"expert_{i}",
        [],
        [_float(weighted, layout.expert_output)],
        piece.initializers,
    )
    else_branch = helper.make_graph(
        [helper.make_node("ConstantOfShape", [size], [zeros])],
        f"skip_{i}",
        [],
        [_float(zeros, layout.expert_output)],
        [numpy_helper.from_array(np.array(layout.expert_output, np.int64), size)],
    )
    return helper.make_node(
        "If", [f"selected_{i}"], [f"term_{i}"], name=f"expert_{i}", then_branch=then_branch, else_branch=else_branch
    )
