"""Biases as integer kernels add them: whole steps of the accumulator, so that an engine has nothing left to round."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mars_export import to_executorch
from mars_export.biases import round_biases
from mars_export.fake_quantize import fake_quantized, freeze_observers, traced_graph
from mars_export.hush import hushed
from mars_export.parity import program_runner
from mars_export.pieces import Piece

SHAPE = (3, 16, 16)


class Stack(nn.Module):
    """Nine convolutions with biases far from any step; `twice` runs the fifth layer a second time."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8))
        self.order = (0, 1, 2, 3, 3, 4, 5, 6, 7) if twice else range(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for i in self.order:
            x = self.layers[i](torch.relu(x))
        return x


def converted(module: nn.Module, *, rounded: bool, float_paths: tuple[str, ...] = ()) -> torch.fx.GraphModule:
    with hushed():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        graph = fake_quantized(traced_graph(module, (torch.zeros(2, *SHAPE),)), float_paths)
        torch.manual_seed(4)
        graph(torch.randn(32, *SHAPE))
        freeze_observers(graph)
        traced: torch.fx.GraphModule = convert_pt2e(copy.deepcopy(graph))
    if rounded:
        round_biases(traced)
    return traced


def accumulator_steps(traced: torch.fx.GraphModule) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By name of a bias its values, and the scale of the input times the scales of the weights."""
    found = {}
    for node in traced.graph.nodes:
        if "conv2d" in str(node.target):
            given, weight, bias = node.args[:3]
            if "dequantize" in str(given.target):
                step = given.args[1] * traced.get_buffer(str(weight.args[1].target)).double()
                found[str(bias.target)] = traced.get_parameter(str(bias.target)).detach().double(), step
    return found


def off_share(traced: torch.fx.GraphModule) -> float:
    """Share of the values that the target engine computes otherwise than the model, by half a step and more."""
    example = (torch.zeros(1, *SHAPE),)
    with hushed():
        program = to_executorch.lower({"head": Piece(copy.deepcopy(traced))}, {"head": example}).program("{}")
    runner = program_runner(program)
    torch.manual_seed(5)
    rows = torch.randn(8, 1, *SHAPE)
    with torch.no_grad():
        wanted = np.concatenate([traced(row).numpy() for row in rows])
    given = np.concatenate([runner.execute("head", [row.numpy()])[0] for row in rows])
    step = np.diff(np.unique(wanted)).min()
    return float(np.mean(np.abs(given - wanted) > step / 2))


def test_every_bias_is_a_whole_number_of_steps_of_its_accumulator() -> None:
    before, after = (accumulator_steps(converted(Stack(), rounded=on)) for on in (False, True))
    assert len(after) == 9
    for name, (values, step) in after.items():
        counts = values / step
        torch.testing.assert_close(counts, counts.round(), rtol=1e-6, atol=1e-3)
        unrounded = before[name][0] / step
        assert (unrounded - unrounded.round()).abs().max() > 0.1
        assert ((values - before[name][0]).abs() <= 0.5001 * step).all()


def test_an_engine_answers_as_a_model_with_whole_biases_and_not_as_one_without() -> None:
    # What is left is float32 sums on the model's side: near a tie they round the other way.
    whole, fractional = (off_share(converted(Stack(), rounded=on)) for on in (True, False))
    assert whole < 0.005
    assert fractional > 10 * whole


@pytest.mark.parametrize("path", ["first", "layers.4"])
def test_the_bias_of_a_float_layer_stays_as_it_was_trained(path: str) -> None:
    module = Stack()
    trained = module.get_submodule(path).bias.detach().clone()  # type: ignore[union-attr, operator]
    traced = converted(module, rounded=True, float_paths=(path,))
    torch.testing.assert_close(traced.get_parameter(f"{path}.bias").detach(), trained, rtol=0, atol=0)
    assert round_biases(traced) == 8


def test_a_bias_that_two_calls_of_a_layer_add_has_no_one_step_and_stays() -> None:
    module = Stack(twice=True)
    trained = module.layers[3].bias.detach().clone()  # type: ignore[operator, union-attr]
    traced = converted(module, rounded=True)
    torch.testing.assert_close(traced.get_parameter("layers.3.bias").detach(), trained, rtol=0, atol=0)
    assert round_biases(traced) == 8
