"""Where an artifact leaves its model: the values at every layer boundary of a method, side by side.

Axes: none; a layer's values are compared one by one, whatever their shape.
Design decision: a boundary is where the converted model quantizes an activation, or, in float, the output of a layer
with weights; both sides are fed the model's own inputs. An .onnx piece is run as the payload holds it, with its
inner tensors as further outputs: a fault in the graph is seen in its layer. A .pte hides what happens inside its
delegate: there the model's piece is lowered again up to each boundary and run in the same engine. That shows a layer
which lowering gets wrong. A fault of the file alone it cannot place: then every layer agrees and only the line of the
artifact's own method does not.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from torch import fx, nn

from mars_edge.errors import EngineError, UsageError
from mars_export import parity, reference, to_executorch
from mars_export.lowering import Model, OnnxPayload, Payload
from mars_export.onnx_pieces import OnnxPieces
from mars_export.pieces import Piece, pieces_of
from mars_export.reference import FLOAT_STEPS, Call, Precision
from mars_export.tally import SLACK
from mars_training.data.split import Split

ARTIFACT = "whole method, as the artifact holds it"
Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """One boundary of one method.

    Attributes:
        layer: its number, the operations since the boundaries before, and the module whose bias they add.
        step: what one step is in the layer's units; that of its quantizer where it has one.
        max_steps: largest difference; NaN where a side gives NaN, None where the layer could not be run.
        mean_steps: mean difference.
        off: share of values that are off by more than half a step.
        steps_allowed: a larger difference is beyond a bound, `parity.steps_allowed` of the quantizers so far.
        off_allowed: more of them is beyond a bound, `parity.off_allowed` of the quantizers so far.
        beyond: a bound of the parity gate for methods is exceeded.
        note: why the layer could not be run.
    """

    method: str
    layer: str
    step: float
    max_steps: float | None
    steps_allowed: float
    mean_steps: float | None
    off: float | None
    off_allowed: float
    beyond: bool
    note: str = ""


@dataclass(frozen=True)
class _Boundary:
    """A node of a traced piece whose value is compared; `step` is None where it has no quantizer."""

    node: fx.Node
    label: str
    step: float | None


def layers(
    model: Model,
    payload: Payload,
    held_out: Split,
    *,
    methods: Sequence[str] | None = None,
    pieces: parity.Pieces | None = None,
    lowered_from: Model | None = None,
) -> list[LayerDifference]:
    """Every boundary of every method, in the order of computation; the last line of a method is the artifact's own.

    Args:
        methods: which; all when None.
        pieces: runs the methods of the finished artifact, `parity.runner_of`; without it that line is left out.
        lowered_from: what a .pte was lowered from, where that is not `model`.

    Raises:
        UsageError: an unknown method, or a graph whose layers cannot be lined up with the model's.
    """
    known = pieces_of(model.deployed)
    unknown = [name for name in methods or () if name not in known]
    if unknown:
        raise UsageError(f"no method {unknown[0]!r} to explain; there are: {', '.join(known)}")
    calls = parity.sample_calls(model.deployed, held_out)
    return [
        row
        for method in methods or known
        for row in _explained(method, model, payload, calls[method], pieces, lowered_from or model)
    ]


def first_beyond(rows: Sequence[LayerDifference]) -> dict[str, str]:
    """By method, its first layer beyond a bound; methods without one are left out."""
    found: dict[str, str] = {}
    for row in rows:
        if row.beyond:
            found.setdefault(row.method, row.layer)
    return found


def to_dict(rows: Sequence[LayerDifference]) -> dict[str, Any]:
    """Plain JSON types: every row, and the first layer beyond a bound by method. A NaN is the string "nan"."""
    table = [asdict(row) for row in rows]
    for entry in table:
        for key, value in entry.items():
            if isinstance(value, float) and not np.isfinite(value):
                entry[key] = str(value)
    return {"layers": table, "first_beyond": first_beyond(rows)}


def text(rows: Sequence[LayerDifference]) -> str:
    """A table per method for people."""
    first, lines = first_beyond(rows), []
    for method in dict.fromkeys(row.method for row in rows):
        lines += [f"{method}", f"  {'layer':<54} {'step':>10} {'largest':>9}     {'mean':>8} {'off':>7}"]
        lines += [_line(row, marked=first.get(method) == row.layer) for row in rows if row.method == method]
    allowed = "allowed: what is in brackets; off is the share of values that differ by more than half a step"
    where = ", ".join(f"{method} from {layer!r} on" for method, layer in first.items())
    return "\n".join([*lines, allowed, f"beyond that: {where or 'nothing'}"])


def _line(row: LayerDifference, *, marked: bool) -> str:
    name = row.layer if len(row.layer) <= 54 else row.layer[:51] + "..."
    if row.max_steps is None or row.mean_steps is None or row.off is None:
        return f"  {name:<54} {row.step:>10.4g} {'not run: ' + row.note}"
    end = "  <- first beyond" if marked else ""
    off = f"{row.off:>7.2%} ({row.off_allowed:.1%})"
    largest = f"{row.max_steps:>9.2f} ({row.steps_allowed:g})"
    return f"  {name:<54} {row.step:>10.4g} {largest} {row.mean_steps:>8.4f} {off}{end}"


def _explained(
    method: str, model: Model, payload: Payload, calls: Sequence[Call], pieces: parity.Pieces | None, source: Model
) -> Iterator[LayerDifference]:
    example = model.examples()[method]
    traced = _traced(pieces_of(model.deployed)[method], example)
    boundaries = _boundaries(traced)
    inputs = [[x.contiguous().numpy() for x in call.inputs] for call in calls]
    wanted = _by_layer([_values(_up_to(traced, boundaries)(*call.inputs)) for call in calls])
    if isinstance(payload, OnnxPayload):
        given = list(_inside_graph(payload.models[method], boundaries, method, inputs))
    else:
        given = list(_lowered_again(_traced(pieces_of(source.deployed)[method], example), inputs, example))
    count = 0
    for boundary, want, got in zip(boundaries, wanted, given, strict=True):
        count += boundary.step is not None
        step = boundary.step or _float_step(want, model.precision, any(b.step for b in boundaries))
        yield _difference(method, boundary.label, want, got, step, count)
    if pieces is not None:
        yield from _whole(model, calls, inputs, pieces, count)


def _whole(
    model: Model, calls: Sequence[Call], inputs: Sequence[Arrays], pieces: parity.Pieces, count: int
) -> Iterator[LayerDifference]:
    method, outputs = calls[0].method, len(calls[0].outputs)
    for i in range(outputs):
        wanted = np.stack([call.outputs[i].numpy() for call in calls])
        step = reference.step(model.deployed, method, i, wanted, model.precision)
        label = ARTIFACT if outputs == 1 else f"{ARTIFACT}, output {i}"
        yield _difference(method, label, wanted, _run(pieces, method, inputs, pick=i), step, count)


def _run(
    runner: parity.Pieces, method: str, inputs: Sequence[Sequence[NDArray[Any]]], *, pick: int
) -> NDArray[np.float32] | str:
    """One output over all calls, or why there is none."""
    try:
        return np.stack([runner.execute(method, given)[pick] for given in inputs])
    except EngineError as error:
        return str(error)


def _difference(
    method: str, layer: str, wanted: NDArray[np.float32], given: NDArray[np.float32] | str, step: float, count: int
) -> LayerDifference:
    """`count` quantizers are on the way to the layer."""
    most, allowed = parity.steps_allowed(count), parity.off_allowed(count)
    if isinstance(given, str) or given.shape != wanted.shape:
        note = given if isinstance(given, str) else f"shape {given.shape[1:]}, expected {wanted.shape[1:]}"
        return LayerDifference(
            method=method,
            layer=layer,
            step=step,
            max_steps=None,
            steps_allowed=most,
            mean_steps=None,
            off=None,
            off_allowed=allowed,
            beyond=True,
            note=note,
        )
    steps = np.abs(given.astype(np.float32) - wanted) / np.float32(step)
    largest, off = float(steps.max()), float(np.mean(~(steps <= 0.5)))
    return LayerDifference(
        method=method,
        layer=layer,
        step=step,
        max_steps=largest,
        steps_allowed=most,
        mean_steps=float(steps.mean()),
        off=off,
        off_allowed=allowed,
        beyond=not (largest <= most + SLACK and off <= allowed),
    )


def _float_step(values: NDArray[np.float32], precision: Precision, quantized: bool) -> float:
    """As `reference.step`: of the int8 it might have been, or a share of the largest value."""
    spread = float(np.ptp(values)) / 255.0 if quantized else 0.0
    return spread or max(FLOAT_STEPS[precision] * float(np.abs(values).max()), 1e-30)


# The model's side.


def _traced(piece: nn.Module, example: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    inner = getattr(piece, "traced", None)
    if isinstance(inner, fx.GraphModule):
        return inner
    with torch.no_grad():
        traced = torch.export.export(piece.eval(), example).module()
    assert isinstance(traced, fx.GraphModule)
    return traced


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_function" else ""


def _is_quantizer(node: fx.Node) -> bool:
    return _name(node).startswith("quantized_decomposed.quantize_per_tensor")


def _is_float_layer(node: fx.Node) -> bool:
    if not _name(node).startswith(("aten.conv", "aten.linear")):
        return False
    weight = node.args[1]
    return isinstance(weight, fx.Node) and weight.op == "get_attr"


def _boundaries(traced: fx.GraphModule) -> list[_Boundary]:
    found: list[_Boundary] = []
    for node in traced.graph.nodes:
        if _is_quantizer(node):
            source, scale = node.args[0], node.args[1]
            assert isinstance(source, fx.Node)
            found.append(_Boundary(node, f"{len(found) + 1}: {_label(source)}", float(scale)))
        elif _is_float_layer(node):
            found.append(_Boundary(node, f"{len(found) + 1}: {_label(node)}", None))
    return found


def _label(node: fx.Node) -> str:
    """The operations that lead to `node` from the boundaries before it, and the module of their bias."""
    operations: list[str] = []
    modules: list[str] = []
    pending = [node]
    while pending:
        at = pending.pop()
        if at.op == "get_attr" and str(at.target).endswith((".bias", ".weight")):
            modules.append(str(at.target).rpartition(".")[0].removeprefix("traced."))
        elif at.op == "placeholder":
            operations.append(f"input {at.name}")
        elif at.op == "call_function" and not _name(at).startswith("quantized_decomposed"):
            operations.append(_name(at).split(".")[1] if "." in _name(at) else _name(at))
            if at is node or not _is_float_layer(at):
                pending += at.all_input_nodes
    chain = " + ".join(reversed(list(dict.fromkeys(operations))))
    return f"{chain} ({', '.join(dict.fromkeys(modules))})" if modules else chain or node.name


def _up_to(traced: fx.GraphModule, boundaries: Sequence[_Boundary]) -> fx.GraphModule:
    """The piece with the values at `boundaries`, in float, for its outputs; its weights are shared, not copied."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        # The guards check what the exporter already knows, and take other arguments than the graph.
        if node.op not in ("output", "call_module"):
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    # The operator is known once torchao or this module has registered it.
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    outputs = [
        copies[b.node] if b.step is None else graph.call_function(dequantize, (copies[b.node], *b.node.args[1:]))
        for b in boundaries
    ]
    graph.output(tuple(outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule(traced, graph)


def _values(outputs: Sequence[torch.Tensor]) -> Arrays:
    return [output.detach().numpy() for output in outputs]


def _by_layer(calls: Sequence[Arrays]) -> Arrays:
    return [np.stack([call[i] for call in calls]) for i in range(len(calls[0]))]


# The artifact's side.


def _lowered_again(
    traced: fx.GraphModule, inputs: Sequence[Sequence[NDArray[Any]]], example: tuple[torch.Tensor, ...]
) -> Iterator[NDArray[np.float32] | str]:
    """The values at each boundary from a program that has a method up to each of them."""
    # One output each: with the inner values as further outputs the delegate would compute another way.
    parts = {f"layer_{i}": Piece(_up_to(traced, [b])) for i, b in enumerate(_boundaries(traced))}
    lowered = to_executorch.lower(parts, dict.fromkeys(parts, example))
    runner = parity.program_runner(lowered.program("{}"))
    for name in parts:
        yield _run(runner, name, inputs, pick=0)


def _inside_graph(
    model: ModelProto, boundaries: Sequence[_Boundary], method: str, inputs: Sequence[Sequence[NDArray[Any]]]
) -> Iterator[NDArray[np.float32] | str]:
    """The values at each boundary from the piece itself."""
    extended, order = _with_outputs(model, boundaries, method)
    runner = OnnxPieces({method: extended})
    return (_run(runner, method, inputs, pick=at) for at in order)


def _with_outputs(model: ModelProto, boundaries: Sequence[_Boundary], method: str) -> tuple[ModelProto, list[int]]:
    """The piece with its inner values as outputs, and which output belongs to which boundary.

    Raises:
        UsageError: it has another number of quantizers or of float layers than the model.
    """
    names = _tensors(model, boundaries, method)
    extended = copy.deepcopy(model)
    known = [output.name for output in extended.graph.output]
    for name in names:
        if name not in known:
            known.append(name)
            # Without a type: the runtime infers it, float16 or float32.
            extended.graph.output.append(onnx.ValueInfoProto(name=name))
    return extended, [known.index(name) for name in names]


def _tensors(model: ModelProto, boundaries: Sequence[_Boundary], method: str) -> list[str]:
    quantized, plain = _quantized_tensors(model), _float_tensors(model)
    for what, found, expected in (
        ("quantized values", quantized, sum(b.step is not None for b in boundaries)),
        ("float layers", plain, sum(b.step is None for b in boundaries)),
    ):
        if len(found) != expected:
            raise UsageError(
                f"{method} has {len(found)} {what} in the graph and {expected} in the model: no layer table"
            )
    both = {True: iter(quantized), False: iter(plain)}
    return [next(both[b.step is not None]) for b in boundaries]


def _quantized_tensors(model: ModelProto) -> list[str]:
    """The float value behind every quantizer of an activation, in the order of computation."""
    constants = {t.name for t in model.graph.initializer}
    readers: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            readers.setdefault(node.input[0], node.output[0])
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    return [readers[node.output[0]] for node in quantizers]


def _float_tensors(model: ModelProto) -> list[str]:
    """The value of every layer with float weights, its bias added, in the order of computation."""
    constants = {t.name for t in model.graph.initializer}
    by_input: Mapping[str, list[NodeProto]] = _readers(model)
    for node in model.graph.node:
        if node.op_type in ("Cast", "Transpose", "Identity", "Constant") and set(node.input) <= constants:
            constants.add(node.output[0])
    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in constants:
            after = by_input.get(node.output[0], [])
            bias = node.op_type == "MatMul" and len(after) == 1 and after[0].op_type == "Add"
            found.append(after[0].output[0] if bias and constants & set(after[0].input) else node.output[0])
    return found


def _readers(model: ModelProto) -> dict[str, list[NodeProto]]:
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers
