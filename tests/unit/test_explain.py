"""The layer table names the layer that was damaged, in both formats, and says what it cannot see.

Axes: none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import EngineError, UsageError
from mars_export import explain, lowering, parity, pieces, to_onnx
from mars_export.explain import ARTIFACT
from mars_export.onnx_precision import set_weights
from mars_training.data.split import Split
from tests.helpers import tiny_int8, tiny_mars
from tests.helpers.toy_training import toy_split

# Lowering takes seconds of processor time, several times that on a busy machine.
pytestmark = pytest.mark.timeout(900)

METHODS = ("encode_rgb", "route")
HELD_OUT = toy_split(6, 5)


@pytest.fixture(scope="module")
def ready() -> lowering.Model:
    return tiny_int8.int8_model()


def graph_of(model: lowering.Model, methods: Sequence[str]) -> lowering.OnnxPayload:
    """Only these methods, as an .onnx payload."""
    known, examples = pieces.pieces_of(model.deployed), model.examples()
    models = to_onnx.export_pieces({m: known[m] for m in methods}, {m: examples[m] for m in methods})
    if model.precision == "int8":
        for proto in models.values():
            set_weights(proto, "uint8")
    return lowering.OnnxPayload(layout=None, models=models)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def graph(ready: lowering.Model) -> lowering.OnnxPayload:
    return graph_of(ready, METHODS)


class Program:
    """Stands for a .pte payload: of that only the model it was lowered from is read."""

    def program(self, manifest: str) -> bytes:
        raise AssertionError("the finished file hides its layers")

    coverage = weight_bytes = memory = program


def names(rows: Sequence[explain.LayerDifference], method: str) -> list[str]:
    return [row.layer for row in rows if row.method == method]


ENCODER = ["1: input input_1", "2: conv2d + relu (0.stack.0.0)", "3: conv2d + relu (0.stack.1.0)", "4: conv2d"]


def test_an_undamaged_graph_agrees_in_every_layer(ready: lowering.Model, graph: lowering.OnnxPayload) -> None:
    rows = explain.layers(ready, graph, HELD_OUT, methods=METHODS)
    assert names(rows, "encode_rgb") == ENCODER
    assert all(row.max_steps is not None and row.max_steps <= 1.01 and not row.beyond for row in rows)
    assert explain.first_beyond(rows) == {}
    assert explain.text(rows).endswith("\nbeyond that: nothing")


@pytest.mark.parametrize("layer", [0, 1])
def test_a_damaged_layer_of_a_graph_is_the_first_beyond(
    ready: lowering.Model, graph: lowering.OnnxPayload, layer: int
) -> None:
    wrong = tiny_int8.with_initializer(graph, "encode_rgb", lambda s: s * np.float32(1.25), layer=layer, which=1)
    rows = explain.layers(ready, wrong, HELD_OUT, methods=METHODS)
    assert explain.first_beyond(rows) == {"encode_rgb": ENCODER[1 + layer]}
    before = [row for row in rows if row.layer in ENCODER[: 1 + layer]]
    assert before and not any(row.beyond for row in before)
    text = explain.text(rows)
    (marked,) = [line for line in text.splitlines() if line.endswith("<- first beyond")]
    assert marked.strip().startswith(ENCODER[1 + layer])
    assert text.endswith(f"\nbeyond that: encode_rgb from {ENCODER[1 + layer]!r} on")


def test_a_damaged_layer_of_a_lowered_program_is_the_first_beyond(ready: lowering.Model) -> None:
    """Lowered from a copy with one changed scale, while the reference stays."""
    assert explain.first_beyond(explain.layers(ready, Program(), HELD_OUT, methods=["encode_rgb"])) == {}
    for layer in (0, 1):
        wrong = tiny_int8.with_piece(ready, "encode_rgb", lambda t, at=layer: _grow(tiny_int8.weight_scales(t)[at]))  # type: ignore[misc]
        rows = explain.layers(ready, Program(), HELD_OUT, methods=["encode_rgb"], lowered_from=wrong)
        assert names(rows, "encode_rgb") == ENCODER
        assert explain.first_beyond(rows) == {"encode_rgb": ENCODER[1 + layer]}


def _grow(tensor: Any) -> None:
    tensor.data.mul_(1.25)


class Whole:
    """Runs the methods of a finished artifact: as the model answers, but for what `damage` does."""

    def __init__(self, model: lowering.Model, held_out: Split, damage: Any) -> None:
        self.calls = parity.sample_calls(model.deployed, held_out)
        self.damage = damage

    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        for call in self.calls[method]:
            if all(np.array_equal(a, b.numpy()) for a, b in zip(inputs, call.inputs, strict=True)):
                return [self.damage(output.numpy()) for output in call.outputs]
        raise AssertionError("inputs that no sample makes")


def test_a_fault_of_the_file_alone_shows_in_its_own_line_and_in_no_layer(
    ready: lowering.Model, graph: lowering.OnnxPayload
) -> None:
    whole = Whole(ready, HELD_OUT, lambda output: output * 1.5)
    rows = explain.layers(ready, graph, HELD_OUT, methods=METHODS, pieces=whole)
    assert names(rows, "encode_rgb") == [*ENCODER, ARTIFACT]
    assert names(rows, "route")[-2:] == [f"{ARTIFACT}, output 0", f"{ARTIFACT}, output 1"]
    assert explain.first_beyond(rows) == {"encode_rgb": ARTIFACT, "route": f"{ARTIFACT}, output 0"}


def test_nan_and_a_failure_are_beyond_every_bound_and_survive_as_json(
    ready: lowering.Model, graph: lowering.OnnxPayload
) -> None:
    def nan(output: NDArray[Any]) -> NDArray[Any]:
        return np.full_like(output, math.nan)

    def fail(output: NDArray[Any]) -> NDArray[Any]:
        raise EngineError("method 'encode_rgb' failed: no memory")

    for damage, shown in ((nan, "nan"), (fail, "not run: method 'encode_rgb' failed: no memory")):
        whole = Whole(ready, HELD_OUT, damage)
        rows = explain.layers(ready, graph, HELD_OUT, methods=["encode_rgb"], pieces=whole)
        assert explain.first_beyond(rows) == {"encode_rgb": ARTIFACT}
        (line,) = [line for line in explain.text(rows).splitlines() if line.strip().startswith(ARTIFACT)]
        assert shown in line
        table = json.loads(json.dumps(explain.to_dict(rows), allow_nan=False))
        assert table["first_beyond"] == {"encode_rgb": ARTIFACT}
        assert len(table["layers"]) == len(ENCODER) + 1


def test_what_cannot_be_lined_up_is_refused(ready: lowering.Model, graph: lowering.OnnxPayload) -> None:
    with pytest.raises(UsageError) as caught:
        explain.layers(ready, graph, HELD_OUT, methods=["encode_ir"])
    known = ", ".join(pieces.pieces_of(ready.deployed))
    assert str(caught.value) == f"no method 'encode_ir' to explain; there are: {known}"
    other = replace(graph, models={"encode_rgb": graph.models["route"]})
    with pytest.raises(UsageError) as caught:
        explain.layers(ready, other, HELD_OUT, methods=["encode_rgb"])
    found = sum(n.op_type == "QuantizeLinear" for n in graph.models["route"].graph.node)
    assert str(caught.value) == (
        f"encode_rgb has {found} quantized values in the graph and 4 in the model: no layer table"
    )


def test_the_layers_of_a_float_graph_are_those_with_weights() -> None:
    """And a damaged one among them is the first beyond."""
    deployed = pieces.float_pieces(tiny_mars.model().deployed)
    model = lowering.Model(deployed=deployed, precision="fp32", info=tiny_mars.info(), provenance={})
    held_out = tiny_mars.split(4, 9)
    graph = graph_of(model, ["route"])
    rows = explain.layers(model, graph, held_out, methods=["route"])
    assert len(rows) == 2 and explain.first_beyond(rows) == {}
    (out,) = [t for t in graph.models["route"].graph.initializer if list(t.dims) == [4, 8, 1, 1]]
    out.raw_data = (np.float32(1.1) * np.frombuffer(out.raw_data, np.float32)).tobytes()
    assert explain.first_beyond(explain.layers(model, graph, held_out, methods=["route"])) == {"route": rows[1].layer}
