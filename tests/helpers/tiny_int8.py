"""A tiny int8 model of two modalities, lowered to both formats, and ways to damage what was lowered.

Axes: N = 3 experts, K = 2, H = W = 8 pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, load_model_from_string, numpy_helper
from torch import nn

from mars_export import lowering, quantize, to_executorch
from mars_export.hush import hushed
from mars_export.pieces import Piece, pieces_of
from mars_training.checkpoint import RunInfo
from mars_training.data.split import Data
from mars_training.methods import build_model
from mars_training.model.mars import TrainingMars
from mars_training.recipe import EncoderRecipe
from tests.helpers.toy_training import MODALITIES, RECIPE, SOURCE, toy_split

NAMES = ("rgb", "depth")
_TWO_LAYERS = EncoderRecipe(channels=(4, 8), strides=(2, 1))
TINY = replace(
    RECIPE,
    model=replace(RECIPE.model, encoders=dict.fromkeys(NAMES, _TWO_LAYERS), experts=3, active_experts=2),
)


def int8_model() -> lowering.Model:
    """Untrained but lively, quantized after training: logits and routing differ from sample to sample."""
    torch.manual_seed(3)
    training = build_model(TINY, MODALITIES, 2)
    assert isinstance(training, TrainingMars)
    data = Data(source=SOURCE, train=toy_split(64, 1), validation=toy_split(16, 2))
    training.train()
    with torch.no_grad():
        for _ in range(20):
            training(data.train.batch(torch.arange(64)), torch.rand(64, 2) > 0.4)
        for norm in (m for m in training.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        training.deployed.head.out.weight.mul_(4.0)  # type: ignore[union-attr, operator]
    training.eval()
    converted = quantize.quantize(training, data, TINY, seed=0, report=lambda epoch: None, ptq=True)
    info = RunInfo(recipe=TINY, seed=0, source=SOURCE)
    return lowering.Model(deployed=converted, precision="int8", info=info, provenance={})


# The model.


def with_piece(model: lowering.Model, method: str, damage: Callable[[Any], None]) -> lowering.Model:
    """A copy of the model in which `damage` was done to the traced graph of one piece."""
    with hushed():
        wrong = copy.deepcopy(model.deployed)
    piece = pieces_of(wrong)[method]
    assert isinstance(piece, Piece)
    damage(piece.traced)
    return replace(model, deployed=wrong)


def weight_scales(traced: Any) -> list[torch.Tensor]:
    """The scales of every layer's int8 weights, in the order of computation."""
    nodes = [n for n in traced.graph.nodes if "dequantize_per_channel" in str(n.target)]
    used = sorted(nodes, key=lambda n: min(list(traced.graph.nodes).index(user) for user in n.users))
    return [getattr(traced, n.args[1].target) for n in used]


def biases(traced: Any) -> list[torch.Tensor]:
    """Every bias of a traced graph."""
    named = [*traced.named_parameters(), *traced.named_buffers()]
    return [tensor for name, tensor in named if name.endswith("bias")]


# What was lowered.


def exchanged(payload: lowering.Payload, first: str, second: str) -> lowering.Payload:
    """The payload with two methods in each other's place."""
    if isinstance(payload, lowering.OnnxPayload):
        models = dict(payload.models)
        models[first], models[second] = named(models[second], second, first), named(models[first], first, second)
        return replace(payload, models=models)
    assert isinstance(payload, to_executorch.Lowered)
    parts = payload.parts
    return replace(payload, parts={**parts, first: parts[second], second: parts[first]})


def named(model: ModelProto, old: str, new: str) -> ModelProto:
    """The piece with inputs and outputs named as those of another method are."""
    renamed = copy.deepcopy(model)
    table = {
        value.name: value.name.replace(f"{old}.", f"{new}.") for value in (*model.graph.input, *model.graph.output)
    }
    for node in renamed.graph.node:
        node.input[:] = [table.get(name, name) for name in node.input]
        node.output[:] = [table.get(name, name) for name in node.output]
    for value in (*renamed.graph.input, *renamed.graph.output):
        value.name = table[value.name]
    return renamed


def relowered(payload: lowering.Payload, wrong: lowering.Model, method: str) -> lowering.Payload:
    """The .pte payload with one method lowered anew, from another model."""
    assert isinstance(payload, to_executorch.Lowered)
    example = wrong.examples()[method]
    again = to_executorch.lower({method: pieces_of(wrong.deployed)[method]}, {method: example})
    return replace(payload, parts={**payload.parts, method: again.parts[method]})


def with_initializer(
    payload: lowering.Payload, method: str, change: Callable[[np.ndarray], np.ndarray], *, layer: int, which: int
) -> lowering.Payload:
    """The .onnx payload with one constant of one layer's weight quantizer changed: 0 values, 1 scales."""
    assert isinstance(payload, lowering.OnnxPayload)
    model = copy.deepcopy(payload.models[method])
    constants = {t.name: t for t in model.graph.initializer}
    stored = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    readers = [next(i for i, n in enumerate(model.graph.node) if d.output[0] in n.input) for d in stored]
    node = [d for _, d in sorted(zip(readers, stored, strict=True), key=lambda pair: pair[0])][layer]
    name = f"{node.input[which]}/damaged"
    model.graph.initializer.append(
        numpy_helper.from_array(change(numpy_helper.to_array(constants[node.input[which]])), name)
    )
    node.input[which] = name
    return replace(payload, models={**payload.models, method: model})


@dataclass(frozen=True)
class Edited:
    """An .onnx payload whose finished graph is changed before it is written."""

    payload: lowering.Payload
    edit: Callable[[ModelProto], None]

    def program(self, manifest: str) -> bytes:
        model = load_model_from_string(self.payload.program(manifest))
        self.edit(model)
        return bytes(model.SerializeToString())

    def coverage(self) -> Any:
        return self.payload.coverage()

    def weight_bytes(self) -> Any:
        return self.payload.weight_bytes()

    def memory(self) -> Any:
        return self.payload.memory()
