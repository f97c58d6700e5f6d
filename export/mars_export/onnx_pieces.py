"""The pieces of an .onnx artifact, cut out of the graph that the file holds and run one at a time in onnxruntime.

Axes: none.
Design decision: an engine runs the graph as a whole and skips the experts that are not chosen. To check those too, on
inputs of the model's own, each piece is cut from the finished graph, not taken from what it was assembled from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from mars_edge.errors import EngineError, ParityError


class OnnxPieces:
    """Runs each of `models`, by method name, as an engine runs the method of a .pte."""

    name = "onnxruntime"

    def __init__(self, models: Mapping[str, ModelProto]) -> None:
        self._models = models
        self._sessions: dict[str, Any] = {}

    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of `method`, float32.

        Raises:
            EngineError: there is no such piece, or onnxruntime refuses it or its inputs.
        """
        if method not in self._models:
            raise EngineError(f"the graph has no piece {method!r}")
        try:
            session = self._session(method)
            names = [entry.name for entry in session.get_inputs()]
            outputs = session.run(None, dict(zip(names, inputs, strict=True)))
        except _errors() as error:
            raise EngineError(f"method {method!r} failed: {str(error).splitlines()[0]}") from error
        return [np.asarray(output, np.float32) for output in outputs]

    def _session(self, method: str) -> Any:
        if method in self._sessions:
            return self._sessions[method]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        data = self._models[method].SerializeToString()
        self._sessions[method] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return self._sessions[method]


def _errors() -> tuple[type[Exception], ...]:
    """onnxruntime's own exceptions, which share no base below Exception, and those its Python layer raises."""
    module = onnxruntime.capi.onnxruntime_pybind11_state
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def cut_pieces(model: ModelProto, modalities: Sequence[str], methods: Iterable[str]) -> dict[str, ModelProto]:
    """Each piece of an assembled artifact as a model of its own, with the nodes and weights the artifact has for it.

    Raises:
        ParityError: the graph lacks the outputs of a piece.
    """
    nodes, weights = list(_nodes(model.graph)), {t.name: t for t in _weights(model.graph)}
    producers = {name: node for node in nodes for name in node.output}
    pieces = {}
    for method in methods:
        inputs = _inputs(method, modalities)
        outputs = [f"{method}/{method}.out{i}" for i in range(2 if method == "route" else 1)]
        missing = [name for name in outputs if name not in producers]
        if missing:
            raise ParityError(f"the graph has no value {missing[0]!r}: the piece {method} cannot be checked alone")
        pieces[method] = _cut(model, inputs, outputs, producers, weights)
    return pieces


def _inputs(method: str, modalities: Sequence[str]) -> list[str]:
    if method.startswith("encode_"):
        return [f"x_{method.removeprefix('encode_')}"]
    if method == "route":
        return [f"f_{name}" for name in modalities]
    return ["combined"] if method == "head" else ["route/route.out0"]


def _cut(
    model: ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    producers: Mapping[str, NodeProto],
    weights: Mapping[str, TensorProto],
) -> ModelProto:
    needed = _needed(inputs, outputs, producers)
    nodes = {id(producers[name]): producers[name] for name in producers if name in needed}
    graph = helper.make_graph(
        list(nodes.values()),
        outputs[0],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [weights[name] for name in weights if name in needed],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _needed(inputs: Sequence[str], outputs: Sequence[str], producers: Mapping[str, NodeProto]) -> set[str]:
    needed: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name and name not in needed and name not in inputs:
            needed.add(name)
            pending += producers[name].input if name in producers else []
    return needed


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those of its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    # Outer ones first: a branch may read them. No piece reads the result of a branch but as its input.
    return (node for part in _graphs(graph) for node in part.node)


def _weights(graph: GraphProto) -> Iterator[TensorProto]:
    return (tensor for part in _graphs(graph) for tensor in part.initializer)
