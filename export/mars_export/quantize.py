"""Quantization-aware training, one piece of the deployed model at a time.

Axes: B batch, C channels, H height, W width, N experts.
Design decision: QAT is the training recipe with another model inside. Every piece (encoder, route, expert,
head) is exported and prepared on its own, put back into the training model, and trained by the same `fit`.
Batch norms are folded into their convolutions *before* that, with the trained statistics: the pieces then
have no mode, so preparing and converting take 0.3 s a piece instead of 18 s (torchao matches 96 traced
conv-bn patterns per piece), and a step needs no second normalisation pass.
Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", arXiv 1806.08342,
section 3.2 (fold and freeze batch norms; per-channel weights).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_export.hush import hushed
from mars_export.pieces import (
    Piece,
    example_inputs,
    fold_batch_norms,
    one_dequantizer_each,
    pieces_of,
    replace_piece,
    trace,
)
from mars_training.data.split import Data, Split
from mars_training.model.mars import DeployedMars, RouteStage, TrainingMars
from mars_training.model.routers import FeatureRouter
from mars_training.recipe import Recipe
from mars_training.sampling import MaskSampler
from mars_training.train import EpochReport, Hooks, TrainingModel, fit

# The router (10,000 of 50 million multiplications) stays float32. In int8 the logits of close experts tie, and a
# difference of one step anywhere before them picks other experts in one of twenty samples.
_FLOAT_LAYERS = ("router",)
_OBSERVED_BATCHES = 8
# XNNPACK's own bound: smaller scales lose precision in its requantization.
_LEAST_WEIGHT_SCALE = 2.0**-12


class LinearRouter(nn.Module):
    """A feature router without batch norm as two linear layers on the pooled z; the same logits (B, N).

    In float32 behind an int8 map that is an output too, XNNPACK (executorch 1.5.1) lowers the router's 1 x 1
    convolutions to a delegate that fails at run time: "Propagating input shapes failed".
    """

    def __init__(self, router: FeatureRouter) -> None:
        super().__init__()
        self.hidden = _as_linear(router.hidden[0])
        self.out = _as_linear(router.out)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.relu(self.hidden(z.mean((2, 3)))))
        return logits


def _as_linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.bias is not None
    linear = nn.Linear(layer.in_channels, layer.out_channels)
    linear.weight.data = layer.weight.data.flatten(1).clone()
    linear.bias.data = layer.bias.data.clone()
    return linear


def prepare(deployed: DeployedMars, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Replaces every piece by its fake-quantized form, in place: int8, weights per channel, boundaries float32.

    Raises:
        UsageError: a batch norm cannot be folded, or a piece has dropout (a traced piece has no modes).
    """
    fold_batch_norms(deployed)
    if isinstance(deployed.route_stage, RouteStage) and isinstance(deployed.route_stage.router, FeatureRouter):
        deployed.route_stage.router = LinearRouter(deployed.route_stage.router)
    dropouts = [name for name, m in deployed.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    if dropouts:
        raise UsageError(f"piece has dropout {dropouts[0]!r}: quantization-aware training cannot switch it off")
    # Two samples: torch.export takes a dimension of size 1 for a constant.
    examples = example_inputs(deployed, shapes, batch=2)
    # An expert that no row is dispatched to would observe no range.
    deployed.always_dense = True
    for method, module in pieces_of(deployed).items():
        replace_piece(deployed, method, Piece(_prepare_piece(module, examples[method])))


def _prepare_piece(module: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    with hushed():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
        quantizer = XNNPACKQuantizer().set_global(dataclasses.replace(config, weight=_exact_weights(config.weight)))
        # Four of its patterns look for batch norms, 4 s per piece; there are none left.
        quantizer.SUPPORTED_PATTERNS = [p for p in quantizer.SUPPORTED_PATTERNS if "bn" not in p.name]
        _leave_float(quantizer)
        prepared: nn.Module = prepare_qat_pt2e(trace(module.train(), example).module(), quantizer)
    return prepared


def _exact_weights(spec: Any) -> Any:
    """The weight quantizer with scales that are the same in training and after conversion.

    The default one trains with the scales of its fused kernel (largest weight / 127 or / 128) but converts with
    its observer's (/ 127.5): up to four output steps apart after two layers.
    """
    from torchao.quantization.pt2e import FakeQuantize, MovingAveragePerChannelMinMaxObserver

    # averaging_constant 1: the range is that of the weights as they are, not of an average over steps.
    quantizer = FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=_LEAST_WEIGHT_SCALE
    )
    return dataclasses.replace(spec, observer_or_fake_quant_ctr=quantizer)


def _leave_float(quantizer: Any) -> None:
    """Makes `quantizer` skip every operation inside `_FLOAT_LAYERS`."""
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    # `set_module_name(name, None)` is not supported, and shared-scale operations are annotated past it.
    annotate = quantizer.annotate

    def annotate_others(model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        annotate(model)
        for node in model.graph.nodes:
            inside = {path for path, _ in node.meta.get("nn_module_stack", {}).values()}
            if inside & set(_FLOAT_LAYERS):
                node.meta.pop(Q_ANNOTATION_KEY, None)
        return model

    quantizer.annotate = annotate_others


def freeze_observers(deployed: DeployedMars) -> None:
    """Stops every range observer: scales and zero points stay as they are from here on."""
    deployed.apply(_disable_observer())


def _disable_observer() -> Callable[[nn.Module], None]:
    with hushed():
        from torchao.quantization.pt2e import disable_observer
    disable: Callable[[nn.Module], None] = disable_observer
    return disable


def convert(prepared: DeployedMars) -> DeployedMars:
    """A copy whose pieces compute with real int8 weights and quantize-dequantize pairs; float32 at the boundaries."""
    with hushed():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        converted = copy.deepcopy(prepared)
        for method, piece in pieces_of(converted).items():
            assert isinstance(piece, Piece)
            replace_piece(converted, method, Piece(one_dequantizer_each(convert_pt2e(piece.traced))))
    return converted


def quantization_schedule(recipe: Recipe) -> Recipe:
    """The training recipe with the schedule of quantization-aware training."""
    export = recipe.export
    schedule = dataclasses.replace(
        recipe.schedule,
        epochs=export.qat_epochs,
        rate=recipe.schedule.rate * export.qat_rate,
        schedule="cosine",
        warmup_epochs=0.0,
        validate_every=max(export.qat_epochs, 1),
        precision="fp32",
    )
    return dataclasses.replace(recipe, schedule=schedule, loss=dataclasses.replace(recipe.loss, imitate_start=0))


def quantize(
    model: TrainingMars, data: Data, recipe: Recipe, *, seed: int, report: Callable[[EpochReport], None]
) -> DeployedMars:
    """The converted deployed model after quantization-aware training of `model`, which is changed in place.

    Ranges are observed on training samples alone: the last epoch, at whose end validation is scored, keeps
    the ranges it began with.
    """
    prepare(model.deployed, {m.name: m.shape for m in data.source.modalities})
    torch.manual_seed(seed)
    _observe(model, data.train, recipe.schedule.batch_size)
    epochs = recipe.export.qat_epochs

    def before_epoch(trained: TrainingModel, epoch: int) -> None:
        if epoch == epochs - 1:
            trained.apply(_disable_observer())

    if epochs:
        hooks = Hooks(before_epoch=before_epoch, after_epoch=report)
        fit(model, data, quantization_schedule(recipe), seed=seed, hooks=hooks)
    freeze_observers(model.deployed)
    return convert(model.deployed)


@torch.no_grad()
def _observe(model: TrainingMars, train: Split, batch_size: int) -> None:
    """Gives every observer its first ranges, before any gradient sees a quantizer."""
    model.train()
    sampler = MaskSampler(model.deployed.modalities, start=1, tau=1.0, floor=0.0)
    order = torch.randperm(len(train))[: _OBSERVED_BATCHES * batch_size]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        model(train.batch(indices), sampler.masks(sampler.draw(len(indices))))
