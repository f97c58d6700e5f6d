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
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mars_edge.errors import UsageError
from mars_export.hush import hushed
from mars_training.data.split import Data, Split
from mars_training.model.mars import DeployedMars, RouteStage, TrainingMars
from mars_training.model.routers import FeatureRouter
from mars_training.recipe import Recipe
from mars_training.sampling import MaskSampler
from mars_training.train import EpochReport, Hooks, TrainingModel, fit

Examples = dict[str, tuple[Tensor, ...]]

# The router (10,000 of 50 million multiplications) stays float32. In int8 the logits of close experts tie, and a
# difference of one step anywhere before them picks other experts in one of twenty samples.
_FLOAT_LAYERS = ("router",)
# Any batch; 1 is allowed too, or the exported guards would refuse a single sample.
_LARGEST_BATCH = 1 << 20
_OBSERVED_BATCHES = 8
# XNNPACK's own bound: smaller scales lose precision in its requantization.
_LEAST_WEIGHT_SCALE = 2.0**-12


class Piece(nn.Module):
    """A traced piece that behaves the same in training and evaluation mode.

    A traced graph refuses `train()`; without batch norm or dropout there is nothing to switch.
    """

    # Not "graph": exporting a Piece again would look its weights up in GraphModule.graph.

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *inputs: Tensor) -> Any:
        return self.traced(*inputs)

    def train(self, mode: bool = True) -> Piece:
        self.training = mode
        return self


def pieces(deployed: DeployedMars) -> dict[str, nn.Module]:
    """The deployed model's pieces by method name, in the order of `mars_edge.manifest.required_methods`."""
    found: dict[str, nn.Module] = {f"encode_{name}": module for name, module in deployed.encoders.items()}
    found["route"] = deployed.route_stage
    found |= {f"expert_{i}": expert for i, expert in enumerate(deployed.experts)}
    if deployed.expert_shared is not None:
        found["expert_shared"] = deployed.expert_shared
    found["head"] = deployed.head
    return found


def replace_piece(deployed: DeployedMars, method: str, module: nn.Module) -> None:
    """Puts `module` in the place of the piece called `method`."""
    if method.startswith("encode_"):
        deployed.encoders[method.removeprefix("encode_")] = module
    elif method in ("route", "head", "expert_shared"):
        setattr(deployed, "route_stage" if method == "route" else method, module)
    else:
        deployed.experts[int(method.removeprefix("expert_"))] = module


@torch.no_grad()
def example_inputs(deployed: DeployedMars, shapes: Mapping[str, tuple[int, ...]], *, batch: int) -> Examples:
    """Zero-valued inputs (B first) of every piece, each of the shape it meets; `shapes` per modality without B."""
    inputs = {name: torch.zeros(batch, *shapes[name]) for name in deployed.modalities}
    features = deployed.encode_all(inputs)
    z, _ = deployed.route_stage(*features)
    expert_output = deployed.experts[0](z)
    examples: Examples = {f"encode_{name}": (x,) for name, x in inputs.items()}
    examples["route"] = tuple(torch.zeros_like(f) for f in features)
    for method in pieces(deployed):
        if method.startswith("expert_"):
            examples[method] = (torch.zeros_like(z),)
    examples["head"] = (torch.zeros_like(expert_output),)
    return examples


def fold_batch_norms(module: nn.Module) -> None:
    """Folds every batch norm that follows a convolution in an `nn.Sequential` into it, in place.

    The module is left in evaluation mode and computes what it computed in evaluation mode before.

    Raises:
        UsageError: a batch norm has no convolution right before it.
    """
    module.eval()
    # The pieces train channels-last; lowering refuses such constants. `contiguous()` would keep the strides of
    # a weight with one channel, which are both.
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    for child in module.modules():
        if isinstance(child, nn.Sequential):
            _fold_sequential(child)
    left = [name for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise UsageError(f"batch norm {left[0]!r} does not follow a convolution in a Sequential: it cannot be folded")


def _fold_sequential(block: nn.Sequential) -> None:
    for i in range(1, len(block)):
        convolution, norm = block[i - 1], block[i]
        if isinstance(convolution, nn.Conv1d | nn.Conv2d) and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            block[i - 1] = fuse_conv_bn_eval(convolution, norm)
            block[i] = nn.Identity()


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
    for method, module in pieces(deployed).items():
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


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """`module` as an exported program with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    each = tuple({0: batch} for _ in example)
    # A piece with *inputs takes one tuple, whose entries are the inputs.
    variadic = len(example) > 1 or isinstance(module, Piece) or _is_variadic(module)
    return torch.export.export(module, example, dynamic_shapes=(each,) if variadic else each)


def _is_variadic(module: nn.Module) -> bool:
    import inspect

    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


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
        for method, piece in pieces(converted).items():
            assert isinstance(piece, Piece)
            replace_piece(converted, method, Piece(one_dequantizer_each(convert_pt2e(piece.traced))))
    return converted


def one_dequantizer_each(traced: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with a dequantizer of its own for every reader of a quantized value.

    XNNPACK refuses to run a dequantized map that is at once an output, in NCHW, and read on in NHWC.
    """
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and "dequantize_per_tensor" in str(node.target):
            for user in list(node.users)[1:]:
                with traced.graph.inserting_after(node):
                    user.replace_input_with(node, traced.graph.node_copy(node))
    traced.recompile()
    return traced


def float_pieces(deployed: DeployedMars) -> DeployedMars:
    """A copy in evaluation mode with its batch norms folded, for fp32 artifacts."""
    folded = copy.deepcopy(deployed)
    fold_batch_norms(folded)
    return folded


def output_steps(piece: nn.Module) -> tuple[float | None, ...]:
    """Per output of a converted piece, the distance between neighbouring values, None for a float output.

    Empty for a float piece.
    """
    traced = getattr(piece, "traced", None)
    if traced is None:
        return ()
    (returned,) = [n for n in traced.graph.nodes if n.op == "output"]
    leaves, _ = torch.utils._pytree.tree_flatten(returned.args)
    return tuple(float(n.args[1]) if "dequantize_per_tensor" in str(n.target) else None for n in leaves)


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
