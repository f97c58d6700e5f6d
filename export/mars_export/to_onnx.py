"""Assemble the pieces of a deployed model into one lazy .onnx graph.

Axes: N experts, K experts that run, M modalities.
Design decision: one graph with an `If` per modality and per expert. onnxruntime runs only the branch that is
taken, so a missing sensor's encoder and an expert that is not chosen cost nothing, and one session owns one
thread pool. Weights live inside the branches that use them. Between the pieces everything is float32, whatever
the pieces compute with: cached features, the gates and the experts' sum are the same in every precision.
Source: ONNX operator `If`; opsets, IR versions and the onnxruntime that first had them (opset 18: 1.14, 19: 1.15,
20: 1.17), https://onnxruntime.ai/docs/reference/compatibility.html
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper, numpy_helper
from torch import nn

from mars_edge.errors import UsageError
from mars_export.hush import hushed
from mars_export.onnx_precision import Weights, set_weights, to_half
from mars_export.pieces import Examples

OPSET = 20
OPSETS = (18, 19, 20)
Precision = Literal["int8", "fp16", "fp32"]


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
        classes: axis 1 of the head's output; its further axes are the head's own.
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


def lower(
    pieces: Mapping[str, nn.Module],
    examples: Examples,
    *,
    precision: Precision,
    weights: Weights = "uint8",
    opset: int = OPSET,
) -> dict[str, ModelProto]:
    """Each piece as a model of its own, in the numbers it will be stored and computed in; ready for `assemble`.

    Args:
        pieces: converted for int8, folded float32 for fp16 and fp32.
        examples: batch 1.
        weights: how trained int8 is written; see `onnx_precision.set_weights`. Nothing to fp16 and fp32.
        opset: of `OPSETS`.

    Raises:
        UsageError: unknown precision, weights or opset, or a weight is beyond float16's range.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r} is unknown; allowed: {', '.join(get_args(Precision))}")
    models = export_pieces(pieces, examples, opset=opset)
    for model in models.values():
        if precision == "int8":
            set_weights(model, weights)
        elif precision == "fp16":
            to_half(model)
    return models


def export_pieces(pieces: Mapping[str, nn.Module], examples: Examples, *, opset: int = OPSET) -> dict[str, ModelProto]:
    """Each piece as a model of its own, static batch 1; int8 pieces keep their trained scales.

    All are exported in one pass, because a pass costs 3 s however small its graph, and then cut apart.

    Raises:
        UsageError: an opset outside `OPSETS`.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset is {opset}; allowed: {', '.join(map(str, OPSETS))}")
    inputs = {method: [f"{method}.in{i}" for i in range(len(examples[method]))] for method in pieces}
    outputs = {method: [f"{method}.out{i}" for i in range(2 if method == "route" else 1)] for method in pieces}
    flat = tuple(x for method in pieces for x in examples[method])
    with hushed(), torch.no_grad():
        program = torch.export.export(_SideBySide(pieces, examples).eval(), flat)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[name for names in inputs.values() for name in names],
            output_names=[name for names in outputs.values() for name in names],
            verbose=False,
        )
    assert exported is not None
    whole = exported.model_proto
    if whole.functions:
        whole = onnx.inliner.inline_local_functions(whole)
    return {method: cut(whole, inputs[method], outputs[method]) for method in pieces}


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
    return _with_opset_of(whole, part)


def _with_opset_of(like: ModelProto, graph: GraphProto, **fields: str) -> ModelProto:
    """A model in the oldest IR version that has its opset; newer ones shut out older runtimes."""
    opsets = [opset for opset in like.opset_import if opset.domain == ""]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=int(helper.find_min_ir_version_for(opsets)), **fields
    )


def _bare(node: NodeProto) -> NodeProto:
    """The node without the exporter's notes, which hold source paths of the exporting machine."""
    bare = NodeProto()
    bare.CopyFrom(node)
    bare.doc_string = ""
    del bare.metadata_props[:]
    return bare


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

    Inputs, in this order, for each modality m: x_m, fresh_m (bool, scalar), feature_m. Outputs: logits, of the
    shape the head gives, router_logits, then f_m for each modality. All but fresh_m are float32.

    Raises:
        UsageError: the head gives another number of classes.
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
    terms = _expert_branches(layout, models, z, initializers)
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
    outputs = _outputs(layout, _logits_shape(models["head"], layout.classes))
    graph = helper.make_graph(nodes, "mars_edge", _inputs(layout), outputs, initializers)
    return _model(graph, models["head"], manifest)


def _logits_shape(head: ModelProto, classes: int) -> tuple[int, ...]:
    """(1, classes), or (1, classes, H, W) for a segmentation, as the head declares it."""
    shape = tuple(axis.dim_value for axis in head.graph.output[0].type.tensor_type.shape.dim)
    if shape[:2] != (1, classes):
        raise UsageError(f"the head gives {shape}, expected (1, {classes}) or (1, {classes}, H, W)")
    return shape


def _model(graph: GraphProto, like: ModelProto, manifest: str) -> ModelProto:
    model = _with_opset_of(like, graph, producer_name="mars-edge")
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


def _outputs(layout: Layout, logits: Sequence[int]) -> list[ValueInfoProto]:
    features = [_float(f"f_{name}", layout.features[name]) for name in layout.modalities]
    return [_float("logits", logits), _float("router_logits", (1, layout.experts)), *features]


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


def _expert_branches(
    layout: Layout, models: Mapping[str, ModelProto], z: str, initializers: list[TensorProto]
) -> list[NodeProto]:
    """Per expert If(selected_i) gate_i * expert_i(z) else zeros."""
    size = numpy_helper.from_array(np.array(layout.expert_output, np.int64), "experts/size")
    initializers.append(size)
    return [
        _expert_branch(i, fragment(models[f"expert_{i}"], f"expert_{i}", [z]), layout, size.name)
        for i in range(layout.experts)
    ]


def _expert_branch(i: int, piece: Fragment, layout: Layout, size: str) -> NodeProto:
    weighted, zeros = f"expert_{i}/weighted", f"expert_{i}/zeros"
    then_branch = helper.make_graph(
        [*piece.nodes, helper.make_node("Mul", [piece.outputs[0], f"gate_{i}"], [weighted])],
        f"expert_{i}",
        [],
        [_float(weighted, layout.expert_output)],
        piece.initializers,
    )
    else_branch = helper.make_graph(
        [helper.make_node("ConstantOfShape", [size], [zeros])], f"skip_{i}", [], [_float(zeros, layout.expert_output)]
    )
    return helper.make_node(
        "If", [f"selected_{i}"], [f"term_{i}"], name=f"expert_{i}", then_branch=then_branch, else_branch=else_branch
    )
