"""Batch norms and dropout taken out of a module that will not train them any more.

Axes: B batch, C channels.
Design decision: a batch norm with running statistics is one factor and one offset per channel. Right after a
convolution it disappears into the weights; anywhere else it becomes a 1x1 convolution of each channel alone, which
every engine has in int8 too. So no block has to be written in a way that folding knows.
Source: Krishnamoorthi, arXiv 1806.08342, section 3.2.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mars_edge.errors import UsageError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# What tracing raises for a forward that looks at values: its norms are then replaced one by one.
_UNTRACEABLE = (TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError)


class ChannelAffine(nn.Module):
    """A batch norm with fixed statistics as a convolution: (B, C), (B, C, T) or (B, C, H, W), each channel alone."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        offset = -norm.running_mean * scale
        channels = norm.num_features
        self.affine = nn.Conv2d(channels, channels, 1, groups=channels)
        self.affine.weight.data = scale.detach().view(-1, 1, 1, 1).clone()
        self.affine.bias = nn.Parameter((offset if norm.bias is None else offset + norm.bias).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.affine(x.reshape(*x.shape, *[1] * (4 - x.dim())))
        return y.flatten(x.dim() - 1) if x.dim() < 4 else y


def fold_batch_norms(module: nn.Module) -> None:
    """Takes every batch norm out of `module`, in place; it computes what it computed in evaluation mode before.

    The module is left in evaluation mode.

    Raises:
        UsageError: a batch norm has no running statistics, or works on volumes.
    """
    module.eval()
    # The pieces train channels-last; lowering refuses such constants. `contiguous()` would keep the strides of
    # a weight with one channel, which are both.
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    _require_foldable(module)
    uses = Counter(id(child) for _, child in module.named_modules(remove_duplicate=False))
    for parent in list(module.modules()):
        for before, after in _adjacent(parent):
            layer, norm = getattr(parent, before), getattr(parent, after)
            if uses[id(layer)] == uses[id(norm)] == 1:
                setattr(parent, before, _fused(layer, norm))
                setattr(parent, after, nn.Identity())
    _replace_others(module)


def _require_foldable(module: nn.Module) -> None:
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm) and (not isinstance(norm, _NORMS) or norm.running_mean is None):
            why = "has no running statistics" if norm.running_mean is None else f"is a {type(norm).__name__}"
            able = "BatchNorm1d and BatchNorm2d with running statistics"
            raise UsageError(f"batch norm {name!r} {why}; only {able} can be folded")


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(layer, nn.Conv1d | nn.Conv2d) and isinstance(norm, _NORMS)
    return fuse_conv_bn_eval(layer, norm)


def _adjacent(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of children of `parent`: a layer, and the batch norm that alone reads it, each called once."""
    if not any(isinstance(child, _NORMS) for child in parent.children()):
        return
    tracer = torch.fx.Tracer()
    tracer.is_leaf_module = lambda m, name: True  # type: ignore[method-assign, assignment]
    try:
        graph = tracer.trace(parent)
    except _UNTRACEABLE:
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(str(node.target) for node in calls)
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(source, torch.fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        before, after = str(source.target), str(node.target)
        pair = parent.get_submodule(before), parent.get_submodule(after)
        if _fuses(*pair) and "." not in before + after and times[before] == times[after] == 1:
            yield before, after


def _fuses(layer: nn.Module, norm: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return isinstance(norm, nn.BatchNorm2d)
    # Not a linear layer: of (B, T, C) its channels are elsewhere than its norm's.
    return isinstance(layer, nn.Conv1d) and isinstance(norm, nn.BatchNorm1d)


def _replace_others(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _NORMS):
                setattr(parent, name, ChannelAffine(child))


def drop_dropout(module: nn.Module) -> tuple[str, ...]:
    """Takes dropout out of `module`, in place; returns the names of the modules that had it."""
    named = []
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.RNNBase) and child.dropout:
            child.dropout = 0.0
            named.append(name)
        elif isinstance(child, _DropoutNd):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, nn.Identity())
            named.append(name)
    return tuple(named)
