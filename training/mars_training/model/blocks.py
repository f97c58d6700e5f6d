"""Convolution, batch norm, ReLU, and the blocks made of them.

Axes: B batch, C channels, H height, W width.
A convolution folds its batch norm in quantization-aware training and runs as one delegated kernel; a
linear layer does not fold. So every linear layer here is a 1x1 convolution and every feature is a map
(B, C, H, W), a vector being a map of 1x1 pixels. A batch norm always follows its convolution in an `nn.Sequential`,
which is where folding looks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Kernel = int | tuple[int, int]
Module = TypeVar("Module", bound=nn.Module)


def conv_bn(
    inputs: int, outputs: int, *, kernel: Kernel = 3, stride: Kernel = 1, groups: int = 1, dilation: int = 1
) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)) for an odd kernel; values of any sign."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, sides, stride, padding, dilation, groups, bias=False), nn.BatchNorm2d(outputs)
    )


def conv_bn_relu(
    inputs: int, outputs: int, *, kernel: Kernel = 3, stride: Kernel = 1, groups: int = 1, dilation: int = 1
) -> nn.Sequential:
    """As `conv_bn`, then ReLU: values at least 0."""
    block = conv_bn(inputs, outputs, kernel=kernel, stride=stride, groups=groups, dilation=dilation)
    return block.append(nn.ReLU())


def conv_stack(inputs: int, channels: Sequence[int], *, kernel: int, strides: Sequence[int]) -> nn.Sequential:
    """The chain of `conv_bn_relu` whose i-th block has `channels[i]` outputs and stride `strides[i]`."""
    widths = [inputs, *channels]
    pairs = zip(widths[:-1], widths[1:], strides, strict=True)
    return nn.Sequential(*(conv_bn_relu(i, o, kernel=kernel, stride=s) for i, o, s in pairs))


class Residual(nn.Module):
    """`body(x) + shortcut(x)`, then ReLU unless `linear`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, *, linear: bool = False) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.last = nn.Identity() if linear else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.body(x) + self.shortcut(x))
        return y


def basic_block(inputs: int, outputs: int, *, stride: int = 1) -> Residual:
    """Two 3x3 convolutions beside a shortcut (arXiv 1512.03385, figure 5 left)."""
    body = nn.Sequential(*conv_bn_relu(inputs, outputs, stride=stride), *conv_bn(outputs, outputs))
    return Residual(body, _shortcut(inputs, outputs, stride))


def bottleneck(inputs: int, width: int, *, stride: int = 1, dilation: int = 1) -> Residual:
    """1x1, 3x3, 1x1 convolutions to 4 `width` outputs beside a shortcut (arXiv 1512.03385, figure 5 right).

    The stride sits in the 3x3 convolution, as in every widespread implementation, not in the first 1x1.
    """
    body = nn.Sequential(
        *conv_bn_relu(inputs, width, kernel=1),
        *conv_bn_relu(width, width, stride=stride, dilation=dilation),
        *conv_bn(width, 4 * width, kernel=1),
    )
    return Residual(body, _shortcut(inputs, 4 * width, stride))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    same = inputs == outputs and stride == 1
    return nn.Identity() if same else conv_bn(inputs, outputs, kernel=1, stride=stride)


def basic_stage(inputs: int, channels: Sequence[int], *, stride: int) -> nn.Sequential:
    """Basic blocks of `channels[i]` outputs each, the first with `stride`."""
    blocks = nn.Sequential()
    for outputs in channels:
        blocks.append(basic_block(inputs, outputs, stride=1 if len(blocks) else stride))
        inputs = outputs
    return he_initialised(blocks)


class SqueezeExcite(nn.Module):
    """Each channel scaled by a factor in 0..1 that all channels' means decide (arXiv 1709.01507, section 3)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.scale = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.scale(x.mean((2, 3), keepdim=True))
        return scaled


def inverted_residual(inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> nn.Module:
    """Widen by `expansion`, filter each channel alone, narrow without ReLU (arXiv 1801.04381, section 3.3).

    ReLU stands where the source has ReLU6: the int8 kernels clip at the range that was observed anyway.
    """
    wide = inputs * expansion
    body = nn.Sequential(
        *conv_bn_relu(inputs, wide, kernel=1),
        *conv_bn_relu(wide, wide, kernel=kernel, stride=stride, groups=wide),
        *conv_bn(wide, outputs, kernel=1),
    )
    if stride == 1 and inputs == outputs:
        return Residual(body, nn.Identity(), linear=True)
    return body


class MeanPool(nn.Module):
    """(B, C, H, W) -> (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Branches(nn.Module):
    """The outputs of several modules on the same input, concatenated along channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def he_initialised(module: Module) -> Module:
    """`module` with its convolutions' weights drawn anew, normal with variance 2 / fan-out (arXiv 1502.01852)."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
    return module
