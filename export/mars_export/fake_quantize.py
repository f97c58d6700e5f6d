"""The pieces of a deployed model with fake quantizers: int8 in what they compute, float32 in what they store.

Axes: B batch, N experts.
Design decision: which layers stay float32 is a set of names in the recipe, METHOD/MODULE.PATH ("encode_rgb/stack.0.0").
Every operation of such a layer is shown to the quantizer as already annotated, with nothing: patterns pass it over,
and no operation behind it inherits a range from it.
Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", arXiv 1806.08342,
section 3.2 (fold and freeze batch norms; per-channel weights).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_export.fold import drop_dropout, fold_batch_norms
from mars_export.fusion_share import SummedFusion, share_fusion
from mars_export.hush import hushed
from mars_export.pieces import Piece, example_inputs, pieces_of, replace_piece, trace
from mars_training.model.mars import DeployedMars, RouteStage
from mars_training.model.routers import FeatureRouter

# The router (10,000 of 50 million multiplications) stays float32. In int8 the logits of close experts tie, and a
# difference of one step anywhere before them picks other experts in one of twenty samples.
_ROUTING = ("router", "combination")
# XNNPACK's own bound: smaller scales lose precision in its requantization.
_LEAST_WEIGHT_SCALE = 2.0**-12
_WEIGHTED = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear")

Edge = tuple[str, str]
"""A value and an operation that reads it, as names in a traced graph; "" reads what is an output."""


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


def make_traceable(deployed: DeployedMars) -> tuple[str, ...]:
    """Takes batch norms and dropout out of every piece, in place, keeping each output; a line for people per change.

    Raises:
        UsageError: a batch norm cannot be folded.
    """
    dropouts = drop_dropout(deployed)
    fold_batch_norms(deployed)
    share_fusion(deployed)
    if isinstance(deployed.route_stage, RouteStage) and isinstance(deployed.route_stage.router, FeatureRouter):
        deployed.route_stage.router = LinearRouter(deployed.route_stage.router)
    # An expert that no row is dispatched to would observe no range.
    deployed.always_dense = True
    return tuple(f"dropout {name!r} is off: a traced piece has no modes" for name in dropouts)


def prepare(
    deployed: DeployedMars, shapes: Mapping[str, tuple[int, ...]], *, float_layers: Sequence[str] = ()
) -> tuple[str, ...]:
    """Replaces every piece by its fake-quantized form, in place: int8, weights per channel, boundaries float32.

    Returns:
        What had to be done differently, a line each: dropout switched off, layers without int8 kernels.

    Raises:
        UsageError: a batch norm cannot be folded, or `float_layers` names a layer that is not there.
    """
    notes = make_traceable(deployed)
    # Two samples: torch.export takes a dimension of size 1 for a constant.
    examples = example_inputs(deployed, shapes, batch=2)
    pieces = pieces_of(deployed)
    wanted = by_method(float_layers, pieces)
    for method, module in pieces.items():
        recurrent = recurrent_layers(module)
        notes += tuple(f"{method}/{path} stays float32: recurrent layers have no int8 kernel" for path in recurrent)
        graph = traced_graph(module, examples[method])
        _require_layers(method, wanted[method], graph)
        paths = (*wanted[method], *recurrent, *summed_layers(module))
        replace_piece(deployed, method, Piece(fake_quantized(graph, paths)))
    return notes


def by_method(names: Sequence[str], methods: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The paths within each piece that `names` ("METHOD/PATH", or "METHOD" for all of it: path "") name.

    Raises:
        UsageError: a name of no piece.
    """
    paths: dict[str, tuple[str, ...]] = dict.fromkeys(methods, ())
    for name in names:
        method, _, path = name.partition("/")
        if method not in paths:
            raise UsageError(f"float layer {name!r} is in no piece; the pieces are: {', '.join(methods)}")
        paths[method] += (path,)
    return paths


def _require_layers(method: str, paths: Sequence[str], graph: torch.fx.GraphModule) -> None:
    known = layers(graph)
    for path in paths:
        if path and not any(layer == path or layer.startswith(f"{path}.") for layer in known):
            shown = ", ".join(f"{method}/{layer}" for layer in known) or "none"
            raise UsageError(f"float layer {method + '/' + path!r} is not there; the layers of {method} are: {shown}")


def recurrent_layers(module: nn.Module) -> tuple[str, ...]:
    """Paths of the recurrent layers in a piece."""
    return tuple(name for name, child in module.named_modules() if isinstance(child, nn.RNNBase))


