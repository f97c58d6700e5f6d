"""Biases rounded to what integer kernels add: whole numbers of the step of their accumulator.

Design decision: XNNPACK and onnxruntime store the bias of an int8 layer as int32 in steps of input scale times weight
scale. A converted model that keeps it in float32 is off by up to half such a step, in every layer and in one direction;
ten layers on that was up to 6 output steps, and 22 % of a segmentation encoder's values. So the model is given the
biases that the engines have.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 2.4 (the bias as int32 with the scale S1 S2).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx

_INT32 = 2**31 - 1


@torch.no_grad()
def round_biases(traced: fx.GraphModule) -> int:
    """Rounds the bias of every layer of a converted piece that int8 computes, in place; returns how many there were.

    A bias that several layers add has no one step and stays as it is.
    """
    layers = [node for node in traced.graph.nodes if _is_int8_layer(node)]
    readers = Counter(
        user for node in traced.graph.nodes if node.op == "get_attr" for user in [node.target] * len(node.users)
    )
    rounded = 0
    for node in layers:
        given, weight, bias = node.args[:3]
        if readers[bias.target] > 1:
            continue
        values, step = _attribute(traced, bias), given.args[1] * _attribute(traced, weight.args[1]).double()
        values.copy_((values.double() / step).round().clamp(-_INT32, _INT32) * step)
        rounded += 1
    return rounded


def _is_int8_layer(node: fx.Node) -> bool:
    """A convolution or linear layer with a bias, fed by a dequantizer, of weights quantized per channel."""
    name = str(getattr(node.target, "_opname", ""))
    if node.op != "call_function" or not (name.startswith("conv") or name == "linear") or len(node.args) < 3:
        return False
    given, weight, bias = node.args[:3]
    return (
        _is(given, "dequantize_per_tensor")
        and _is(weight, "dequantize_per_channel")
        and isinstance(bias, fx.Node)
        and bias.op == "get_attr"
    )


def _is(value: Any, operation: str) -> bool:
    return isinstance(value, fx.Node) and str(getattr(value.target, "_opname", "")) == operation


def _attribute(module: torch.nn.Module, node: Any) -> Tensor:
    found: Any = module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    assert isinstance(found, Tensor)
    return found
