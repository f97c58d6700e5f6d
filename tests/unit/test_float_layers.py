"""Mixed precision: named layers compute in float32, in both formats, and the others are as quantized as before.

Axes: B rows, 1 row in the engines.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_export import quantize, to_executorch, to_onnx
from mars_export.hush import hushed
from mars_export.onnx_precision import set_weights
from mars_export.pieces import example_inputs, float_pieces, pieces_of
from mars_training.model.mars import DeployedMars
from tests.helpers.tiny_mars import NAMES, SHAPES, model, recipe, split

METHOD, LAYER = "encode_rgb", "encode_rgb/0.stack.1.0"
EVERYTHING = torch.ones(8, len(NAMES), dtype=torch.bool)


def converted(*float_layers: str) -> DeployedMars:
    deployed = model().deployed
    with hushed():
        quantize.prepare(deployed, SHAPES, float_layers=float_layers)
        torch.manual_seed(0)
        quantize.observe(deployed, split(48, 1), recipe())
        quantize.freeze_observers(deployed)
        return quantize.convert(deployed)


@pytest.fixture(scope="module")
def mixed() -> DeployedMars:
    return converted(LAYER)


def int8_constants(piece: nn.Module) -> int:
    """Weights that are stored in 8 bits."""
    return sum(t.numel() for t in piece.state_dict().values() if t.dtype == torch.int8)


def test_only_the_named_layer_keeps_float_weights(mixed: DeployedMars) -> None:
    everywhere = converted()
    named = model().deployed.encoders["rgb"].stack[1][0].weight.numel()  # type: ignore[union-attr, index]
    found = {method: int8_constants(piece) for method, piece in pieces_of(mixed).items()}
    expected = {method: int8_constants(piece) for method, piece in pieces_of(everywhere).items()}
    assert expected[METHOD] - found[METHOD] == named
    del found[METHOD], expected[METHOD]
    assert found == expected


def test_a_whole_piece_left_float_answers_as_the_float_model() -> None:
    deployed = converted("encode_rgb")
    x = split(8, 2).batch(torch.arange(8))["rgb"]
    assert int8_constants(deployed.encoders["rgb"]) == 0
    with torch.no_grad():
        expected = float_pieces(model().deployed).encode("rgb", x)
        torch.testing.assert_close(deployed.encode("rgb", x), expected, rtol=1e-5, atol=1e-6)


def test_a_float_layer_between_int8_layers_runs_in_xnnpack_as_in_pytorch(mixed: DeployedMars) -> None:
    examples = example_inputs(mixed, SHAPES, batch=1)
    lowered = to_executorch.lower({METHOD: mixed.encoders["rgb"]}, {METHOD: examples[METHOD]})
    assert lowered.coverage()[METHOD].share == 1.0
    engine = _executorch(lowered.program("{}"))
    x = split(8, 2).batch(torch.arange(8))["rgb"]
    expected = _one_by_one(mixed.encoders["rgb"], x)
    given = torch.cat([engine.load_method(METHOD).execute((row[None].contiguous(),))[0] for row in x])
    assert _steps(given, expected) <= 2.0


def test_a_float_layer_between_int8_layers_runs_in_onnxruntime_as_in_pytorch(mixed: DeployedMars) -> None:
    examples = example_inputs(mixed, SHAPES, batch=1)
    proto = to_onnx.export_pieces({METHOD: mixed.encoders["rgb"]}, {METHOD: examples[METHOD]})[METHOD]
    set_weights(proto, "uint8")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = split(8, 2).batch(torch.arange(8))["rgb"]
    (name,) = [i.name for i in session.get_inputs()]
    given = np.concatenate([session.run(None, {name: row[None].contiguous().numpy()})[0] for row in x])
    assert _steps(torch.from_numpy(given), _one_by_one(mixed.encoders["rgb"], x)) <= 2.0


def _executorch(program: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime

        return Runtime.get().load_program(program)


@torch.no_grad()
def _one_by_one(piece: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([piece(row[None]) for row in x])


def _steps(given: Tensor, expected: Tensor) -> float:
    values = expected.unique()
    return float((given - expected).abs().max() / values.diff().min())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "encode_sonar/stack.0.0",
            "float layer 'encode_sonar/stack.0.0' is in no piece; the pieces are: encode_rgb, encode_depth, encode_ir, "
            "route, expert_0, expert_1, expert_2, expert_3, head",
        ),
        (
            "encode_rgb/stack.9",
            "float layer 'encode_rgb/stack.9' is not there; the layers of encode_rgb are: encode_rgb/0.stack.0.0, "
            "encode_rgb/0.stack.1.0, encode_rgb/1",
        ),
    ],
)
def test_an_unknown_float_layer_is_refused_with_those_that_are_known(name: str, message: str) -> None:
    with hushed(), pytest.raises(UsageError) as caught:
        quantize.prepare(model().deployed, SHAPES, float_layers=(name,))
    assert str(caught.value) == message