def summed_layers(module: nn.Module) -> tuple[str, ...]:
    """Paths in a piece of a fusion that only adds up shares: int8 would round z once per share, for nothing."""
    return tuple(name for name, child in module.named_modules() if isinstance(child, SummedFusion))


def traced_graph(module: nn.Module, example: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """The piece as a graph with a dynamic batch, in evaluation mode: without dropout of any kind."""
    with hushed():
        graph = trace(module.eval(), example).module()
    assert isinstance(graph, torch.fx.GraphModule)
    return graph


def fake_quantized(graph: torch.fx.GraphModule, float_paths: Collection[str]) -> nn.Module:
    """The graph with a fake quantizer on every quantized value; it is used up."""
    with hushed():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        prepared: nn.Module = prepare_qat_pt2e(graph, _quantizer(float_paths))
    return prepared


def quantized_edges(graph: torch.fx.GraphModule, float_paths: Collection[str]) -> set[Edge]:
    """Which values would be quantized for which reader; `graph` keeps its operations, but loses its annotations."""
    with hushed():
        from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

        quantizer = _quantizer(float_paths)
        for node in graph.graph.nodes:
            node.meta.pop(Q_ANNOTATION_KEY, None)
        graph = quantizer.annotate(quantizer.transform_for_annotation(graph))
    edges: set[Edge] = set()
    for node in graph.graph.nodes:
        annotation = node.meta.pop(Q_ANNOTATION_KEY, None)
        if annotation is None:
            continue
        edges |= {(source.name, node.name) for source, spec in annotation.input_qspec_map.items() if spec is not None}
        if annotation.output_qspec is not None:
            edges |= {(node.name, "" if user.op == "output" else user.name) for user in node.users}
    return edges


def _quantizer(float_paths: Collection[str]) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    quantizer = XNNPACKQuantizer().set_global(dataclasses.replace(config, weight=_exact_weights(config.weight)))
    # Four of its patterns look for batch norms, 4 s per piece; there are none left.
    quantizer.SUPPORTED_PATTERNS = [p for p in quantizer.SUPPORTED_PATTERNS if "bn" not in p.name]
    _leave_float(quantizer, float_paths)
    return quantizer


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


def _leave_float(quantizer: Any, paths: Collection[str]) -> None:
    """Makes `quantizer` skip every operation inside `paths`, and all routing.

    `set_module_name(name, None)` is not supported, and a filter is not asked about operations that share a range.
    """
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY, QuantizationAnnotation

    annotate = quantizer.annotate

    def annotate_others(model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        for node in _float_nodes(model.graph, paths):
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
        annotated: torch.fx.GraphModule = annotate(model)
        return annotated

    quantizer.annotate = annotate_others


def _float_nodes(graph: torch.fx.Graph, paths: Collection[str]) -> list[torch.fx.Node]:
    routing: set[torch.fx.Node] = set()
    chosen = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        # What is computed from router logits are router logits.
        if _inside(node, _ROUTING) or routing.intersection(node.all_input_nodes):
            routing.add(node)
        if node in routing or _inside(node, paths):
            chosen.append(node)
    return chosen


def _inside(node: torch.fx.Node, paths: Collection[str]) -> bool:
    return bool({path for path, _ in node.meta.get("nn_module_stack", {}).values()} & set(paths)) or node.name in paths


def layers(graph: torch.fx.GraphModule) -> tuple[str, ...]:
    """Paths of the layers with weights that int8 may compute, in order.

    An operation whose module has further layers inside, or that is in none, goes by its own name.
    """
    return tuple(layer_weights(graph))


def layer_weights(graph: torch.fx.GraphModule) -> dict[str, int]:
    """The number of weights of every layer of `layers`, biases not counted."""
    weighted = [n for n in graph.graph.nodes if _operation(n) in _WEIGHTED and not _inside(n, _ROUTING)]
    paths = {_path(node) for node in weighted}
    counts: dict[str, int] = {}
    for node in weighted:
        path = _path(node)
        holds_others = any(other.startswith(f"{path}.") for other in paths)
        counts[node.name if not path or holds_others else path] = node.args[1].meta["val"].numel()
    return counts


def _operation(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "_opname", ""))


def _path(node: torch.fx.Node) -> str:
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return paths[-1] if paths else ""


def freeze_observers(deployed: nn.Module) -> None:
    """Stops every range observer: scales and zero points stay as they are from here on."""
    deployed.apply(_disable_observer())


def _disable_observer() -> Callable[[nn.Module], None]:
    with hushed():
        from torchao.quantization.pt2e import disable_observer
    disable: Callable[[nn.Module], None] = disable_observer
    return disable
